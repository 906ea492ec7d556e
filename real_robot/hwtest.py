"""What only hardware can show, measured on an arm: small slow motions through the daemon, and what the wire did.

Each function is one test of `scripts.robot hwtest` and returns plain numbers for its report. Nothing here judges: the
figures are for comparison with the twin's, whose gears have no play and whose cable no noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from real_robot.core.types import Array
from real_robot.daemon import Daemon, Report
from real_robot.drivers.servo_arm import ServoArm
from real_robot.loop import Lateness, run_loop
from real_robot.teleop.drive import Drive
from real_robot.teleop.scripted import Scripted

SWING_RAD, SWING_S = 0.15, 4.0  # there and back; at most 0.24 rad/s
STILL_S = 0.5
READS = 500

type Numbers = dict[str, float]


@dataclass(kw_only=True)
class Seen:
    """Reports of one arm, gathered while `on`."""

    arm: str
    on: bool = False
    reports: list[Report] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """For `Daemon.subscribe`."""
        if self.on and report.arm == self.arm:
            self.reports.append(report)

    def states(self, name: str) -> Array:
        """(T, J) of one field of the readings."""
        return np.array([getattr(report.state, name) for report in self.reports])


def link(arm: ServoArm, clock: Callable[[], float]) -> Numbers:
    """Durations of block reads on the open bus, and answers that did not come; no torque is needed."""
    durations, before = Lateness(), arm.bus.counts.missing
    for _ in range(READS):
        start_s = clock()
        arm.read()
        durations.add(clock() - start_s)
    return {
        "read_p50_ms": 1e3 * durations.quantile(0.5),
        "read_p99_ms": 1e3 * durations.quantile(0.99),
        "read_worst_ms": 1e3 * durations.worst_s,
        "missing_share": (arm.bus.counts.missing - before) / (READS * len(arm.ids)),
        "refused": float(arm.bus.counts.refused),
    }


def enable(daemon: Daemon, name: str) -> Numbers:
    """Torque on, and how far each joint moved by it."""
    reading = daemon.sides[name].arm.read()
    daemon.enable()
    after = daemon.sides[name].arm.read()
    moved_J = np.abs(after.q_J - reading.q_J)
    return {f"moved_mrad.{joint}": 1e3 * moved for joint, moved in zip(_names(daemon, name), moved_J.tolist())}


def hold(daemon: Daemon, name: str, seconds: float) -> Numbers:
    """Standing still under torque: drift, current and heat of each joint."""
    seen = _watching(daemon, name)
    _run(daemon, seconds)
    seen.on = False
    q_TJ, heat_TJ, current_TJ = seen.states("q_J"), seen.states("temperature_J"), seen.states("current_J")
    numbers: Numbers = {}
    for j, joint in enumerate(_names(daemon, name)):
        numbers[f"drift_mrad.{joint}"] = 1e3 * float(np.ptp(q_TJ[:, j]))
        numbers[f"current_a.{joint}"] = float(np.abs(current_TJ[:, j]).mean())
        numbers[f"heat_k.{joint}"] = float(heat_TJ[-1, j] - heat_TJ[0, j])
    return numbers


def swing(daemon: Daemon, name: str, joint: int) -> Numbers:
    """One joint, 0.15 rad away and back, slowly: how far behind it was, and what its gears hide.

    play_mrad: reading minus goal on the way back, less the same on the way there, at the same goals: the gears' play,
    friction against a finite stiffness, and twice the lag.
    """
    side, clock = daemon.sides[name], daemon.clock
    spec = side.arm.spec
    middle = 0.5 * (spec.low_J[joint] + spec.high_J[joint])
    way_J = np.zeros(len(spec.joints))
    way_J[joint] = SWING_RAD if side.controller.commanded_J[joint] < middle else -SWING_RAD
    lease = daemon.lease("hwtest")
    source = Scripted(
        spec,
        lambda t: way_J * 0.5 * (1.0 - np.cos(2.0 * np.pi * min(t, SWING_S) / SWING_S)),
        session=f"hwtest-{lease.generation}",  # numbers of chunks begin anew, so the session has to
    )
    drive = Drive(daemon, source, token=lease.token, arm=name)
    seen = _watching(daemon, name)
    drive.start()
    end_s = clock.now() + SWING_S + STILL_S

    def tick() -> None:
        drive.step()
        daemon.tick()

    run_loop(tick, clock, daemon.dt_s, lambda: clock.now() < end_s, daemon.lateness)
    seen.on = False
    daemon.pause("the swing is over")
    daemon.release(lease.token)
    _run(daemon, STILL_S)
    return _swung(seen, joint)


def _swung(seen: Seen, joint: int) -> Numbers:
    rows = [report for report in seen.reports if report.tick.command is not None]
    goal_T = np.array([report.tick.command.q_J[joint] for report in rows if report.tick.command is not None])
    q_T = np.array([report.state.q_J[joint] for report in rows])
    heat_T = np.array([report.state.temperature_J[joint] for report in rows])
    current_T = np.array([report.state.current_J[joint] for report in rows])
    off_T = q_T - goal_T
    turn = int(np.argmax(np.abs(goal_T - goal_T[0])))
    low, high = np.sort(goal_T[[0, turn]])
    grid = np.linspace(low, high, 12)[3:-3]  # the middle, where both ways have the same speed
    there = np.interp(grid, *_ordered(goal_T[: turn + 1], off_T[: turn + 1]))
    back = np.interp(grid, *_ordered(goal_T[turn:], off_T[turn:]))
    return {
        "travel_rad": float(np.ptp(q_T)),
        "behind_worst_mrad": 1e3 * float(np.abs(off_T).max()),
        "behind_at_rest_mrad": 1e3 * float(np.abs(off_T[-10:]).mean()),
        "play_mrad": 1e3 * float(np.abs(back - there).mean()),
        "current_worst_a": float(np.abs(current_T).max()),
        "heat_k": float(heat_T[-1] - heat_T[0]),
    }


def stop(daemon: Daemon, name: str) -> Numbers:
    """An e-stop while the arm stands: ticks until it is latched, and whether the reset comes back to holding."""
    start_s = daemon.clock.now()
    daemon.estop("hwtest")
    daemon.tick()
    latched_s = daemon.clock.now() - start_s
    latched = bool(daemon.sides[name].controller.supervisor.latched)
    _run(daemon, STILL_S)
    daemon.reset()
    _run(daemon, STILL_S)
    return {
        "latched": float(latched),
        "latched_ms": 1e3 * latched_s,
        "holds_again": float(str(daemon.sides[name].state) == "hold"),
    }


def _ordered(x_T: Array, y_T: Array) -> tuple[Array, Array]:
    order = np.argsort(x_T)
    return x_T[order], y_T[order]


def _names(daemon: Daemon, name: str) -> tuple[str, ...]:
    return daemon.sides[name].arm.spec.names


def _watching(daemon: Daemon, name: str) -> Seen:
    seen = Seen(arm=name, on=True)
    daemon.subscribe(seen.add)
    return seen


def _run(daemon: Daemon, seconds: float) -> None:
    end_s = daemon.clock.now() + seconds
    run_loop(daemon.tick, daemon.clock, daemon.dt_s, lambda: daemon.clock.now() < end_s, daemon.lateness)
