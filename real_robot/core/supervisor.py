"""The state machine of one arm: what it may do now, what stopped it, and who may let it go on.

    DISCONNECTED -> CONNECTED (limp) -> HOLD -> ALIGNING -> ACTIVE <-> STARVED -> PAUSED; PARKING; FAULT, ESTOP latched

Only `reset`, an explicit act of an operator, leaves FAULT and ESTOP, only once nothing is wrong any more, and only to
HOLD (or to CONNECTED when the torque is off). The first cause is kept; what comes later can make the reaction graver,
never milder. What the arm has to do is one word, `order`: the daemon obeys it and decides nothing itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from real_robot.core.faults import REACTIONS, Fault, FaultCode, Reaction, RefusedError

STARVED_PATIENCE_S = 2.0
ESTOP_HOLD_S = 2.0  # an e-stop held for so long lets the torque go


class State(StrEnum):
    """Where an arm can be."""

    DISCONNECTED = "disconnected"
    CONNECTED = "connected"
    HOLD = "hold"
    ALIGNING = "aligning"
    ACTIVE = "active"
    STARVED = "starved"
    PAUSED = "paused"
    PARKING = "parking"
    FAULT = "fault"
    ESTOP = "estop"


class Order(StrEnum):
    """What the arm has to do this tick.

    LIMP     nothing: no torque
    FOLLOW   play the timeline
    MOVE     play a planned move (alignment, parking)
    HOLD     play the stop, then stand still
    LOWER    play the stop, park, then torque off
    RELEASE  torque off now
    """

    LIMP = "limp"
    FOLLOW = "follow"
    MOVE = "move"
    HOLD = "hold"
    LOWER = "lower"
    RELEASE = "release"


@dataclass(frozen=True, kw_only=True)
class Latched:
    """What stopped the arm: the first cause, the gravest reaction so far, and what followed."""

    first: Fault
    reaction: Reaction
    later: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        more = f" (and {len(self.later)} more)" if self.later else ""
        return f"{self.first}, reaction {self.reaction.name.lower()}{more}"


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One line of the log."""

    time_s: float
    before: State
    after: State
    reason: str


_LATCHED = (State.FAULT, State.ESTOP)
_LIMP = (State.DISCONNECTED, State.CONNECTED)
_MOVING = (State.ALIGNING, State.ACTIVE, State.STARVED, State.PARKING)
_RESUMABLE = (State.HOLD, State.PAUSED)
_ORDERS = {
    State.ALIGNING: Order.MOVE,
    State.PARKING: Order.MOVE,
    State.ACTIVE: Order.FOLLOW,
    State.STARVED: Order.FOLLOW,
}


class Supervisor:
    """State, order, latch and log of one arm. Methods are events; each names the states in which it is granted."""

    def __init__(self) -> None:
        self.state = State.DISCONNECTED
        self.energised = False
        self.latched: Latched | None = None
        self.pause_reason = ""
        self.log: deque[Transition] = deque(maxlen=1000)
        self.warnings: deque[Fault] = deque(maxlen=1000)
        self._listeners: list[Callable[[Transition], None]] = []
        self._starved_from_s = self._estop_from_s = 0.0

    @property
    def order(self) -> Order:
        """What the arm has to do now."""
        if not self.energised:
            return Order.LIMP
        if self.latched is not None and self.latched.reaction >= Reaction.LOWER:
            return Order.LOWER if self.latched.reaction == Reaction.LOWER else Order.RELEASE
        return _ORDERS.get(self.state, Order.HOLD)

    def subscribe(self, listener: Callable[[Transition], None]) -> None:
        """`listener` is called after each transition; it must not raise."""
        self._listeners.append(listener)

    def connected(self, now_s: float) -> None:
        self._need("connect", State.DISCONNECTED, *_LATCHED)
        if self.energised:
            raise RefusedError(f"cannot connect: the arm is connected and under torque in state '{self.state}'")
        if self.state not in _LATCHED:
            self._go(State.CONNECTED, now_s, "connected")

    def disconnected(self, now_s: float, reason: str = "disconnected") -> None:
        """The arm was let go of; a latch stays until it is reset."""
        self.energised = False
        if self.state not in _LATCHED:
            self._go(State.DISCONNECTED, now_s, reason)

    def enabled(self, now_s: float) -> None:
        """Torque is on and confirmed."""
        self._need("enable", State.CONNECTED)
        self.energised = True
        self._go(State.HOLD, now_s, "torque on")

    def released(self, now_s: float) -> None:
        """Torque is off and confirmed: after parking, or as a reaction."""
        self.energised = False
        if self.state not in (*_LATCHED, State.DISCONNECTED):
            self._go(State.CONNECTED, now_s, "torque off")

    def align(self, now_s: float) -> None:
        """An alignment move begins; `activate` follows on arrival."""
        self._need("align", *_RESUMABLE, State.ACTIVE, State.STARVED)
        self._go(State.ALIGNING, now_s, "aligning")

    def activate(self, source: str, now_s: float) -> None:
        self._need("activate", *_RESUMABLE, State.ALIGNING)
        self.pause_reason = ""
        self._go(State.ACTIVE, now_s, f"source '{source}'")

    def starving(self, now_s: float) -> None:
        """The tail is played out. After two seconds the arm pauses."""
        if self.state == State.ACTIVE:
            self._starved_from_s = now_s
            self._go(State.STARVED, now_s, "no setpoints left")
        elif self.state == State.STARVED and now_s - self._starved_from_s > STARVED_PATIENCE_S:
            self.pause(now_s, f"no setpoints for {STARVED_PATIENCE_S:.0f} s")

    def fed(self, now_s: float) -> None:
        """New setpoints came in time."""
        if self.state == State.STARVED:
            self._go(State.ACTIVE, now_s, f"starved for {1e3 * (now_s - self._starved_from_s):.0f} ms")

    def pause(self, now_s: float, reason: str) -> None:
        """Decelerate and hold; goes on only with `activate`."""
        if self.state in _MOVING:
            self.pause_reason = reason
            self._go(State.PAUSED, now_s, reason)

    def park(self, now_s: float) -> None:
        self._need("park", *_RESUMABLE)
        self._go(State.PARKING, now_s, "parking")

    def report(self, finding: Fault, now_s: float) -> None:
        """Takes what a rule, a driver or the daemon found, and reacts."""
        if finding.reaction <= Reaction.CLAMP:
            self.warnings.append(finding)
        elif finding.reaction == Reaction.HOLD:
            self.warnings.append(finding)
            self.pause(now_s, str(finding))
        else:
            self._latch(finding, State.FAULT, now_s)

    def estop(self, now_s: float, source: str) -> None:
        """First press: controlled stop, latched. A second press lets the torque go: an arm without brakes falls."""
        again = self.state == State.ESTOP
        reaction = Reaction.RELEASE if again else REACTIONS[FaultCode.ESTOP]
        self._estop_from_s = self._estop_from_s if again else now_s
        finding = Fault(code=FaultCode.ESTOP, detail=f"by {source}", time_s=now_s, reaction=reaction)
        self._latch(finding, State.ESTOP, now_s)

    def estop_held(self, now_s: float, source: str) -> None:
        """The button is still down: after two seconds as a second press."""
        if self.state == State.ESTOP and now_s - self._estop_from_s >= ESTOP_HOLD_S:
            self.estop(now_s, source)

    def reset(self, now_s: float, present: Sequence[Fault] = ()) -> None:
        """Leaves FAULT or ESTOP, unless something in `present` would latch again. The caller sets goal := present."""
        self._need("reset", *_LATCHED)
        still = [finding for finding in present if finding.reaction >= Reaction.LATCH]
        if still:
            raise RefusedError(f"reset refused, still present: {'; '.join(map(str, still))}")
        self.latched = None
        self._go(State.HOLD if self.energised else State.CONNECTED, now_s, "reset")

    def _latch(self, finding: Fault, state: State, now_s: float) -> None:
        if self.latched is None:
            self.latched = Latched(first=finding, reaction=finding.reaction)
        else:
            known = (self.latched.first, *self.latched.later)
            new = all((f.code, f.joint) != (finding.code, finding.joint) for f in known)
            later = (*self.latched.later, finding) if new else self.latched.later
            self.latched = replace(self.latched, reaction=max(self.latched.reaction, finding.reaction), later=later)
        if self.state != State.ESTOP and self.state != state:
            self._go(state, now_s, str(finding))

    def _need(self, what: str, *states: State) -> None:
        if self.state not in states:
            why = f": {self.latched}" if self.latched else ""
            raise RefusedError(f"cannot {what} in state '{self.state}'{why}; valid in {[str(s) for s in states]}")

    def _go(self, after: State, now_s: float, reason: str) -> None:
        transition = Transition(time_s=now_s, before=self.state, after=after, reason=reason)
        self.state = after
        self.log.append(transition)
        for listener in self._listeners:
            listener(transition)
