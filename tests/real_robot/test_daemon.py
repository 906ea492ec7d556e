"""The daemon over real drivers and twins on a virtual clock, and its loop."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from real_robot.conformance.bench import Bench
from real_robot.core.clock import RealClock, VirtualClock
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon, Report
from real_robot.loop import Lateness, run_loop
from vla.core.errors import GrasplineError, UnknownNameError


def test_a_policy_drives_the_motors() -> None:
    bench = Bench("sts").moving()
    bench.run(1.0, driven=True)
    commanded = bench.reports[-1].tick.command
    assert commanded is not None and np.abs(bench.positions - commanded.q_J).max() < 0.06
    bench.check_invariants()
    assert bench.twin.monitor.num_eeprom_writes == 0


def test_calls_that_are_refused() -> None:
    bench = Bench("sts").start()
    token = bench.daemon.lease("one").token
    with pytest.raises(RefusedError, match="'one' drives"):
        bench.daemon.lease("two")
    with pytest.raises(RefusedError, match="acquire the lease"):
        bench.daemon.activate("wrong", "a")
    with pytest.raises(UnknownNameError, match="arm"):
        bench.daemon.activate(token, "a", arm="left")
    with pytest.raises(RefusedError, match="nothing to reset"):
        bench.daemon.reset()
    with pytest.raises(RefusedError, match="cannot enable"):
        bench.daemon.enable()


def test_an_estop_never_waits_for_the_tick_at_hand() -> None:
    bench = Bench("sts").moving()
    with bench.daemon._lock:  # a tick is under way
        thread = threading.Thread(target=bench.daemon.estop, args=("button",))
        thread.start()
        thread.join(timeout=1.0)
        assert not thread.is_alive()
    bench.tick()
    assert bench.state == State.ESTOP


def fastest_joint(report: Report) -> float:
    assert report.tick.command is not None
    return float(np.abs(report.tick.command.dq_J).max())


def test_a_fault_becomes_a_stop_command_within_two_ticks() -> None:
    bench = Bench("sts").moving()
    fastest = fastest_joint(bench.reports[-1])
    count = len(bench.reports)
    bench.twin.servo(3).overload()
    bench.tick(3)
    slower = [fastest_joint(report) < fastest for report in bench.reports[count:]]
    assert slower.index(True) <= 1 and bench.state == State.FAULT


def test_state_shows_cause_and_readings() -> None:
    bench = Bench("sts").moving()
    bench.twin.servo(3).silent()
    bench.run(0.2)
    shown = bench.daemon.state()["arm"]
    assert shown.state == State.FAULT and "elbow_flex" in shown.latched and shown.reading is not None
    bench.link.unplug()
    bench.run(1.0)
    assert "unplugged" in bench.daemon.state()["arm"].trouble


def test_connect_fails_for_all_or_none() -> None:
    bench = Bench("sts", arms=2)
    bench.rigs[1].twin.servo(2).device_id = 9
    with pytest.raises(GrasplineError, match="no answer"):
        bench.daemon.connect()
    assert bench.rigs[0].link.opened is None and bench.rigs[1].link.opened is None


def test_parking_at_the_end() -> None:
    bench = Bench("sts").start()
    daemon = Daemon({"arm": bench.arm}, clock=bench.clock, park_at_end=True)
    bench.daemon.shutdown("another takes over")
    daemon.connect()
    daemon.enable()
    daemon.shutdown("test")
    assert bench.spec.park is not None
    np.testing.assert_allclose(bench.positions, bench.spec.park, atol=0.05)
    assert not any(bench.twin.torque_flags().values())


def test_arms_of_different_rates_do_not_share_a_loop() -> None:
    with pytest.raises(ValueError, match="rates"):
        Daemon({}, clock=VirtualClock())


def test_the_loop_skips_what_it_missed() -> None:
    clock, ticks, lateness = VirtualClock(), [], Lateness()
    delays = iter([0.0, 0.035, 0.0, 0.0, 0.0, 0.0])

    def tick() -> None:
        ticks.append(round(clock.now(), 6))
        clock.advance(next(delays))

    run_loop(tick, clock, 0.01, lambda: len(ticks) < 6, lateness)
    assert ticks == [0.01, 0.02, 0.055, 0.06, 0.07, 0.08]
    assert lateness.worst_s == pytest.approx(0.025) and len(lateness) == 6


def test_lateness_quantiles_agree_with_numpy() -> None:
    rng, lateness = np.random.default_rng(0), Lateness()
    late_s = rng.lognormal(-8.0, 1.0, 5000)
    for each in late_s:
        lateness.add(float(each))
    for share in (0.5, 0.9, 0.99):
        assert lateness.quantile(share) == pytest.approx(np.quantile(late_s, share), rel=0.13)
    assert Lateness().quantile(0.5) == 0.0


def test_signals_of_a_daemon_in_its_own_process() -> None:
    """SIGUSR1 stops, SIGTERM ends with the torque off: as `scripts.robot estop` does it, in real time."""
    code = """
import time
from real_robot.conformance.bench import Bench
bench = Bench("sts").start()
first = iter(["up"])
def listen(report):
    time.sleep(0.002)
    if text := next(first, None):
        print(text, flush=True)
bench.daemon.subscribe(listen)
bench.daemon.run()
print(bench.state, any(bench.twin.torque_flags().values()), bench.supervisor.latched.first.detail, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert out == "estop False by SIGUSR1\n"
    assert process.returncode == 0


def test_real_clock_loop_is_on_time_in_the_median() -> None:
    lateness, clock = Lateness(), RealClock()
    run_loop(lambda: None, clock, 0.005, lambda: len(lateness) < 40, lateness)
    assert lateness.quantile(0.5) < 0.005
