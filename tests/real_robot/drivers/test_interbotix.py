"""WidowX, ViperX and ALOHA on their twins: start-up, motion, and a second motor that stops following."""

import numpy as np
import pytest

from real_robot.calibration import ArmCalibration
from real_robot.core.clock import VirtualClock
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.core.types import Chunk
from real_robot.daemon import Daemon
from real_robot.drivers import interbotix
from real_robot.drivers.dxl_arm import DxlArm
from real_robot.drivers.errors import BusError, CalibrationMismatchError, IdentityError, TorqueOffError
from real_robot.teleop.leader import Leader, same_names
from real_robot.twin import arms, registers_dxl
from real_robot.twin.link import VirtualLink

DT_S = 1.0 / 30.0
SWING = np.array([0.6, -0.5, 0.5, 0.7, -0.4, 0.8])


class Cell:
    """One arm behind the daemon on a virtual clock; `driven` sends it a slow wave."""

    def __init__(self, name: str = "viperx", *, apart_counts: int = 0) -> None:
        self.clock = VirtualClock(start_s=100.0)
        self.twin = getattr(arms, name)(clock=self.clock.now, apart_counts=apart_counts)
        self.link = VirtualLink(self.twin, sleep_until=self.clock.sleep_until)
        self.arm: DxlArm = getattr(interbotix, name)(open_port=self.link.open, clock=self.clock, normal_speed=True)
        self.daemon = Daemon({"arm": self.arm}, clock=self.clock)
        self.side = self.daemon.sides["arm"]
        self.token, self.seq = "", 0

    def start(self) -> "Cell":
        self.daemon.connect()
        self.daemon.enable()
        self.token = self.daemon.lease("policy").token
        self.daemon.activate(self.token, "a")
        self.began_s, self.from_N = self.clock.now(), self.side.controller.commanded_J[:6]
        return self

    def run(self, seconds: float) -> "Cell":
        for tick in range(round(seconds / self.daemon.dt_s)):
            if self.token and self.state in (State.ACTIVE, State.STARVED):
                self.daemon.heartbeat(self.token)
                if tick % 10 == 0:
                    self.daemon.submit(self.chunk(), self.token)
            due_s = self.clock.now() + self.daemon.dt_s
            self.daemon.tick()
            self.clock.sleep_until(due_s)
        return self

    def chunk(self) -> Chunk:
        self.seq += 1
        now_s = self.clock.now()
        t_H = now_s - self.began_s + DT_S * np.arange(1, 17)
        q_HN = self.from_N + 0.5 * (1 - np.cos(1.5 * t_H))[:, None] * (SWING - self.from_N)
        return Chunk(session="a", seq=self.seq, t_obs_s=now_s, dt_s=DT_S, q_HN=q_HN)

    @property
    def state(self) -> State:
        return self.side.state

    @property
    def first(self):
        """The first cause of the latch."""
        latched = self.side.controller.supervisor.latched
        return latched.first if latched else None


@pytest.fixture(params=["viperx", "widowx"])
def cell(request) -> Cell:
    return Cell(request.param)


def test_starts_moves_and_ends_with_all_nine(cell: Cell) -> None:
    cell.start().run(2.0)
    assert cell.state == State.ACTIVE and all(cell.twin.torque_flags().values())
    np.testing.assert_allclose(cell.twin.plant.positions_rad[:6], SWING, atol=0.12)
    velocity = cell.twin.servo(3).get(registers_dxl.VELOCITY, 4)
    assert velocity == cell.twin.servo(2).get(registers_dxl.VELOCITY, 4) <= 131, "the servos' own limit"
    cell.daemon.shutdown("test")
    assert not any(cell.twin.torque_flags().values())
    cell.twin.monitor.check()
    assert cell.twin.monitor.num_eeprom_writes == 0


def test_a_tick_fits_into_half_of_its_time(cell: Cell) -> None:
    """9 servos at 1 Mbit/s: what is read, and what is written."""
    cell.start()
    before_s = cell.clock.now()
    cell.daemon.tick()
    assert 5e-3 < cell.clock.now() - before_s < 10e-3


def test_counts_of_the_shop_are_the_specifications_angles(cell: Cell) -> None:
    """Two columns of different origin: EEPROM files and URDF."""
    for limits in SPECS[cell.arm.spec.name].joints[:6]:
        joint = cell.arm.calibration.joints[limits.name]
        assert joint.to_rad(joint.low_count) == pytest.approx(limits.low, abs=2.5e-3)
        assert joint.to_rad(joint.high_count) == pytest.approx(limits.high, abs=2.5e-3)


@pytest.mark.parametrize(
    ("address", "value", "told"),
    [
        (registers_dxl.SHADOW_ID, 255, "shadow_id is 255, expected 2"),
        (registers_dxl.DRIVE_MODE, 1, "drive_mode is 1, expected 0"),
        (registers_dxl.MODE, 4, "mode is 4, expected 3"),
        (registers_dxl.MAX_ANGLE, 50, "max_angle is"),
    ],
)
def test_a_second_motor_that_would_not_follow_gets_no_torque(address: int, value: int, told: str) -> None:
    cell = Cell()
    cell.twin.servo(3).memory[address] = value
    with pytest.raises(CalibrationMismatchError, match=rf"shoulder.*second motor 3: {told}"):
        cell.daemon.connect()
    assert not any(cell.twin.torque_flags().values())


def test_a_missing_second_motor_is_a_line_of_the_table() -> None:
    cell = Cell()
    cell.twin.servo(5).silent()
    with pytest.raises(IdentityError, match=r"ID +5 .*no answer"):
        cell.daemon.connect()


def test_a_slipped_horn_is_refused_and_calibration_takes_it_out() -> None:
    cell = Cell(apart_counts=60)
    with pytest.raises(CalibrationMismatchError, match="second motor 3 stands 60 counts"):
        cell.daemon.connect()
    cell.arm.open()
    cell.arm.store(cell.arm.calibration)
    cell.arm.close()
    assert cell.twin.servo(3).offset == -60 and cell.twin.servo(2).offset == 0
    cell.start().run(1.0)
    assert cell.state == State.ACTIVE


def test_a_horn_that_an_offset_cannot_take_out() -> None:
    cell = Cell(apart_counts=1100)
    cell.arm.open()
    with pytest.raises(BusError, match=r"second motor 3 of shoulder stands 1100 counts.*horn anew"):
        cell.arm.store(cell.arm.calibration)


def test_storing_gives_both_motors_the_limits() -> None:
    cell = Cell()
    joints = {
        name: type(joint)(**{**vars(joint), "low_count": joint.low_count + 100})
        for name, joint in cell.arm.calibration.joints.items()
    }
    cell.arm.open()
    cell.arm.store(ArmCalibration(arm="viperx", joints=joints))
    assert cell.twin.servo(3).get(registers_dxl.MIN_ANGLE, 4) == 941
    cell.arm.check_calibration()


def lose_id(cell: Cell) -> None:
    cell.twin.servo(3).memory[registers_dxl.SHADOW_ID] = 255


FAULTS = {
    "silent": (lambda cell: cell.twin.servo(3).silent(), FaultCode.JOINT_SILENT),
    "rebooted": (lambda cell: cell.twin.servo(3).reboot(), FaultCode.JOINT_SILENT),
    "torque gone": (lambda cell: cell.twin.servo(3).write(registers_dxl.TORQUE, b"\x00"), FaultCode.TORQUE_LOST),
    "deaf to its first": (lose_id, FaultCode.GOAL_NOT_TAKEN),
    "slipped": (lambda cell: cell.twin.servo(3).jump(80), FaultCode.DEVICE),
    "overloaded": (lambda cell: cell.twin.servo(3).hardware_error(32), FaultCode.OVERLOAD),
    "hot": (lambda cell: cell.twin.servo(3).heat(68.0), FaultCode.OVER_TEMPERATURE),
}


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_second_motor_that_stops_following_stops_the_arm(kind: str, watched: bool, monkeypatch) -> None:
    """Within five ticks and a bit, at its joint. The mutation, reading first motors alone, drives on."""
    if not watched:
        monkeypatch.setattr(DxlArm, "second_blocks", ())
    cell = Cell().start().run(0.6)
    happens, code = FAULTS[kind]
    happens(cell)
    cell.run(0.3)
    if not watched:
        assert cell.state == State.ACTIVE and cell.first is None
        return
    assert cell.state == State.FAULT and cell.first.joint == "shoulder"
    assert cell.first.code in {code, FaultCode.TORQUE_LOST} if kind == "overloaded" else cell.first.code == code
    assert float(np.abs(cell.twin.plant.speeds_rad_s).max()) < 0.6


@pytest.mark.parametrize("kind", ["torque gone", "overloaded"])
def test_a_reset_brings_the_second_motor_back_and_nothing_falls(kind: str) -> None:
    """The first motor holds 4 N m alone meanwhile, as 15 % of its torque would not."""
    cell = Cell().start().run(0.6)
    cell.twin.plant.loads_nm[1] = 4.0
    cell.run(0.2)
    FAULTS[kind][0](cell)
    cell.run(0.5)
    before = cell.twin.plant.positions_rad[1]
    assert cell.state == State.FAULT and cell.twin.torque_flags()[2] and not cell.twin.torque_flags()[3]
    cell.twin.servo(3).heal()
    cell.daemon.reset()
    cell.run(0.5)
    assert cell.state == State.HOLD and all(cell.twin.torque_flags().values())
    assert cell.twin.plant.positions_rad[1] == pytest.approx(before, abs=0.12)


def test_release_names_a_second_motor_that_does_not_answer() -> None:
    cell = Cell().start()
    cell.twin.servo(5).silent()
    with pytest.raises(TorqueOffError, match=r"elbow \(servo 5\) does not answer"):
        cell.arm.disconnect()
    assert [on for i, on in cell.twin.torque_flags().items() if i != 5] == [False] * 8


CLOSED = interbotix.ALOHA_LEADER_JAW[0] + 0.055


class Station:
    """ALOHA: four twins on one clock."""

    def __init__(self) -> None:
        self.clock = VirtualClock(start_s=100.0)
        kinds = {"follower": arms.viperx, "leader": arms.widowx}
        names = [f"{role}_{side}" for role in kinds for side in interbotix.SIDES]
        self.twins = {name: kinds[name.split("_")[0]](clock=self.clock.now) for name in names}
        self.links = {name: VirtualLink(twin, sleep_until=self.clock.sleep_until) for name, twin in self.twins.items()}
        self.arms = interbotix.aloha(
            open_ports={name: link.open for name, link in self.links.items()}, clock=self.clock, normal_speed=True
        )
        self.daemon = Daemon(self.arms.followers, clock=self.clock)
        self.leaders: dict[str, Leader] = {}

    def start(self) -> "Station":
        for side, leader in self.arms.leaders.items():
            self.twins[f"leader_{side}"].place([0.0] * 6 + [CLOSED])
            leader.connect()
        self.daemon.connect()
        self.daemon.enable()
        self.token = self.daemon.lease("hands").token
        for side, leader in self.arms.leaders.items():
            follower = self.arms.followers[side].spec
            self.leaders[side] = Leader(leader, follower, same_names(leader.spec, follower), session=side)
            self.leaders[side].engage()
            self.daemon.activate(self.token, side, arm=side)
        return self

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.daemon.dt_s)):
            due_s = self.clock.now() + self.daemon.dt_s
            self.daemon.heartbeat(self.token)
            self.daemon.tick()
            for side, leader in self.leaders.items():
                reading = self.daemon.sides[side].reading
                if self.daemon.sides[side].state in (State.ACTIVE, State.STARVED) and reading is not None:
                    chunk = leader.next(reading)
                    if chunk is not None:
                        self.daemon.submit(chunk, self.token, arm=side)
            self.clock.sleep_until(due_s)


def test_two_leaders_lead_two_followers() -> None:
    """Postures by joint, grippers from closed to closed and open to open."""
    station = Station().start()
    for name, sign in (("leader_left", 1.0), ("leader_right", -1.0)):
        goal = sign * np.array([0.3, -0.2, 0.25, 0.2, 0.2, -0.3, 0.0])
        for share in np.linspace(0.1, 1.0, 10):
            station.twins[name].place([*(share * goal[:6]), CLOSED])
            station.run(0.08)
    station.run(2.0)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        follower = station.twins[f"follower_{side}"].plant.positions_rad
        np.testing.assert_allclose(follower[:6], sign * np.array([0.3, -0.2, 0.25, 0.2, 0.2, -0.3]), atol=0.05)
        assert follower[6] == pytest.approx(station.arms.followers[side].spec.gripper.closed, abs=0.1)
        assert not any(station.twins[f"leader_{side}"].torque_flags().values()), "leaders stay limp"


def test_one_follower_faults_and_both_stop() -> None:
    station = Station().start()
    station.run(0.3)
    station.twins["follower_left"].servo(5).silent()
    station.run(0.5)
    assert {side.state for side in station.daemon.sides.values()} == {State.FAULT}
    assert "left" in str(station.daemon.sides["right"].controller.supervisor.latched)


SPECS = {"viperx": interbotix.viperx_spec(), "widowx": interbotix.widowx_spec()}
