"""Before a policy drives an arm: does it fit? A table with one line for each thing that can be wrong.

    name  verdict  detail         dimensions, units, bounds, rate, cameras, state, first action, latency

What is special: the checks that can ask the running parts do so (the camera's own watch, the door for chunks, the
policy itself, timed on this machine), so the table and the arm cannot disagree. `state` is the check that finds a wrong
zero or a wrong unit: where the arm stands now, against the states that the policy was trained on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from real_robot.cameras.eyes import Eyes
from real_robot.cameras.frames import Camera, Frame, Image, swapped
from real_robot.core.admission import Admission
from real_robot.core.latency import LatencyWindow
from real_robot.core.types import ArmSpec, ArmState, Array, Chunk
from real_robot.daemon import Daemon
from real_robot.loop import run_loop
from real_robot.playing import Playing
from vla.core.errors import GrasplineError
from vla.core.protocols import Policy
from vla.core.spec import Embodiment
from vla.core.types import Float, Observation

ASKS = 10  # of the policy, for its latency; the first, in which things are set up, does not count
LOOK_S = 2.0  # in which every camera has to give a good picture
OUTSIDE_RAD = 0.1  # beyond what training has seen
BOUND_RAD = 0.2  # beyond a soft limit: the door for chunks would refuse it


class PreflightError(GrasplineError):
    """The policy does not fit the arm; the message has the lines that say why."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row. ok: None where it cannot be told."""

    name: str
    ok: bool | None
    detail: str

    def __str__(self) -> str:
        verdict = "unknown" if self.ok is None else "ok" if self.ok else "REFUSED"
        return f"{self.name:13s} {verdict:8s} {self.detail}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What a policy's training data looked like.

    low_S, high_S  (S,) smallest and largest state of each axis
    pictures       by camera, one of its pictures, to find cameras that are exchanged; may be empty
    """

    low_S: Array
    high_S: Array
    pictures: Mapping[str, Image]


def table(lines: Sequence[Line]) -> str:
    return "\n".join(map(str, lines))


def require(lines: Sequence[Line]) -> None:
    """Raises PreflightError with the lines that are not well."""
    wrong = [line for line in lines if line.ok is False]
    if wrong:
        raise PreflightError("the pre-flight refuses:\n" + table(wrong))


def preflight(
    daemon: Daemon,
    arm: str,
    policy: Policy,
    *,
    task: str,
    cameras: Mapping[str, Camera],
    playing: Playing,
    training: Training | None = None,
    timer: Callable[[], float] = time.monotonic,
) -> list[Line]:
    """Every check that is possible; those that need an earlier one to hold are left out after its refusal.

    Args:
        daemon: connected; torque may be off, nothing is moved.
        arm: its name in the daemon.
        policy: asked `ASKS` + 1 times.
        task: what it will be told.
        cameras: by the names that the policy knows, started.
        playing: how its chunks will be played.
        training: see the class; None: not known.
        timer: what the policy's answers are timed with.
    """
    spec = daemon.sides[arm].arm.spec
    lines = [_task(task), _dimensions(policy.spec, spec), _units(policy.spec)]
    if all(line.ok for line in lines):
        lines += [_bounds(policy.spec, spec), _rate(policy, playing, spec)]
    eyes = Eyes(cameras, start_s=daemon.clock.now())
    _look(daemon, eyes)
    lines += _cameras(policy, cameras, eyes, training)
    reading = daemon.sides[arm].reading
    assert reading is not None, "a connected arm has been read"
    if any(line.ok is False for line in lines):
        return lines
    frames = eyes.frames or {}
    age_s = max([daemon.clock.now() - frame.time_s for frame in frames.values()], default=0.0)
    latency, actions_HA = _asked(policy, observation_of(reading, frames, task, reading.time_s), age_s, timer)
    return [
        *lines,
        _state(spec, reading, training),
        _first_action(spec, reading, actions_HA, policy.spec.dt_s),
        _latency(latency, policy, age_s),
        Line(name="speed", ok=True, detail=_speed(spec)),
    ]


def observation_of(state: ArmState, frames: Mapping[str, Frame], task: str, time_s: float) -> Observation:
    """What a policy sees: laid out as `record.recorder.embodiment_of` says."""
    images = {name: frame.image for name, frame in frames.items()}
    return Observation(images=images, state_S=state.q_J.astype(np.float32), instruction=task, time_s=time_s)


def _task(task: str) -> Line:
    return Line(name="task", ok=bool(task.strip()), detail=repr(task) if task.strip() else "no words: give task=")


def _dimensions(seen: Embodiment, spec: ArmSpec) -> Line:
    for kind, axes in (("state", seen.state), ("action", seen.action)):
        names = tuple(axis.name for axis in axes)
        if names != spec.names:
            return Line(name="dimensions", ok=False, detail=f"{kind} is {list(names)}, the arm has {list(spec.names)}")
    return Line(name="dimensions", ok=True, detail=f"{len(spec.names)} joints in, {len(spec.names)} out, same names")


def _units(seen: Embodiment) -> Line:
    units = {axis.unit for axis in (*seen.state, *seen.action)}
    if units == {"rad"}:
        return Line(name="units", ok=True, detail="rad")
    told = sorted(unit or "none told" for unit in units)
    return Line(name="units", ok=False, detail=f"the policy has {told}, the arm speaks rad")


def _bounds(seen: Embodiment, spec: ArmSpec) -> Line:
    low_J, high_J = seen.action_low_A.astype(np.float64), seen.action_high_A.astype(np.float64)
    over_J = np.maximum(spec.low_J - low_J, high_J - spec.high_J)
    worst = int(np.argmax(over_J))
    if over_J[worst] <= BOUND_RAD:
        return Line(name="bounds", ok=True, detail=f"within {max(over_J[worst], 0.0):.2f} rad of the soft limits")
    detail = f"{spec.names[worst]} may be sent {over_J[worst]:.2f} rad past its soft limit"
    return Line(name="bounds", ok=None, detail=f"{detail}: chunks that use it are refused")


def _rate(policy: Policy, playing: Playing, spec: ArmSpec) -> Line:
    detail = f"actions at {policy.spec.control_hz:g} Hz, the arm's loop at {spec.control_hz:g} Hz"
    if playing.execute > policy.horizon:
        detail = f"execute is {playing.execute}, chunks hold only {policy.horizon} steps"
        return Line(name="rate", ok=False, detail=detail)
    return Line(name="rate", ok=policy.spec.control_hz <= spec.control_hz, detail=detail)


def _look(daemon: Daemon, eyes: Eyes) -> None:
    """Ticks until all cameras have given a good picture, or time is up."""
    end_s = daemon.clock.now() + LOOK_S

    def tick() -> None:
        daemon.tick()
        eyes.look(daemon.clock.now())

    run_loop(
        tick,
        daemon.clock,
        daemon.dt_s,
        lambda: eyes.frames is None and daemon.clock.now() < end_s,
        daemon.lateness,
    )


def _cameras(policy: Policy, cameras: Mapping[str, Camera], eyes: Eyes, training: Training | None) -> list[Line]:
    wanted = {camera.name: camera for camera in policy.spec.cameras if camera.name in policy.cameras}
    lines = []
    for name, camera in wanted.items():
        if name not in cameras:
            detail = f"the policy looks through it; there are {sorted(cameras)}"
            lines.append(Line(name=f"camera {name}", ok=False, detail=detail))
            continue
        given = cameras[name].spec
        size, same = f"{given.height}x{given.width}", (given.height, given.width) == (camera.height, camera.width)
        detail = f"{size}" if same else f"{size}, the policy wants {camera.height}x{camera.width}"
        detail += f"; {eyes.found[name]}" if name in eyes.found else f"; serial {given.serial}"
        lines.append(Line(name=f"camera {name}", ok=same and name not in eyes.found, detail=detail))
    images = {name: frame.image for name, frame in (eyes.frames or {}).items()}
    for a, b in swapped(images, training.pictures) if training is not None else ():
        lines.append(
            Line(name="cameras", ok=False, detail=f"'{a}' shows what '{b}' showed in training, and vice versa")
        )
    return lines or [Line(name="cameras", ok=True, detail="the policy looks through none")]


def _asked(
    policy: Policy, observation: Observation, age_s: float, timer: Callable[[], float]
) -> tuple[LatencyWindow, Float]:
    """Times from picture to chunk, and a chunk; `age_s` of them is the picture's age."""
    window = LatencyWindow()
    actions_HA = policy.act([observation], [0])[0].actions_HA
    for seed in range(ASKS):
        start_s = timer()
        actions_HA = policy.act([observation], [seed])[0].actions_HA
        window.add(timer() - start_s + age_s)
    return window, actions_HA


def _state(spec: ArmSpec, reading: ArmState, training: Training | None) -> Line:
    if training is None:
        return Line(name="state", ok=None, detail="the states of training are not known: give dataset=")
    outside_J = np.maximum(training.low_S - reading.q_J, reading.q_J - training.high_S)
    worst = int(np.argmax(outside_J))
    if outside_J[worst] <= OUTSIDE_RAD:
        return Line(name="state", ok=True, detail="where it stands, training has been")
    detail = f"{spec.names[worst]} stands at {reading.q_J[worst]:.2f} rad, training saw "
    detail += (
        f"{training.low_S[worst]:.2f} to {training.high_S[worst]:.2f}: move the arm there by hand, or check its zero"
    )
    return Line(name="state", ok=False, detail=detail)


def _first_action(spec: ArmSpec, reading: ArmState, actions_HA: Float, dt_s: float) -> Line:
    """What the door for chunks says to the chunk for what is seen now."""
    door = Admission(spec)
    door.open("pre-flight", reading.time_s)
    g = spec.gripper_index
    chunk = Chunk(
        session="pre-flight",
        seq=0,
        t_obs_s=reading.time_s,
        dt_s=dt_s,
        q_HN=actions_HA[:, spec.arm_N],
        gripper_H=None if g is None else actions_HA[:, g],
    )
    admitted = door.admit(chunk, reading.time_s, reading.q_J)
    if admitted.chunk is None:
        return Line(name="first action", ok=False, detail=f"{admitted.refusal}: {admitted.detail}")
    away_J = np.abs(actions_HA[0] - reading.q_J)
    worst = int(np.argmax(away_J))
    detail = f"{away_J[worst]:.2f} rad away at {spec.names[worst]}; {admitted.clamped} numbers clamped"
    return Line(name="first action", ok=True, detail=detail)


def _latency(window: LatencyWindow, policy: Policy, age_s: float) -> Line:
    detail = f"{window.report(policy.horizon, policy.spec.dt_s)}; pictures {1e3 * age_s:.0f} ms old"
    return Line(name="latency", ok=window.feasible(policy.horizon, policy.spec.dt_s), detail=detail)


def _speed(spec: ArmSpec) -> str:
    if spec.max_tcp_speed_m_s is None:
        return "normal: joints at full speed"
    return f"reduced: {1e3 * spec.max_tcp_speed_m_s:.0f} mm/s at the tool"
