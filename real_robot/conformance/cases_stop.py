"""Cases 38 and 39: the operator's stop, from every place where it can be pressed, and the deadman that lets go."""

import functools
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import numpy as np

from real_robot.conformance.bench import Bench, Device, expect
from real_robot.conformance.case import Case, Channel, Product, Terminal
from real_robot.conformance.doors import Tab, dashboard, served
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon, Report
from real_robot.serve.client import RobotClient

DEADMAN_S, BEAT_S = 0.5, 0.2


@contextmanager
def _http(daemon: Daemon) -> Iterator[Terminal]:
    with dashboard(daemon) as dash:
        tab = Tab(dash.url)
        yield Terminal(press=lambda: tab.ask("POST", "/estop"), tick=daemon.tick)


@contextmanager
def _page(daemon: Daemon) -> Iterator[Terminal]:
    with dashboard(daemon) as dash, Tab(dash.url).live() as socket:

        def press() -> None:
            socket.send(json.dumps({"estop": "one"}))
            while "stopped" not in json.loads(socket.recv(5.0)):
                pass  # a state on its way

        yield Terminal(press=press, tick=daemon.tick)


@contextmanager
def _network(daemon: Daemon) -> Iterator[Terminal]:
    with served(daemon) as server, RobotClient(server.url, deadline_s=10.0) as client:
        yield Terminal(press=lambda: client.ask("estop"), tick=daemon.tick)


CHANNELS: Mapping[str, Channel] = {
    "call": lambda daemon: nullcontext(Terminal(press=lambda: daemon.estop("test"), tick=daemon.tick)),
    "HTTP": _http,
    "page": _page,
    "network": _network,
}


def estop(device: Device, *, channels: Mapping[str, Channel]) -> str:
    begins = [_stopped(device, "active", channel) for channel in channels.values()]
    begins += [_stopped(device, "aligning", channels[name]) for name in ("call", "HTTP")]
    for name in ("call", "HTTP"):
        _stopped(device, "fault", channels[name])
    _by_signal(device)
    _second_action(device)
    names = ", ".join(channels)
    return f"{names}, SIGUSR1: stop begins in tick {max(begins)}, latched, first press holds, second releases"


def _stopped(device: Device, situation: str, channel: Channel) -> int:
    """A press in this situation, the client gone afterwards. Returns in which tick the stop began."""
    bench = _situation(device, situation)
    reports = len(bench.reports)
    fast = _fastest(bench.reports[-1])
    with channel(bench.daemon) as terminal:
        bench.step = terminal.tick
        with _thinking():
            terminal.press()
            bench.tick(2)
    bench.step = bench.daemon.tick
    expect(bench.state == State.ESTOP, f"{situation}: {bench.state} after two ticks")
    speeds = [_fastest(report) for report in bench.reports[reports:]]
    slower = [tick for tick, speed in enumerate(speeds, 1) if speed < fast]
    expect(situation == "fault" or bool(slower), f"{situation}: no slower after two ticks")
    bench.rested(0.6)
    bench.daemon.release(None)
    bench.run(1.0)
    expect(bench.state == State.ESTOP, f"{situation}: left by itself when the client had gone")
    expect(all(bench.twin.torque_flags().values()), "a first press dropped the arm")
    bench.recovered()
    return slower[0] if slower else 0


def _situation(device: Device, situation: str) -> Bench:
    if situation == "aligning":
        bench = Bench(device).start()
        bench.activate(align=True)
        bench.offer(q_HN=np.full((30, 5), 0.5))
        bench.run(0.5)
        expect(bench.state == State.ALIGNING, f"state {bench.state}")
        return bench
    bench = Bench(device).moving()
    if situation == "fault":
        bench.twin.lose_sync_writes(10)
        bench.faulted(FaultCode.GOAL_NOT_TAKEN, within_s=0.1)
    return bench


@contextmanager
def _thinking() -> Iterator[None]:
    """A policy at work in this very process: the worst that inference can do to whoever receives the press."""
    over = threading.Event()

    def think() -> None:
        while not over.is_set():
            sum(range(1000))

    thread = threading.Thread(target=think, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _by_signal(device: Device) -> None:
    """SIGUSR1, which `scripts.robot estop` sends, to a daemon in its own loop."""
    bench, states = Bench(device).moving(), []

    def watch(_: Report) -> None:
        states.append(bench.state)
        if len(states) == 5:
            os.kill(os.getpid(), signal.SIGUSR1)
        if len(states) == 10:
            bench.daemon.ending = "the case is over"

    bench.daemon.subscribe(watch)
    bench.daemon.run()
    expect(State.ESTOP not in states[:5] and states[6] == State.ESTOP, f"SIGUSR1: {states}")


def _second_action(device: Device) -> None:
    """A reset names the cause it acknowledges; a second press lets the torque go."""
    bench = Bench(device).moving()
    with dashboard(bench.daemon) as dash:
        tab = Tab(dash.url)
        tab.ask("POST", "/estop")
        bench.run(0.8)
        status, _ = tab.ask("POST", "/reset", {})
        expect(status == 409 and bench.state == State.ESTOP, f"a reset without a cause: {status}, {bench.state}")
        status, _ = tab.ask("POST", "/reset", {"cause": f"arm: {bench.supervisor.latched}"})
        expect(status == 200 and bench.state == State.HOLD, f"a reset with the cause: {status}, {bench.state}")
        bench._due_s = bench.now
        for _ in range(2):
            tab.ask("POST", "/estop")
            bench.tick(2)
    expect(not any(bench.twin.torque_flags().values()), "a second press left torque on")


def _fastest(report: Report) -> float:
    return float(np.abs(report.tick.command.dq_J).max()) if report.tick.command else 0.0


def deadman(device: Device) -> str:
    waited = {how: _let_go(device, how) for how in ("the tab closed", "the page silent")}
    bench = Bench(device).moving()
    with dashboard(bench.daemon) as dash:
        with Tab(dash.url).live():
            bench.paced(BEAT_S)
        bench.paced(DEADMAN_S)
    expect(bench.state == State.ACTIVE, f"a tab closed with the deadman off: {bench.state}")
    return "; ".join(f"{how}: PAUSED after {1e3 * seconds:.0f} ms" for how, seconds in waited.items())


def _let_go(device: Device, how: str) -> float:
    """Seconds from when the page lets go to PAUSED."""
    bench = Bench(device).moving()
    with dashboard(bench.daemon) as dash, Tab(dash.url).live() as socket:
        for _ in range(3):
            socket.send(json.dumps({"deadman": True}))
            bench.paced(BEAT_S)
        expect(bench.state == State.ACTIVE, f"the deadman is held: {bench.state} {bench.supervisor.pause_reason}")
        if how == "the tab closed":
            socket.close()
        else:
            socket.send(json.dumps({"deadman": True}))
        waited_s = bench.paced(DEADMAN_S, lambda: bench.state == State.PAUSED, f"{how}: PAUSED")
    expect("deadman" in bench.supervisor.pause_reason, f"{how}: {bench.supervisor.pause_reason}")
    bench.rested(0.5)
    bench.bounded()
    bench.drives_again()
    return waited_s


def cases(product: Product | None) -> tuple[Case, ...]:
    channels = {**CHANNELS, **(product.terminals if product else {})}
    lacking = [name for name in ("keyboard", "gamepad") if name not in channels]
    return (
        Case(
            number=38,
            title="e-stop from every channel and state",
            run=functools.partial(estop, channels=channels),
            missing=f"{' and '.join(lacking)}, as a session of `scripts` has it" if lacking else "",
        ),
        Case(number=39, title="e-stop channel lost (deadman)", run=deadman),
    )
