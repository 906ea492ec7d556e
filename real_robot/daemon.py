"""The process that owns the arms: one loop, read -> rules -> timeline -> filter -> write, and the calls clients make.

    local code, the socket server, the dashboard --calls--> Daemon <--ticks-- run_loop

All arms of a cell share one lease, and a stop of one stops the others. Calls come from any thread and wait for the
tick at hand at most; `estop` waits for nothing. Nothing here resumes by itself: after a fault, a pulled cable or an
e-stop an operator resets. Functional protection, not safety-rated: it replaces no hard-wired switch.
"""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType

from real_robot.core.admission import Admitted
from real_robot.core.controller import Controller, Tick
from real_robot.core.faults import Fault, FaultCode, Reaction, RefusedError, fault
from real_robot.core.filter import Scene
from real_robot.core.leases import Lease, Leases
from real_robot.core.supervisor import State
from real_robot.core.types import Arm, ArmState, Chunk, Clock
from real_robot.drivers.errors import BusError, TorqueOffError
from real_robot.errors import LinkLost, PortBusyError
from real_robot.loop import Lateness, first_in_line, run_loop
from vla.core.errors import GrasplineError, unknown_name

RETRY_S = 0.5  # between two attempts to open a lost port
END_PATIENCE_S = 15.0
RESET = "reset by SIGUSR2"
_STOPPED = (State.FAULT, State.ESTOP)
_PLAYING = (State.ACTIVE, State.STARVED, State.ALIGNING)


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What one tick did with one arm, for recorders and displays."""

    arm: str
    now_s: float
    state: ArmState
    tick: Tick


@dataclass(frozen=True, kw_only=True, eq=False)
class CellArm:
    """What a display shows of one arm. `trouble`: why the port cannot be opened, while it cannot."""

    state: State
    reading: ArmState | None
    latched: str
    paused: str
    warnings: tuple[str, ...]
    trouble: str


class Side:
    """One arm with its controller."""

    def __init__(self, arm: Arm, controller: Controller) -> None:
        self.arm, self.controller = arm, controller
        self.linked = False
        self.reading: ArmState | None = None
        self.trouble = ""
        self.retry_s = 0.0

    @property
    def state(self) -> State:
        return self.controller.supervisor.state


class Daemon:
    """A cell of one or more arms.

    Args:
        arms: by name; all of one control rate.
        clock: real, or virtual in tests.
        scenes: geometry of the arms that have one.
        coupled: a fault, e-stop or pause of one arm stops the others too.
        park_at_end: drives to the park posture before the torque goes off at the end.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        *,
        clock: Clock,
        scenes: Mapping[str, Scene] | None = None,
        coupled: bool = True,
        park_at_end: bool = False,
    ) -> None:
        rates = {arm.spec.control_hz for arm in arms.values()}
        if len(rates) != 1:
            raise ValueError(f"control rates {sorted(rates)}: the arms of a cell share one, and there is at least one")
        self.clock, self.dt_s = clock, 1.0 / rates.pop()
        self._coupled, self._end = coupled, Reaction.LOWER if park_at_end else Reaction.LATCH
        self.leases = Leases()
        self.sides: dict[str, Side] = {}
        for name, arm in arms.items():
            controller = Controller(arm.spec, scene=(scenes or {}).get(name))
            controller.leases = self.leases
            self.sides[name] = Side(arm, controller)
        self.lateness = Lateness()
        self._lock = threading.RLock()
        self._presses: deque[str] = deque()
        self._listeners: list[Callable[[Report], None]] = []
        self.ending = ""

    # what clients call

    def connect(self) -> None:
        """Opens every arm; no torque. Raises the first arm's error, the others closed again."""
        done = False
        try:
            for side in self.sides.values():
                self._link(side)
            done = True
        finally:
            if not done:
                for side in self.sides.values():
                    if side.linked:
                        side.arm.disconnect()
                        side.linked = False

    def enable(self) -> None:
        """Torque on, one arm after the other, where they stand. Raises EnableError, RefusedError."""
        with self._lock:
            for side in self.sides.values():
                if side.state != State.CONNECTED:
                    raise RefusedError(f"cannot enable in state '{side.state}'")
                side.arm.enable()
            for side in self.sides.values():
                side.arm.read()
                if side.arm.faults():  # a bus watchdog that tripped while another arm was switched on
                    side.arm.clear()
                side.controller.enabled(side.arm.read())

    def lease(self, client: str) -> Lease:
        """The right to drive, to be renewed by `heartbeat` at least every 300 ms. Raises RefusedError."""
        with self._lock:
            return self.leases.acquire(client, self.clock.now())

    def heartbeat(self, token: str) -> None:
        with self._lock:
            self.leases.heartbeat(token, self.clock.now())

    def release(self, token: str | None) -> None:
        """Gives the lease back; None: its connection was closed. What moves decelerates and pauses."""
        with self._lock:
            self.leases.release(token)

    def activate(self, token: str, session: str, *, arm: str | None = None, align: bool = False) -> None:
        """Lets the holder of the lease drive one arm, or all. Raises RefusedError."""
        with self._lock:
            for side in self._named(arm):
                side.controller.activate(token, session, self.clock.now(), align=align)

    def submit(self, chunk: Chunk, token: str, *, arm: str | None = None) -> Admitted:
        """Offers a chunk to an arm (the only one, if not named). A refusal is an answer; a wrong lease raises."""
        with self._lock:
            self.leases.check(token, self.clock.now())
            sides = self._named(arm)
            if len(sides) != 1:
                raise RefusedError(f"which arm? {sorted(self.sides)}")
            return sides[0].controller.offer(chunk, self.clock.now())

    def pause(self, reason: str) -> None:
        with self._lock:
            for side in self.sides.values():
                side.controller.pause(self.clock.now(), reason)

    def estop(self, source: str) -> None:
        """Controlled stop within two ticks, latched; a second press lets the torque go. Never waits, needs no lease."""
        self._presses.append(source)

    def reset(self) -> None:
        """An operator's act: clears device errors and leaves FAULT or ESTOP. Raises while a cause is present."""
        with self._lock:
            stopped = [side for side in self.sides.values() if side.state in _STOPPED]
            if not stopped:
                raise RefusedError("nothing to reset: no arm is in fault or e-stop")
            for side in stopped:
                self._reset(side)

    def fail(self, finding: Fault) -> None:
        """A finding from outside the loop: a camera, a recorder, the network."""
        with self._lock:
            for side in self.sides.values():
                side.controller.supervisor.report(finding, self.clock.now())

    def state(self) -> dict[str, CellArm]:
        """For displays; needs no lease."""
        with self._lock:
            return {name: _shown(side) for name, side in self.sides.items()}

    def subscribe(self, listener: Callable[[Report], None]) -> None:
        """`listener` is called in the loop, after each tick of each arm: it must be quick."""
        self._listeners.append(listener)

    # the loop

    def run(self) -> None:
        """Ticks until SIGINT, SIGTERM or `ending`, or until something raises; then shuts down.

        SIGUSR1 is an e-stop, SIGUSR2 a reset: `scripts.robot estop` works when the network does not. The loop's thread
        is first in line where the system permits it.
        """
        handlers = {
            signal.SIGINT: self._asked_to_end,
            signal.SIGTERM: self._asked_to_end,
            signal.SIGUSR1: lambda *_: self.estop("SIGUSR1"),
            signal.SIGUSR2: lambda *_: self._presses.append(RESET),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            with first_in_line():
                run_loop(self.tick, self.clock, self.dt_s, lambda: not self.ending, self.lateness)
        finally:
            try:
                self.shutdown(self.ending or "unhandled exception")
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def tick(self) -> None:
        """One tick of every arm."""
        with self._lock:
            now_s = self.clock.now()
            while self._presses:
                self._pressed(self._presses.popleft(), now_s)
            for name, side in self.sides.items():
                self._tick(name, side, now_s)
            if self._coupled and len(self.sides) > 1:
                self._couple(now_s)

    def shutdown(self, reason: str) -> None:
        """Stops, parks if so configured, torque off, ports closed, for every arm and whatever fails on the way.

        Raises GrasplineError afterwards, with all that went wrong.
        """
        wrong = []
        with self._lock:
            now_s = self.clock.now()
            finding = Fault(code=FaultCode.INTERNAL, detail=f"shutdown: {reason}", time_s=now_s, reaction=self._end)
            for side in self.sides.values():
                side.controller.supervisor.report(finding, now_s)
            self._listeners.clear()

            def keep_going():
                return any(map(_moving, self.sides.values())) and self.clock.now() < now_s + END_PATIENCE_S

            run_loop(self.tick, self.clock, self.dt_s, keep_going, self.lateness)
            for name, side in self.sides.items():
                try:
                    side.arm.disconnect()
                except (LinkLost, BusError) as error:
                    wrong.append(f"{name}: {error}")
                side.linked = False
                side.controller.released(self.clock.now())
        if wrong:
            raise GrasplineError("; ".join(wrong))

    # inside

    def _pressed(self, source: str, now_s: float) -> None:
        """An e-stop, or SIGUSR2's reset, which has nobody to tell that it was refused."""
        if source == RESET:
            with contextlib.suppress(GrasplineError):
                self.reset()
            return
        for side in self.sides.values():
            side.controller.supervisor.estop(now_s, source)

    def _tick(self, name: str, side: Side, now_s: float) -> None:
        if not side.linked:
            self._retry(side, now_s)
            return
        try:
            state = side.reading = side.arm.read()
            tick = side.controller.tick(state, now_s, side.arm.faults())
            if tick.command is not None:
                side.arm.write(tick.command)
            if tick.stop is not None:
                self._stop(side, tick)
        except LinkLost as error:
            self._lost(side, str(error))
            return
        for listener in self._listeners:
            listener(Report(arm=name, now_s=now_s, state=state, tick=tick))

    def _stop(self, side: Side, tick: Tick) -> None:
        assert tick.stop is not None
        try:
            side.arm.stop(tick.stop)
        except TorqueOffError as error:
            now_s = self.clock.now()
            side.controller.supervisor.report(fault(FaultCode.DEVICE, str(error), now_s), now_s)
        side.controller.released(self.clock.now())

    def _lost(self, side: Side, detail: str) -> None:
        now_s = self.clock.now()
        side.controller.lost(now_s, detail)
        side.linked, side.trouble, side.retry_s = False, detail, now_s + RETRY_S
        with contextlib.suppress(LinkLost, BusError):  # the port gets closed; nothing can be told to the servos
            side.arm.disconnect()

    def _retry(self, side: Side, now_s: float) -> None:
        """Opens a lost port again: no motion, no torque, and the latch stays."""
        if side.state not in _STOPPED or now_s < side.retry_s:
            return
        side.retry_s = now_s + RETRY_S
        try:
            self._link(side)
        except (LinkLost, BusError, PortBusyError) as error:
            side.trouble = str(error)

    def _link(self, side: Side) -> None:
        side.arm.connect()
        side.reading = side.arm.read()
        side.controller.connected(self.clock.now())
        side.linked, side.trouble = True, ""

    def _reset(self, side: Side) -> None:
        if not side.linked:
            raise RefusedError(f"{side.arm.spec.name} has lost its link: {side.trouble}")
        side.arm.clear()
        state = side.reading = side.arm.read()
        if side.controller.supervisor.energised and not state.torque_on_J.all():
            side.arm.enable()  # a servo that was reset: the operator asked for all of them
            state = side.reading = side.arm.read()
        side.controller.reset(state, side.arm.faults())

    def _couple(self, now_s: float) -> None:
        """What stopped one arm stops those that still play or hold."""
        stopped = next((item for item in self.sides.items() if item[1].state in _STOPPED), None)
        paused = next((item for item in self.sides.items() if item[1].state == State.PAUSED), None)
        for side in self.sides.values():
            if stopped and side.state not in _STOPPED and side.controller.supervisor.energised:
                latched = stopped[1].controller.supervisor.latched
                code = latched.first.code if latched else FaultCode.INTERNAL
                finding = Fault(code=code, detail=f"arm '{stopped[0]}': {latched}", time_s=now_s)
                side.controller.supervisor.report(finding, now_s)
            elif paused and side.state in _PLAYING:
                side.controller.pause(now_s, f"arm '{paused[0]}': {paused[1].controller.supervisor.pause_reason}")

    def _named(self, arm: str | None) -> list[Side]:
        if arm is None:
            return list(self.sides.values())
        if arm not in self.sides:
            raise unknown_name("arm", arm, list(self.sides))
        return [self.sides[arm]]

    def _asked_to_end(self, number: int, _: FrameType | None) -> None:
        self.ending = signal.Signals(number).name


def _moving(side: Side) -> bool:
    """Whether a shutdown has to wait for it: the stop, and the way to the park posture."""
    supervisor = side.controller.supervisor
    if not (side.linked and supervisor.energised):
        return False
    lowering = supervisor.latched is not None and supervisor.latched.reaction == Reaction.LOWER
    return lowering or not side.controller.at_rest


def _shown(side: Side) -> CellArm:
    supervisor = side.controller.supervisor
    return CellArm(
        state=supervisor.state,
        reading=side.reading,
        latched=str(supervisor.latched or ""),
        paused=supervisor.pause_reason,
        warnings=tuple(str(finding) for finding in list(supervisor.warnings)[-10:]),
        trouble=side.trouble,
    )
