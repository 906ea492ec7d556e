"""The state machine against its table: every event in every state, latches, escalation, and the only way out."""

from collections.abc import Callable

import pytest

from real_robot.core.faults import FaultCode, Reaction, RefusedError, fault
from real_robot.core.supervisor import Order, State, Supervisor, Transition

S = State
GRAVE = fault(FaultCode.STALL, "test", 0.0, "elbow_flex")


def in_state(state: State) -> Supervisor:
    """A supervisor brought to `state` by events alone."""
    supervisor = Supervisor()
    steps: dict[State, list[Callable[[], None]]] = {
        S.DISCONNECTED: [],
        S.CONNECTED: [lambda: supervisor.connected(0)],
        S.HOLD: [lambda: supervisor.enabled(0)],
        S.ALIGNING: [lambda: supervisor.align(0)],
        S.ACTIVE: [lambda: supervisor.activate("p", 0)],
        S.STARVED: [lambda: supervisor.starving(0)],
        S.PAUSED: [lambda: supervisor.pause(0, "test")],
        S.PARKING: [lambda: supervisor.park(0)],
        S.FAULT: [lambda: supervisor.report(GRAVE, 0)],
        S.ESTOP: [lambda: supervisor.estop(0, "key")],
    }
    upto = {
        S.DISCONNECTED: [],
        S.CONNECTED: [S.CONNECTED],
        S.HOLD: [S.CONNECTED, S.HOLD],
        S.ALIGNING: [S.CONNECTED, S.HOLD, S.ALIGNING],
        S.ACTIVE: [S.CONNECTED, S.HOLD, S.ACTIVE],
        S.STARVED: [S.CONNECTED, S.HOLD, S.ACTIVE, S.STARVED],
        S.PAUSED: [S.CONNECTED, S.HOLD, S.ACTIVE, S.PAUSED],
        S.PARKING: [S.CONNECTED, S.HOLD, S.PARKING],
        S.FAULT: [S.CONNECTED, S.HOLD, S.FAULT],
        S.ESTOP: [S.CONNECTED, S.HOLD, S.ESTOP],
    }[state]
    for name in upto:
        for step in steps[name]:
            step()
    assert supervisor.state == state
    return supervisor


EVENTS: dict[str, Callable[[Supervisor], None]] = {
    "connected": lambda s: s.connected(1),
    "enabled": lambda s: s.enabled(1),
    "align": lambda s: s.align(1),
    "activate": lambda s: s.activate("p", 1),
    "starving": lambda s: s.starving(1),
    "fed": lambda s: s.fed(1),
    "pause": lambda s: s.pause(1, "test"),
    "park": lambda s: s.park(1),
    "released": lambda s: s.released(1),
    "fault": lambda s: s.report(GRAVE, 1),
    "estop": lambda s: s.estop(1, "key"),
    "reset": lambda s: s.reset(1),
    "disconnected": lambda s: s.disconnected(1),
}
REFUSED = "refused"
# what each event makes of each state; what is not listed stays as it is
TABLE: dict[str, dict[State, State | str]] = {
    "connected": dict.fromkeys(S, REFUSED) | {S.DISCONNECTED: S.CONNECTED},
    "enabled": dict.fromkeys(S, REFUSED) | {S.CONNECTED: S.HOLD},
    "align": dict.fromkeys(S, REFUSED) | dict.fromkeys([S.HOLD, S.PAUSED, S.ACTIVE, S.STARVED], S.ALIGNING),
    "activate": dict.fromkeys(S, REFUSED) | dict.fromkeys([S.HOLD, S.PAUSED, S.ALIGNING], S.ACTIVE),
    "starving": {S.ACTIVE: S.STARVED},
    "fed": {S.STARVED: S.ACTIVE},
    "pause": dict.fromkeys([S.ALIGNING, S.ACTIVE, S.STARVED, S.PARKING], S.PAUSED),
    "park": dict.fromkeys(S, REFUSED) | dict.fromkeys([S.HOLD, S.PAUSED], S.PARKING),
    "released": dict.fromkeys([S.HOLD, S.ALIGNING, S.ACTIVE, S.STARVED, S.PAUSED, S.PARKING], S.CONNECTED),
    "fault": dict.fromkeys(S, S.FAULT) | {S.ESTOP: S.ESTOP},
    "estop": dict.fromkeys(S, S.ESTOP),
    "reset": dict.fromkeys(S, REFUSED) | {S.FAULT: S.HOLD, S.ESTOP: S.HOLD},
    "disconnected": dict.fromkeys(S, S.DISCONNECTED) | {S.FAULT: S.FAULT, S.ESTOP: S.ESTOP},
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("event", list(EVENTS))
def test_table(state: State, event: str) -> None:
    supervisor, expected = in_state(state), TABLE[event].get(state, state)
    if expected == REFUSED:
        with pytest.raises(RefusedError, match=str(state)):
            EVENTS[event](supervisor)
        assert supervisor.state == state
    else:
        EVENTS[event](supervisor)
        assert supervisor.state == expected


def test_orders() -> None:
    orders = {state: in_state(state).order for state in State}
    assert orders == {
        S.DISCONNECTED: Order.LIMP,
        S.CONNECTED: Order.LIMP,
        S.HOLD: Order.HOLD,
        S.ALIGNING: Order.MOVE,
        S.ACTIVE: Order.FOLLOW,
        S.STARVED: Order.FOLLOW,
        S.PAUSED: Order.HOLD,
        S.PARKING: Order.MOVE,
        S.FAULT: Order.HOLD,
        S.ESTOP: Order.HOLD,
    }


def test_the_first_cause_is_kept_and_reactions_only_grow() -> None:
    supervisor = in_state(S.ACTIVE)
    supervisor.report(GRAVE, 1.0)
    supervisor.report(fault(FaultCode.OVER_TEMPERATURE, "hot", 2.0, "elbow_flex"), 2.0)
    supervisor.report(fault(FaultCode.VOLTAGE, "low", 3.0), 3.0)
    supervisor.report(GRAVE, 4.0)
    latched = supervisor.latched
    assert latched is not None and latched.first == GRAVE and latched.reaction == Reaction.LOWER
    assert [f.code for f in latched.later] == [FaultCode.OVER_TEMPERATURE, FaultCode.VOLTAGE]
    assert supervisor.order == Order.LOWER
    supervisor.released(5.0)
    assert supervisor.order == Order.LIMP and supervisor.state == S.FAULT
    supervisor.reset(6.0)
    assert supervisor.state == S.CONNECTED and supervisor.latched is None


def test_second_press_or_two_seconds_let_the_torque_go() -> None:
    for press in (lambda s: s.estop(1.0, "key"), lambda s: s.estop_held(2.0, "key")):
        supervisor = in_state(S.ACTIVE)
        supervisor.estop(0.0, "key")
        supervisor.estop_held(1.9, "key")
        assert supervisor.order == Order.HOLD
        press(supervisor)
        assert supervisor.order == Order.RELEASE and supervisor.state == S.ESTOP


def test_an_estop_in_a_fault_keeps_the_first_cause() -> None:
    supervisor = in_state(S.FAULT)
    supervisor.estop(1.0, "dashboard")
    latched = supervisor.latched
    assert supervisor.state == S.ESTOP and latched is not None and latched.first == GRAVE
    assert latched.later[0].code == FaultCode.ESTOP


def test_a_lost_arm_is_found_limp_and_still_latched() -> None:
    supervisor = in_state(S.FAULT)
    supervisor.disconnected(1.0)
    supervisor.connected(2.0)
    assert supervisor.state == S.FAULT and supervisor.order == Order.LIMP
    supervisor.reset(3.0)
    assert supervisor.state == S.CONNECTED


def test_reset_waits_for_the_cause() -> None:
    supervisor = in_state(S.FAULT)
    with pytest.raises(RefusedError, match="stall at elbow_flex"):
        supervisor.reset(1.0, [GRAVE])
    supervisor.reset(2.0, [fault(FaultCode.WARM, "56 C", 2.0)])
    assert supervisor.state == S.HOLD


def test_starving_is_forgiven_for_two_seconds() -> None:
    supervisor = in_state(S.ACTIVE)
    for now_s in (0.0, 1.0, 2.0):
        supervisor.starving(now_s)
    assert supervisor.state == S.STARVED
    supervisor.fed(2.0)
    assert supervisor.state == S.ACTIVE and "2000 ms" in supervisor.log[-1].reason
    for now_s in (3.0, 5.01):
        supervisor.starving(now_s)
    assert supervisor.state == S.PAUSED and "no setpoints" in supervisor.pause_reason


def test_listeners_hear_each_transition() -> None:
    supervisor, heard = Supervisor(), []
    supervisor.subscribe(heard.append)
    supervisor.connected(1.0)
    supervisor.enabled(2.0)
    assert (
        heard
        == [
            Transition(time_s=1.0, before=S.DISCONNECTED, after=S.CONNECTED, reason="connected"),
            Transition(time_s=2.0, before=S.CONNECTED, after=S.HOLD, reason="torque on"),
        ]
        and list(supervisor.log) == heard
    )


def test_a_stop_that_can_be_resumed_pauses_and_a_warning_does_nothing() -> None:
    supervisor = in_state(S.ACTIVE)
    supervisor.report(fault(FaultCode.WARM, "56 C", 0.0), 0.0)
    assert supervisor.state == S.ACTIVE
    supervisor.report(fault(FaultCode.OBSERVATION_STALE, "camera", 0.0), 0.0)
    assert supervisor.state == S.PAUSED and supervisor.latched is None and "camera" in supervisor.pause_reason
