"""The whole core on a virtual clock against a simulated arm: late, dead, mad and unplugged policies and servos.

The plant follows its goals within a tick, echoes them, and can be broken joint by joint. Numbers in the test names are
those of the fault-injection table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from real_robot.core.admission import Refusal
from real_robot.core.arms import so101_spec
from real_robot.core.clock import VirtualClock
from real_robot.core.controller import Controller, Tick
from real_robot.core.faults import FaultCode, Reaction, RefusedError, fault
from real_robot.core.supervisor import Order, State
from real_robot.core.types import ArmState, Chunk, StopKind

DT, TICK = 1.0 / 30.0, 0.01
SPEC = so101_spec(normal_speed=True)


@dataclass
class Cell:
    """Clock, plant and controller, and a policy that wants to follow `path`."""

    clock: VirtualClock = field(default_factory=lambda: VirtualClock(start_s=100.0))
    controller: Controller = field(default_factory=lambda: Controller(SPEC))
    q_J: np.ndarray = field(default_factory=lambda: np.zeros(6))
    wrong: dict = field(default_factory=dict)
    ticks: list[Tick] = field(default_factory=list)
    q_TJ: list[np.ndarray] = field(default_factory=list)
    torque: bool = True
    token: str = ""
    seq: int = 0
    beats: bool = True

    def __post_init__(self) -> None:
        self.controller.connected(self.now)
        self.controller.enabled(self.read())
        self.tick()

    @property
    def now(self) -> float:
        return self.clock.now()

    @property
    def state(self) -> State:
        return self.controller.supervisor.state

    def read(self) -> ArmState:
        fields = {
            "q_J": self.q_J,
            "dq_J": np.zeros(6),
            "effort_J": np.zeros(6),
            "current_J": np.full(6, 0.1),
            "temperature_J": np.full(6, 30.0),
            "voltage_J": np.full(6, 12.0),
            "goal_J": self.q_J,
            "torque_on_J": np.full(6, self.torque),
            "status_J": np.zeros(6, np.int64),
            "age_J": np.zeros(6),
        } | self.wrong
        return ArmState(time_s=self.now, **{name: np.array(value) for name, value in fields.items()})

    def tick(self, ticks: int = 1, *, device: tuple = (), policy: Callable[[], None] | None = None) -> Tick:
        for _ in range(ticks):
            if self.token and self.beats:
                self.controller.leases.heartbeat(self.token, self.now)
            if policy is not None:
                policy()
            tick = self.controller.tick(self.read(), self.now, device)
            if tick.command is not None:
                self.q_J = tick.command.q_J
            if tick.stop is not None:
                self.torque = False
                self.controller.released(self.now)
            self.ticks.append(tick)
            self.q_TJ.append(self.q_J)
            self.clock.advance(TICK)
        return self.ticks[-1]

    def activate(self, session: str = "a", *, align: bool = False) -> None:
        if not self.token:
            self.token = self.controller.leases.acquire("policy", self.now).token
        self.controller.activate(self.token, session, self.now, align=align)
        self.began_s = self.now

    def chunk(self, *, horizon: int = 16, age_s: float = 0.0, session: str = "a", **changed) -> Chunk:
        self.seq += 1
        t_obs_s = self.now - age_s
        t_H = t_obs_s - self.began_s + DT * np.arange(1, horizon + 1)
        q_HN = 0.5 * (1 - np.cos(1.5 * t_H))[:, None] * np.array([1.0, -0.8, 0.6, 0.9, -0.5])
        fields = {"session": session, "seq": self.seq, "t_obs_s": t_obs_s, "dt_s": DT, "q_HN": q_HN}
        return Chunk(**fields | changed)

    def offer(self, **changed) -> Refusal | None:
        return self.controller.offer(self.chunk(**changed), self.now).refusal

    def drive(self, seconds: float, every: int = 20, **changed) -> None:
        """A policy that answers every `every` ticks."""
        for tick in range(round(seconds / TICK)):
            if tick % every == 0:
                assert self.offer(**changed) is None
            self.tick()

    def speeds(self) -> np.ndarray:
        return np.diff(np.array(self.q_TJ), axis=0) / TICK

    def check_bounds(self) -> None:
        v_TJ = self.speeds()
        assert (np.abs(v_TJ) <= SPEC.velocity_J + 1e-6).all()
        assert (np.abs(np.diff(v_TJ, axis=0)) / TICK <= SPEC.acceleration_J + 1e-5).all()


@pytest.fixture
def cell() -> Cell:
    return Cell()


def moving(cell: Cell) -> Cell:
    cell.activate()
    cell.drive(0.8)
    assert np.abs(cell.speeds()[-1]).max() > 0.4 and cell.state == State.ACTIVE
    return cell


def test_a_policy_drives_the_arm(cell: Cell) -> None:
    cell.activate()
    cell.drive(2.0, age_s=0.0)
    t_s = cell.now - TICK - cell.began_s
    np.testing.assert_allclose(cell.q_J[0], 0.5 * (1 - np.cos(1.5 * t_s)), atol=5e-3)
    cell.check_bounds()
    assert cell.ticks[-1].requested_J is not None and cell.ticks[-1].order == Order.FOLLOW


def test_01_late_chunks_lose_their_first_setpoints_and_nothing_jumps(cell: Cell) -> None:
    cell.activate()
    cell.drive(0.3)
    for late in (1, 3, 6, 9, 12):
        for _ in range(3):
            assert cell.offer(age_s=late * DT if cell.now - cell.began_s > late * DT else 0.0) is None
            cell.tick(8)
    cell.check_bounds()
    assert cell.offer(age_s=17 * DT) in (Refusal.OVERDUE, Refusal.TIME)


def test_02_a_policy_that_hangs(cell: Cell) -> None:
    """At rest at the last setpoint, then starved, then paused; a chunk alone does not resume."""
    moving(cell)
    end_s = cell.controller.timeline.end_s
    while cell.state == State.ACTIVE:
        cell.tick()
    assert cell.state == State.STARVED and cell.now < end_s + 0.4
    cell.tick(8)
    assert (cell.speeds()[-1] == 0.0).all() and cell.ticks[-1].starved_s > 0.0
    cell.tick(210)
    assert cell.state == State.PAUSED and "no setpoints" in cell.controller.supervisor.pause_reason
    assert cell.offer() == Refusal.STATE
    cell.check_bounds()


def test_02_a_policy_that_comes_back_within_two_seconds(cell: Cell) -> None:
    moving(cell)
    cell.tick(120)
    assert cell.state == State.STARVED
    assert cell.offer() is None
    cell.tick()
    assert cell.state == State.ACTIVE
    cell.drive(0.5)
    cell.check_bounds()


def test_03_a_policy_that_is_killed(cell: Cell) -> None:
    moving(cell)
    cell.beats = False
    cell.controller.leases.release()  # its socket closed
    assert cell.tick().order == Order.HOLD
    assert cell.state == State.PAUSED and cell.controller.leases.holder is None
    cell.tick(40)
    assert (cell.speeds()[-1] == 0.0).all()
    cell.check_bounds()


def test_04_05_silence_then_healing(cell: Cell) -> None:
    moving(cell)
    cell.beats = False
    while cell.state == State.ACTIVE:
        cell.tick()
    silent = cell.now
    assert cell.state == State.PAUSED and "heartbeat" in cell.controller.supervisor.pause_reason
    old = cell.chunk()
    cell.tick(50)
    cell.token, cell.beats = "", True
    cell.activate()
    assert cell.controller.offer(old, cell.now).refusal == Refusal.TIME
    fresh_q = np.tile(cell.q_J[:5], (16, 1))
    assert cell.offer(q_HN=fresh_q) is None
    assert silent - cell.began_s < 0


def test_06_hopeless_latency_pauses_with_the_numbers(cell: Cell) -> None:
    cell.activate()
    refusals = [cell.offer(horizon=3, age_s=0.09, t_obs_s=cell.now) for _ in range(1)]
    for _ in range(12):
        cell.tick(12)
        refusals.append(cell.offer(horizon=3, age_s=0.1, q_HN=np.tile(cell.q_J[:5], (3, 1))))
    assert cell.state == State.PAUSED
    assert "p95 100 ms" in cell.controller.supervisor.pause_reason
    assert refusals[-1] == Refusal.STATE


def test_07_nan(cell: Cell) -> None:
    """Refused each time, the old tail plays on; the third within ten seconds latches."""
    moving(cell)
    bad = np.zeros((16, 5))
    bad[3, 2] = np.nan
    assert cell.offer(q_HN=bad) == Refusal.NON_FINITE
    assert cell.tick().order == Order.FOLLOW and cell.state == State.ACTIVE
    assert cell.offer(q_HN=np.full((16, 5), np.nan)) == Refusal.NON_FINITE
    assert cell.offer(q_HN=bad) == Refusal.NON_FINITE
    assert cell.state == State.FAULT
    latched = cell.controller.supervisor.latched
    assert latched is not None and latched.first.code == FaultCode.BAD_CHUNKS
    cell.tick(40)
    assert (cell.speeds()[-1] == 0.0).all()
    cell.check_bounds()


def test_11_a_step_between_chunks(cell: Cell) -> None:
    moving(cell)
    step = cell.chunk()
    cell.controller.offer(
        Chunk(session="a", seq=cell.seq, t_obs_s=cell.now, dt_s=DT, q_HN=np.asarray(step.q_HN) + 0.9), cell.now
    )
    cell.tick(60)
    assert cell.q_J[0] > 1.0
    cell.check_bounds()


def test_12_old_sessions_and_replays(cell: Cell) -> None:
    moving(cell)
    assert cell.offer(session="old") == Refusal.SESSION
    replay = cell.chunk()
    assert cell.controller.offer(replay, cell.now).refusal is None
    assert cell.controller.offer(replay, cell.now).refusal == Refusal.SEQUENCE


@pytest.mark.parametrize(
    ("case", "wrong", "ticks", "code"),
    [
        ("17", {"age_J": np.array([0, 0, 0.06, 0, 0, 0])}, 1, FaultCode.JOINT_SILENT),
        ("22", {"goal_J": np.full(6, 1.5)}, 3, FaultCode.GOAL_NOT_TAKEN),
        ("23", {"torque_on_J": np.array([1, 1, 0, 1, 1, 1], bool)}, 1, FaultCode.TORQUE_LOST),
        ("27", {"voltage_J": np.full(6, 9.5)}, 20, FaultCode.VOLTAGE),
        ("29", {"q_J": np.full(6, 0.9)}, 1, FaultCode.ENCODER_JUMP),
    ],
)
def test_servo_faults_latch_and_stop(cell: Cell, case: str, wrong: dict, ticks: int, code: FaultCode) -> None:
    moving(cell)
    cell.wrong = wrong
    cell.tick(ticks)
    assert cell.state == State.FAULT, case
    latched = cell.controller.supervisor.latched
    assert latched is not None and latched.first.code == code and latched.reaction == Reaction.LATCH
    cell.tick(40)
    assert (cell.speeds()[-1] == 0.0).all()
    cell.check_bounds()
    with pytest.raises(RefusedError, match="valid in"):
        cell.activate()


def test_28_a_blocked_joint_stops_pushing(cell: Cell) -> None:
    """The elbow sticks while it is driven on: latched, and its goal comes back to it within the bounds."""
    moving(cell)
    stuck = float(cell.q_J[2])
    for tick in range(130):
        if tick % 20 == 0 and cell.state == State.ACTIVE:
            assert cell.offer() is None
        measured_J, ampere_J = cell.q_J.copy(), np.full(6, 0.1)
        measured_J[2] = stuck
        ampere_J[2] = 0.9 if abs(cell.q_J[2] - stuck) > 0.07 else 0.1
        cell.wrong = {"q_J": measured_J, "goal_J": cell.q_J, "current_J": ampere_J}
        cell.tick()
    latched = cell.controller.supervisor.latched
    assert cell.state == State.FAULT and latched is not None and latched.first.joint == "elbow_flex"
    assert max(abs(q_J[2] - stuck) for q_J in cell.q_TJ[-130:]) > 0.17
    assert abs(cell.q_J[2] - stuck) < 1e-3 and (cell.speeds()[-1] == 0.0).all()
    cell.check_bounds()


def test_16_one_silent_tick_is_only_counted(cell: Cell) -> None:
    moving(cell)
    cell.wrong = {"age_J": np.array([0, 0, 0.01, 0, 0, 0])}
    cell.tick()
    cell.wrong = {}
    cell.drive(0.3)
    assert cell.state == State.ACTIVE
    cell.check_bounds()


def grip(cell: Cell, goal: float, ticks: int) -> None:
    """Drives the gripper to `goal`; something 0.6 rad wide is between its jaws."""
    for tick in range(ticks):
        if tick % 20 == 0:
            assert cell.offer(gripper_H=np.full(16, goal)) is None
        blocked_J = cell.q_J.copy()
        blocked_J[5] = max(blocked_J[5], 0.6) if cell.now > cell.began_s + 1.0 else blocked_J[5]
        ampere = 0.9 if blocked_J[5] > cell.q_J[5] + 0.07 else 0.1
        cell.wrong = {"q_J": blocked_J, "current_J": np.array([0.1] * 5 + [ampere])}
        cell.tick()


def test_24_a_gripper_that_holds_something_relaxes_and_goes_on(cell: Cell) -> None:
    """Stalled at 0.6 rad on the way to closed: the goal goes just beyond it; opening again ends that."""
    cell.activate()
    grip(cell, 0.9, 160)
    grip(cell, 0.0, 150)
    assert cell.state == State.ACTIVE
    assert cell.q_J[5] == pytest.approx(0.55, abs=1e-3)
    assert any(f.code == FaultCode.STALL and f.reaction == Reaction.CLAMP for t in cell.ticks for f in t.findings)
    grip(cell, 1.2, 100)
    assert cell.q_J[5] == pytest.approx(1.2, abs=1e-3)


def test_26_heat(cell: Cell) -> None:
    """Warned at 55, slower from 60, parked and let go at 65; the reset waits for it to cool down."""
    moving(cell)
    cell.wrong = {"temperature_J": np.full(6, 56.0)}
    cell.tick(3)
    assert [w.code for w in cell.controller.supervisor.warnings].count(FaultCode.WARM) == 6
    assert cell.state == State.ACTIVE
    cell.wrong = {"temperature_J": np.array([30, 30, 66.0, 30, 30, 30])}
    assert cell.tick().order == Order.LOWER and cell.state == State.FAULT
    for _ in range(3000):
        if not cell.torque:
            break
        cell.tick()
    np.testing.assert_allclose(cell.q_J, SPEC.park, atol=1e-3)
    cell.check_bounds()
    assert np.abs(cell.speeds()[200:]).max() <= 0.3 + 1e-6
    assert cell.tick().order == Order.LIMP
    cell.controller.reset(cell.read())
    assert cell.state == State.CONNECTED


def test_33_34_the_cable(cell: Cell) -> None:
    moving(cell)
    cell.controller.lost(cell.now, "hang-up")
    assert cell.state == State.FAULT and cell.tick().order == Order.LIMP
    cell.controller.connected(cell.now)
    assert cell.state == State.FAULT
    cell.controller.reset(cell.read())
    assert cell.state == State.CONNECTED


def test_36_nothing_moves_when_torque_comes_on(cell: Cell) -> None:
    assert (np.diff(np.array(cell.q_TJ), axis=0) == 0.0).all() and cell.state == State.HOLD
    cell.tick(50)
    assert (np.array(cell.q_TJ) == 0.0).all()


def test_long_holding_is_warned_about_once(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("real_robot.core.controller.HELD_LONG_S", 1.0)
    cell.tick(98)
    assert not cell.controller.supervisor.warnings
    cell.tick(20)
    assert [w.code for w in cell.controller.supervisor.warnings] == [FaultCode.HELD_LONG]
    assert cell.state == State.HOLD


def test_37_a_first_setpoint_far_away(cell: Cell) -> None:
    """Refused; with confirmation a move at 0.3 rad/s at most, then fresh chunks are taken."""
    far = np.full((16, 5), 0.5)
    cell.activate()
    assert cell.offer(q_HN=far) == Refusal.ALIGNMENT and cell.state in (State.ACTIVE, State.STARVED)
    cell.tick(20)
    assert (cell.q_J == 0.0).all()
    cell.activate(align=True)
    assert cell.offer(q_HN=far) == Refusal.ALIGNMENT and cell.state == State.ALIGNING
    while cell.state == State.ALIGNING:
        cell.tick()
        assert len(cell.ticks) < 1000
    np.testing.assert_allclose(cell.q_J[:5], 0.5, atol=0.01)
    assert np.abs(cell.speeds()).max() <= 0.3 + 1e-6
    assert cell.state in (State.ACTIVE, State.STARVED) and cell.offer(q_HN=far) is None
    cell.tick(5)
    assert cell.state == State.ACTIVE


@pytest.mark.parametrize("when", ["active", "aligning", "fault", "starved"])
def test_38_estop(cell: Cell, when: str) -> None:
    """The stop begins at the next tick, latches, outlives the client, and takes a reset and an activation to leave."""
    if when == "aligning":
        cell.activate(align=True)
        cell.offer(q_HN=np.full((16, 5), 0.5))
        cell.tick(60)
    else:
        moving(cell)
    if when == "fault":
        cell.tick(device=(fault(FaultCode.DEVICE, "reflex", cell.now),))
    if when == "starved":
        cell.tick(80)
    cell.controller.supervisor.estop(cell.now, "dashboard")
    before = np.abs(cell.speeds()[-1]).max()
    cell.tick(2)
    assert cell.ticks[-1].order == Order.HOLD and np.abs(cell.speeds()[-1]).max() <= before
    cell.controller.leases.release()
    cell.token = ""
    cell.tick(40)
    assert (cell.speeds()[-1] == 0.0).all() and cell.state == State.ESTOP
    cell.check_bounds()
    cell.controller.reset(cell.read())
    assert cell.state == State.HOLD
    cell.tick(10)
    assert (cell.speeds()[-1] == 0.0).all()


def test_38_a_second_press_lets_the_torque_go(cell: Cell) -> None:
    moving(cell)
    cell.controller.supervisor.estop(cell.now, "key")
    cell.tick()
    cell.controller.supervisor.estop(cell.now, "key")
    tick = cell.tick()
    assert tick.order == Order.RELEASE and tick.stop == StopKind.RELEASE and tick.command is None
    assert cell.tick().order == Order.LIMP and cell.state == State.ESTOP


def test_42_43_late_ticks(cell: Cell) -> None:
    moving(cell)
    assert cell.offer(horizon=40) is None
    cell.clock.advance(0.15)
    before = cell.q_J
    cell.tick()
    assert cell.state == State.ACTIVE
    assert cell.controller.supervisor.warnings[-1].code == FaultCode.OVERRUN
    assert np.abs(cell.q_J - before).max() <= 3.0 * TICK  # no burst
    cell.tick(20)
    cell.check_bounds()
    cell.clock.advance(0.25)
    cell.tick()
    assert cell.state == State.PAUSED and "late" in cell.controller.supervisor.pause_reason


def test_48_takeover_at_speed(cell: Cell) -> None:
    """Another session takes over while the arm moves: no tick breaks a bound; one that is far away is refused."""
    moving(cell)
    cell.activate("teleop")
    cell.began_s -= 0.8 + TICK
    assert cell.offer(session="a") == Refusal.SESSION
    assert cell.offer(session="teleop", q_HN=np.full((16, 5), -0.9)) == Refusal.ALIGNMENT
    assert cell.offer(session="teleop", q_HN=np.tile(cell.q_J[:5] + 0.02, (16, 1))) is None
    cell.tick(40)
    cell.check_bounds()
    assert cell.state == State.ACTIVE


def test_59_a_device_fault_is_a_fault_like_any_other(cell: Cell) -> None:
    moving(cell)
    reflex = fault(FaultCode.DEVICE, "cartesian reflex", cell.now)
    cell.tick(device=(reflex,))
    assert cell.state == State.FAULT
    with pytest.raises(RefusedError, match="reflex"):
        cell.controller.reset(cell.read(), (reflex,))
    cell.tick(40)
    cell.controller.reset(cell.read())
    assert cell.state == State.HOLD


def test_park_ends_without_torque(cell: Cell) -> None:
    cell.controller.park(cell.now)
    for _ in range(2000):
        if not cell.torque:
            break
        cell.tick()
    assert cell.state == State.CONNECTED and cell.tick().order == Order.LIMP
    np.testing.assert_allclose(cell.q_J, SPEC.park, atol=0.01)
    cell.check_bounds()


def test_who_may_drive(cell: Cell) -> None:
    with pytest.raises(RefusedError, match="token"):
        cell.controller.activate("guess", "a", cell.now)
    moving(cell)
    with pytest.raises(RefusedError, match="policy"):
        cell.controller.leases.acquire("other", cell.now)
    cell.controller.pause(cell.now, "operator")
    cell.tick(2)
    with pytest.raises(RefusedError, match="moves by itself"):
        cell.activate()
    with pytest.raises(RefusedError, match="still moves"):
        cell.controller.park(cell.now)
    cell.tick(40)
    cell.activate()
    assert cell.state == State.ACTIVE
