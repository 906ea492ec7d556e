"""Cases 40 to 43: the daemon's own process ending, dying, pausing, starving."""

import os
import signal
from collections.abc import Iterator

import numpy as np

from real_robot.conformance.bench import Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.core.faults import FaultCode, Reaction, RefusedError
from real_robot.core.supervisor import State
from real_robot.loop import Lateness, run_loop
from real_robot.twin.dxl_bus import DxlBusTwin


def ends(device: Device) -> str:
    for number in (signal.SIGTERM, signal.SIGINT):
        bench = Bench(device).moving()
        ticks = iter(range(10))

        def signalled(_: object, ticks: Iterator[int] = ticks, number: int = number) -> None:
            if next(ticks, 0) == 5:
                os.kill(os.getpid(), number)

        bench.daemon.subscribe(signalled)
        bench.daemon.run()
        expect(not any(bench.twin.torque_flags().values()), f"{number.name}: torque is on")
        expect(bench.link.opened is None, "the port is open")
        bench.bounded()
    bench = Bench(device).moving()

    def broken(_: object) -> None:
        raise ZeroDivisionError("a recorder's bug")

    bench.daemon.subscribe(broken)
    raised = False
    try:
        bench.daemon.run()
    except ZeroDivisionError:
        raised = True
    expect(raised, "the exception was swallowed")
    expect(not any(bench.twin.torque_flags().values()) and bench.link.opened is None, "torque on, or port open")
    latched = bench.supervisor.latched
    expect(latched is not None and latched.reaction >= Reaction.LATCH, "not latched")
    bench.bounded()
    return "SIGTERM, SIGINT, exception: controlled stop, torque off, port closed"


def killed(device: Device) -> str:
    bench = Bench(device).moving()
    bench.twin.peaks.reset()
    start = bench.now
    while bench.now < start + 1.0:  # nobody ticks
        bench.clock.advance(0.05)
        bench.twin.advance()
    fastest = max(bench.twin.peaks.speed_rad_s)
    expect(float(np.abs(bench.speeds).max()) < 0.05, "still moves")
    told = ""
    if isinstance(bench.twin, DxlBusTwin):
        tripped = all(servo.watchdog_tripped for servo in bench.twin.servos)
        expect(tripped, "a bus watchdog has not tripped")
        told = ", bus watchdogs tripped"
    return f"rests at its last goal, at most {fastest:.2f} rad/s{told}"


def paused(device: Device) -> str:
    bench = Bench(device).moving()
    bench.offer()
    writes, start_s = bench.twin.monitor.packets, bench.now
    bench.clock.advance(0.19)
    bench.twin.advance()
    bench.tick(2)
    packets = bench.twin.monitor.packets - writes
    expect(bench.warned(FaultCode.OVERRUN), "the overrun was not noticed")
    expect(packets <= 2 * 4, f"{packets} packets in two ticks: a burst")
    bench.run(0.3, driven=True)
    expect(bench.state == State.ACTIVE, f"state {bench.state} {bench.supervisor.latched or ''}")
    expect(bench.now > start_s, "time")
    fastest = max(bench.twin.peaks.speed_rad_s)
    bench.bounded()
    return f"noticed, expired setpoints skipped, no burst; at most {fastest:.2f} rad/s"


def starved_of_cpu(device: Device) -> str:
    bench = Bench(device).moving()
    lateness = Lateness()
    gaps = iter([0.06] + [0.0] * 20)
    counted = iter(range(22))

    def tick() -> None:
        bench._due_s = bench.now
        bench.daemon.heartbeat(bench.token)
        bench.daemon.tick()
        bench.clock.advance(next(gaps, 0.0))

    run_loop(tick, bench.clock, bench.daemon.dt_s, lambda: next(counted, None) is not None, lateness)
    expect(bench.warned(FaultCode.OVERRUN), "60 ms late: no warning")
    expect(bench.state in (State.ACTIVE, State.STARVED), f"60 ms late: {bench.state}")
    expect(abs(lateness.worst_s - 0.05) < 0.01, f"worst lateness {lateness.worst_s:.3f} s")
    bench.beats = True
    bench._due_s = bench.now
    bench.run(0.1, driven=True)
    bench.clock.advance(0.25)
    bench.daemon.leases._beat_s = bench.now  # the client is well: it is the daemon that slept
    bench.tick(2)
    wanted = State.PAUSED if device == "sts" else State.FAULT  # a Dynamixel's own watchdog has tripped by then
    expect(bench.state == wanted, f"250 ms late: {bench.state}")
    try:
        bench.daemon.reset()
    except RefusedError:
        expect(device == "sts", "reset refused")
    return f"60 ms: warning; 250 ms: {wanted}; histogram {lateness}"


CASES = (
    Case(number=40, title="SIGTERM, SIGINT, exception", run=ends),
    Case(number=41, title="daemon killed", run=killed),
    Case(number=42, title="daemon paused for 200 ms", run=paused),
    Case(number=43, title="CPU starvation", run=starved_of_cpu),
)
