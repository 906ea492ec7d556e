"""Episodes of the pick task: a scripted demonstration that is recorded, and a policy's attempt that is judged.

Both go the way of every source: lease, admission, filter, wire. Success is the scene's truth, never the policy's word.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from real_robot.calibration import ArmCalibration
from real_robot.cameras.eyes import Eyes
from real_robot.core.filter import Scene
from real_robot.core.supervisor import State
from real_robot.deploy import play_episode
from real_robot.e2e.cell import RATE_HZ, Cell, Memory
from real_robot.e2e.expert import Reach, plan, waypoints
from real_robot.loop import run_loop
from real_robot.playing import Playing
from real_robot.record.recorder import Driver, Recorder
from real_robot.teleop.drive import Drive
from real_robot.teleop.scripted import Scripted
from real_robot.twin.pick_scene import CAMERAS, INSTRUCTION, PickScene, layout
from vla.core.protocols import Policy
from vla.core.types import ActionChunk, Episode, Observation

CONTACT_RAD = 0.33  # of the gripper's joint with the cube between its jaws
SETTLE_S = 0.3  # after the last waypoint
DELIVERED_S = 0.2  # so long the cube has to lie in the tray
ARM = "arm"
_GOING = (State.ACTIVE, State.STARVED)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all episodes on one arm share; see `Cell`."""

    scene: PickScene
    calibration: ArmCalibration
    memory: Memory
    serial: int
    obstacles: Scene | None

    def cell(self, init_state: int, seed: int) -> Cell:
        """A new cell, the arm standing at the start."""
        cell = Cell(
            self.scene,
            calibration=self.calibration,
            memory=self.memory,
            serial=self.serial,
            seed=seed,
            obstacles=self.obstacles,
        )
        cell.start(init_state)
        return cell


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One episode of a policy.

    seconds     from the first chunk to the cube in the tray, or to the end
    ended       "done", "time", or what stopped the arm
    verdicts    ticks in which the filter changed something, by rule, of `ticks`
    filtered    ticks in which it changed anything
    refused     chunks that were not taken, by reason
    asked_ms    real time of each answer of the policy, the socket included
    violations  of the wire's invariants, as the twin counts them
    """

    init_state: int
    success: bool
    seconds: float
    ended: str
    estops: int
    faults: int
    chunks: int
    ticks: int
    filtered: int
    verdicts: Mapping[str, int]
    refused: Mapping[str, int]
    starved_s: float
    asked_ms: Sequence[float]
    violations: int


def demonstrate(bench: Bench, reach: Reach, init_state: int, *, seed: int = 0, noise_rad: float = 0.0) -> Episode:
    """A recorded demonstration; labels are what the teleoperator meant, without the offsets."""
    cell = bench.cell(init_state, seed)
    daemon, side, clock = cell.daemon, cell.daemon.sides[ARM], cell.clock
    here_J = side.controller.commanded_J
    points, rng = waypoints(layout(init_state), CONTACT_RAD), np.random.default_rng([init_state, seed])
    way = plan(reach, here_J, points, rng=rng, noise_rad=noise_rad)
    began: list[float] = []

    def path(t_s: float) -> np.ndarray:
        if not began and side.reading is not None:
            began.append(side.reading.time_s - t_s)
        return way.noisy(t_s) - here_J

    meta = {"init_state": init_state, "seed": seed, "policy": "scripted", "noise_rad": noise_rad}
    recorder = Recorder(
        arm=ARM, cameras=CAMERAS, rate_hz=RATE_HZ, meta=meta | {"calibration": bench.calibration.sha256}
    )
    recorder.driver = Driver.TELEOP
    daemon.subscribe(recorder.tick)
    drive = Drive(daemon, Scripted(cell.arm.spec, path), token=daemon.lease("script").token, arm=ARM)
    eyes = Eyes(cell.cameras, start_s=clock.now())
    drive.start()
    recorder.start(INSTRUCTION)

    def tick() -> None:
        for finding in eyes.look(clock.now()):
            daemon.fail(finding)
        for name, frame in (eyes.frames or {}).items():
            recorder.see(name, frame)
        drive.step()
        daemon.tick()

    end_s = clock.now() + way.seconds + SETTLE_S
    run_loop(tick, clock, daemon.dt_s, lambda: clock.now() < end_s and side.state in _GOING, daemon.lateness)
    episode = recorder.finish(success=cell.scene.delivered, truncated=side.state not in _GOING)
    times_T = [observation.time_s - began[0] for observation in episode.observations[1:]]
    labels_TA = np.stack([way.clean(t_s) for t_s in times_T]).astype(np.float32)
    daemon.shutdown("the demonstration is over")
    return replace(episode, labels_TA=labels_TA)


def attempt(
    bench: Bench, policy: Policy, init_state: int, *, playing: Playing, seconds: float, latency_s: float, seed: int = 0
) -> Attempt:
    """A policy's episode: until the cube lies in the tray, the arm stops, or `seconds` are over."""
    cell = bench.cell(init_state, seed)
    timed, since_s = Timed(policy), np.inf

    def until() -> bool:
        nonlocal since_s
        since_s = min(since_s, cell.clock.now()) if cell.scene.delivered else np.inf
        return cell.clock.now() - since_s >= DELIVERED_S

    played = play_episode(
        cell.daemon,
        ARM,
        timed,
        task=INSTRUCTION,
        cameras=cell.cameras,
        playing=playing,
        seconds=seconds,
        seed=seed,
        latency_s=latency_s,
        until=until,
    )
    state = cell.daemon.sides[ARM].state
    success = played.ended == "done"
    result = Attempt(
        init_state=init_state,
        success=success,
        seconds=round(played.seconds - DELIVERED_S * success, 3),
        ended=played.ended,
        estops=int(state == State.ESTOP),
        faults=int(state == State.FAULT),
        chunks=played.chunks,
        ticks=played.ticks,
        filtered=played.filtered,
        verdicts=dict(played.verdicts),
        refused=dict(played.refused),
        starved_s=round(played.starved_s, 3),
        asked_ms=tuple(round(ms, 2) for ms in timed.asked_ms),
        violations=cell.twin.monitor.num_violations,
    )
    cell.daemon.shutdown("the attempt is over")
    return result


class Timed:
    """A policy, and how long its answers take in real time [ms]."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.spec, self.horizon, self.cameras = policy.spec, policy.horizon, policy.cameras
        self.asked_ms: list[float] = []

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        start_s = time.perf_counter()
        chunks = self._policy.act(observations, seeds)
        self.asked_ms.append(1e3 * (time.perf_counter() - start_s))
        return chunks
