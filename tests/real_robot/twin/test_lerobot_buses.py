"""LeRobot's own motor buses, unmodified, on the pseudo-terminal."""

import sys
import time

import pytest
from lerobot.motors import Motor, MotorNormMode, motors_bus
from lerobot.motors.dynamixel import DynamixelMotorsBus
from lerobot.motors.feetech import FeetechMotorsBus

from real_robot.twin.arms import koch, so101
from real_robot.twin.link import PtyLink
from real_robot.twin.physics import SO101_JOINTS as JOINTS

TRIES = 20  # the SDKs give a reply 34 ms, and spin on the core that has to produce it


@pytest.fixture(autouse=True)
def fair_share(monkeypatch):
    """Threads change every 0.1 ms, else a spinning SDK starves the twin; an unused package is not asked for."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    monkeypatch.setattr(motors_bus, "require_package", lambda *_, **__: None)
    monkeypatch.setattr(motors_bus, "DeepDiff", lambda a, b: a != b, raising=False)
    yield
    sys.setswitchinterval(before)


def patiently(action):
    """Once more where the machine was too busy for the SDK's time-out."""
    for _ in range(TRIES - 1):
        try:
            return action()
        except (ConnectionError, RuntimeError):
            time.sleep(0.02)
    return action()


def wait_for_rest(plant, angle_rad: float) -> None:
    """Joints 1 to 5 stand at `angle_rad`."""
    give_up_s = time.monotonic() + 10.0
    while True:
        joints = list(zip(plant.positions_rad, plant.speeds_rad_s))[:5]
        if all(abs(q - angle_rad) < 0.01 and abs(dq) < 0.01 for q, dq in joints):
            return
        assert time.monotonic() < give_up_s, joints
        time.sleep(0.02)


def connected(bus):
    def connect() -> None:
        if not bus.is_connected:
            bus.connect(handshake=False)
        bus._handshake()

    patiently(connect)
    return bus


def test_feetech(tmp_path) -> None:
    twin = so101()
    with PtyLink(twin, tmp_path) as link:
        motors = {name: Motor(i + 1, "sts3215", MotorNormMode.DEGREES) for i, name in enumerate(JOINTS)}
        bus = connected(FeetechMotorsBus(str(link.path), motors))
        positions = bus.sync_read("Present_Position", normalize=False, num_retry=TRIES)
        assert positions == dict.fromkeys(JOINTS, 2048)
        calibration = patiently(bus.read_calibration)
        assert (calibration["gripper"].range_min, calibration["gripper"].range_max) == (1934, 3186)
        assert calibration["gripper"].homing_offset == 0
        bus.write("Homing_Offset", "gripper", -37, num_retry=TRIES)
        assert bus.read("Homing_Offset", "gripper", num_retry=TRIES) == -37
        bus.enable_torque(num_retry=TRIES)
        bus.sync_write("Goal_Position", dict.fromkeys(JOINTS[:5], 2200), normalize=False)
        wait_for_rest(twin.plant, 152 / 651.9)
        moved = bus.sync_read("Present_Position", list(JOINTS[:5]), normalize=False, num_retry=TRIES)
        assert moved == pytest.approx(dict.fromkeys(JOINTS[:5], 2200), abs=7)
        bus.disable_torque(num_retry=TRIES)
        assert not any(twin.torque_flags().values())
        bus.disconnect(disable_torque=False)
        twin.monitor.check()


def test_one_overloaded_servo_keeps_the_later_ones_on(tmp_path) -> None:
    """Their torque-off stops at the first error byte, though that write has taken effect: five lines to a live arm."""
    twin = so101()
    with PtyLink(twin, tmp_path) as link:
        motors = {name: Motor(i + 1, "sts3215", MotorNormMode.DEGREES) for i, name in enumerate(JOINTS)}
        bus = connected(FeetechMotorsBus(str(link.path), motors))
        bus.enable_torque(num_retry=TRIES)
        twin.servo(2).overload()
        time.sleep(0.05)
        with pytest.raises(RuntimeError, match="Overload"):
            bus.disconnect()
        assert list(twin.torque_flags().values()) == [False, False, True, True, True, True]
        bus.port_handler.closePort()


def test_dynamixel(tmp_path) -> None:
    twin = koch()
    with PtyLink(twin, tmp_path) as link:
        models = ["xl430-w250"] * 2 + ["xl330-m288"] * 4
        motors = {
            n: Motor(i + 1, m, MotorNormMode.DEGREES) for i, (n, m) in enumerate(zip(JOINTS, models, strict=True))
        }
        bus = connected(DynamixelMotorsBus(str(link.path), motors))
        assert bus.sync_read("Present_Position", normalize=False, num_retry=TRIES) == dict.fromkeys(JOINTS, 2048)
        calibration = patiently(bus.read_calibration)
        assert (calibration["gripper"].range_min, calibration["gripper"].range_max) == (1918, 3156)
        bus.write("Homing_Offset", "gripper", -37, num_retry=TRIES)
        assert bus.read("Homing_Offset", "gripper", num_retry=TRIES) == -37
        bus.enable_torque(num_retry=TRIES)
        bus.sync_write("Goal_Position", dict.fromkeys(JOINTS[:5], 2200), normalize=False)
        wait_for_rest(twin.plant, 152 / 651.9)
        bus.disable_torque(num_retry=TRIES)
        assert not any(twin.torque_flags().values())
        bus.disconnect(disable_torque=False)
        twin.monitor.check()
