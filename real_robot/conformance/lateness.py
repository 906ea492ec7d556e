"""How punctual the daemon's loop is on this machine: full block read and write on a paced twin, others busy beside it.

The twin has a process of its own, so it takes its share of the machine too; an idle loop is measured the same way for
comparison. Both loops ask to be first in line, as the daemon does.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass

from real_robot.calibration import ArmCalibration
from real_robot.conformance.bench import Device, stored_calibration
from real_robot.conformance.pty_twin import pty_twin
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.clock import RealClock
from real_robot.daemon import Daemon
from real_robot.drivers.build import koch, so101
from real_robot.loop import Lateness, first_in_line, run_loop
from real_robot.twin.arms import koch as koch_twin
from real_robot.twin.arms import so101 as so101_twin

TWIN_SLACK_S = 8e-3  # the twin is a process like others and waits for its turn, which an arm does not


@dataclass(frozen=True, kw_only=True)
class Punctuality:
    """idle: a loop that does nothing. loop: the daemon's. missed: share of servo answers that did not come."""

    idle: Lateness
    loop: Lateness
    missed: float
    state: str
    latched: str

    def __str__(self) -> str:
        ratio = self.loop.quantile(0.99) / max(self.idle.quantile(0.99), 1e-9)
        head = f"idle loop: {self.idle}\ndaemon:    {self.loop}"
        return f"{head}\np99 ratio {ratio:.1f}, {self.missed:.3%} of answers missed, state {self.state} {self.latched}"


def measure(device: Device, *, seconds: float = 10.0, num_busy: int = 2) -> Punctuality:
    """Runs the idle loop, then the daemon, for `seconds` each, beside `num_busy` processes that compute."""
    context = multiprocessing.get_context("spawn")
    busy = [context.Process(target=_spin, args=(2.0 * seconds + 30.0,), daemon=True) for _ in range(num_busy)]
    for process in busy:
        process.start()
    try:
        with pty_twin(device) as path:
            clock, idle = RealClock(), Lateness()
            _run(lambda: None, clock, 0.01, seconds, idle)
            build = so101 if device == "sts" else koch
            arm = build(calibration=shop_calibration(device), port=path, clock=clock, slack_s=TWIN_SLACK_S)
            daemon = Daemon({"arm": arm}, clock=clock)
            daemon.connect()
            try:
                daemon.enable()
                _run(daemon.tick, clock, daemon.dt_s, seconds, daemon.lateness)
                shown, counts = daemon.state()["arm"], arm.bus.counts
            finally:
                arm.disconnect()
    finally:
        for process in busy:
            process.kill()
            process.join()
    missed = counts.missing / max(counts.requests * len(arm.ids), 1)
    return Punctuality(idle=idle, loop=daemon.lateness, missed=missed, state=shown.state, latched=shown.latched)


def shop_calibration(device: Device) -> ArmCalibration:
    """That of a fresh twin."""
    if device == "sts":
        return stored_calibration(so101_twin(), so101_spec())
    return stored_calibration(koch_twin(), koch_spec())


def _run(tick: Callable[[], None], clock: RealClock, dt_s: float, seconds: float, lateness: Lateness) -> None:
    end_s = clock.now() + seconds
    with first_in_line():
        run_loop(tick, clock, dt_s, lambda: clock.now() < end_s, lateness)


def _spin(seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        sum(range(10_000))
