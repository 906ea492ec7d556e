"""What the registers of the Dynamixel twin do and refuse, against the e-manual's words."""

import pytest

from real_robot.protocols import dxl2
from real_robot.twin.motor import COUNTS_PER_RAD

IDS = [1, 2, 3, 4, 5, 6]
RESULT_FAIL, RANGE, LIMIT, ACCESS = 1, 4, 6, 7


def enable(dynamixel, device_id: int = 1) -> None:
    dynamixel.write(device_id, "goal_position", dynamixel.read(device_id, "present_position"))
    assert dynamixel.write(device_id, "torque_enable", 1) == 0


def test_ping_tells_model_and_firmware(dynamixel) -> None:
    reply = dynamixel.ask(dxl2.ping(3))
    assert (reply.device_id, int.from_bytes(reply.data[:2], "little"), len(reply.data)) == (3, 1200, 3)


def test_moves_to_its_goal(dynamixel) -> None:
    enable(dynamixel)
    dynamixel.write(1, "goal_position", 2500)
    dynamixel.clock.sleep(1.5)
    assert dynamixel.read(1, "present_position") == pytest.approx(2500, abs=5)
    assert dynamixel.joint(1) * COUNTS_PER_RAD == pytest.approx(452, abs=5)


def test_the_profile_takes_the_trapezoids_time(dynamixel) -> None:
    """1000 counts: velocity 32 x 0.229 rpm, acceleration 4 x 214.577 rev/min^2."""
    enable(dynamixel)
    speed = 32 * 0.229 * 4096 / 60
    acceleration = 4 * 214.577 * 4096 / 3600
    dynamixel.write(1, "profile_velocity", 32)
    dynamixel.write(1, "profile_acceleration", 4)
    dynamixel.write(1, "goal_position", 3048)
    start_s = dynamixel.clock()
    servo = dynamixel.twin.servo(1)
    while servo.motor.reference != 3048.0:
        dynamixel.clock.sleep(2e-3)
        dynamixel.twin.advance()
        assert dynamixel.clock() - start_s < 6.0
    assert dynamixel.clock() - start_s == pytest.approx(1000 / speed + speed / acceleration, abs=0.05)


@pytest.mark.parametrize(
    ("name", "value", "torque", "error"),
    [
        ("homing_offset", 5, False, 0),
        ("homing_offset", 5, True, ACCESS),
        ("goal_position", 4095, True, LIMIT),
        ("goal_position", -1, True, LIMIT),
        ("bus_watchdog", 200, True, RANGE),
        ("torque_enable", 2, False, RANGE),
    ],
)
def test_refuses_what_the_manual_refuses(dynamixel, name: str, value: int, torque: bool, error: int) -> None:
    if torque:
        enable(dynamixel)
    before = dynamixel.read(1, name)
    assert dynamixel.write(1, name, value) == error
    assert dynamixel.read(1, name) == (before if error else value), "all or nothing"


def test_read_only_and_unknown_instructions(dynamixel) -> None:
    assert dynamixel.ask(dxl2.write(1, 132, bytes(4))).error == ACCESS
    assert dynamixel.ask(dxl2.packet(1, 0x06, b"\xff")).error == 2


def test_homing_offset_adds(dynamixel) -> None:
    """Present = Actual + Offset."""
    dynamixel.write(2, "homing_offset", -300)
    dynamixel.clock.sleep(0.01)
    assert dynamixel.read(2, "present_position") == 1748


def test_bus_watchdog_brakes_and_closes_the_goals(dynamixel) -> None:
    enable(dynamixel)
    dynamixel.write(1, "profile_velocity", 20)
    dynamixel.write(1, "bus_watchdog", 10)  # 200 ms
    dynamixel.write(1, "goal_position", 3000)
    for _ in range(5):
        dynamixel.clock.sleep(0.15)
        dynamixel.ask(dxl2.ping(4))  # any instruction packet feeds it
    assert dynamixel.read(1, "bus_watchdog") == 10
    dynamixel.clock.sleep(0.25)
    where = dynamixel.joint(1)
    dynamixel.clock.sleep(1.0)
    assert dynamixel.joint(1) == pytest.approx(where, abs=0.02), "at rest"
    assert dynamixel.read(1, "bus_watchdog") == 255
    assert dynamixel.twin.torque_flags()[1], "it holds"
    assert dynamixel.write(1, "goal_position", 2048) == RANGE
    assert dynamixel.write(1, "bus_watchdog", 0) == 0
    assert dynamixel.write(1, "goal_position", 2048) == 0
    dynamixel.clock.sleep(3.0)
    assert dynamixel.joint(1) == pytest.approx(0.0, abs=0.01)


def test_bus_watchdog_sleeps_without_torque(dynamixel) -> None:
    dynamixel.write(1, "bus_watchdog", 1)
    dynamixel.clock.sleep(1.0)
    assert dynamixel.read(1, "bus_watchdog") == 1


def test_hardware_error_needs_a_reboot(dynamixel) -> None:
    enable(dynamixel, 2)
    dynamixel.twin.servo(2).hardware_error(32)
    assert dynamixel.ask(dxl2.ping(2)).error == 0x80
    assert dynamixel.ask(dxl2.ping(1)).error == 0
    assert not dynamixel.twin.torque_flags()[2]
    assert dynamixel.read(2, "hardware_error") == 32
    assert dynamixel.write(2, "torque_enable", 1) == 0x80 | RESULT_FAIL
    assert dynamixel.ask(dxl2.reboot(2)).device_id == 2
    dynamixel.clock.sleep(2e-3)
    assert dynamixel.ask(dxl2.ping(2)) is None, "booting"
    dynamixel.clock.sleep(0.3)
    assert dynamixel.ask(dxl2.ping(2)).error == 0
    assert dynamixel.read(2, "torque_enable") == 0
    assert dynamixel.write(2, "torque_enable", 1) == 0


def test_a_voltage_error_outside_the_mask_only_alerts(dynamixel) -> None:
    enable(dynamixel)
    dynamixel.twin.sag(0.5, for_=0.1)  # 6 V, limit 6.5
    dynamixel.clock.sleep(0.05)
    assert dynamixel.read(1, "hardware_error") == 1
    assert dynamixel.ask(dxl2.ping(1)).error == 0x80
    assert dynamixel.twin.torque_flags()[1]


def test_a_stall_shuts_down(dynamixel) -> None:
    enable(dynamixel)
    dynamixel.twin.servo(1).stall()
    dynamixel.write(1, "goal_position", 3000)
    dynamixel.clock.sleep(2.5)
    assert dynamixel.read(1, "hardware_error") == 32
    assert not dynamixel.twin.torque_flags()[1]


def test_current_based_position_limits_the_grip(dynamixel) -> None:
    """Servo 6 is the gripper, mode 5: goal current bounds the current."""
    enable(dynamixel, 6)
    dynamixel.twin.servo(6).stall()
    dynamixel.write(6, "goal_current", 200)
    dynamixel.write(6, "goal_position", 3000)
    dynamixel.clock.sleep(0.3)
    assert dynamixel.read(6, "present_current") == pytest.approx(200, abs=2)


def test_turns_are_counted_until_power_goes(dynamixel) -> None:
    dynamixel.twin.plant._limits[4] = (-100.0, 100.0)
    dynamixel.twin.place([0, 0, 0, 0, 10.0, 0])
    many = round(2048 + 10.0 * COUNTS_PER_RAD)
    assert dynamixel.read(5, "present_position") == many
    dynamixel.twin.servo(5).reboot()
    dynamixel.clock.sleep(0.3)
    assert dynamixel.read(5, "present_position") == many % 4096
    assert dynamixel.read(5, "goal_position") == many % 4096


def test_clear_folds_the_turns(dynamixel) -> None:
    dynamixel.twin.plant._limits[4] = (-100.0, 100.0)
    dynamixel.twin.place([0, 0, 0, 0, -10.0, 0])
    many = dynamixel.read(5, "present_position")
    assert many < 0
    assert dynamixel.ask(dxl2.clear_turns(5)).error == 0
    dynamixel.clock.sleep(0.01)
    assert dynamixel.read(5, "present_position") == many % 4096


def test_status_level_1_answers_reads_only(dynamixel) -> None:
    dynamixel.write(1, "response_level", 1)
    assert dynamixel.write(1, "led", 1) is None
    assert dynamixel.read(1, "led") == 1


def test_strict_framing_drops_what_is_not_stuffed(dynamixel) -> None:
    """The frame that the vendor's SDK sends: its CRC is right, its stuffing is not there."""
    data = b"\xff\xff\xfd\x00"
    head = dxl2.HEADER + b"\x01" + (9).to_bytes(2, "little") + b"\x03" + (116).to_bytes(2, "little") + data
    bare = head + dxl2.crc16(head).to_bytes(2, "little")
    assert dynamixel.ask(bare) is None
    assert dynamixel.twin.monitor.lost == 1
    assert dynamixel.ask(dxl2.write(1, 116, data)).error == LIMIT, "stuffed, it arrives and is judged"


def test_replies_are_stuffed(dynamixel) -> None:
    """Goal registers that read FF FF FD 00 come back exact."""
    servo = dynamixel.twin.servo(4)
    servo.memory[116:124] = b"\xff\xff\xfd\x00\xff\xff\xfd\xfd"
    dynamixel.port.write(dxl2.read(4, 116, 4))
    raw = dynamixel.port.read(99, dynamixel.clock() + 0.01)
    assert len(raw) == 11 + 4 + 1
    assert dxl2.StatusDecoder().feed(raw)[0].data == b"\xff\xff\xfd\x00"


def test_sync_write_moves_all_and_reg_write_waits(dynamixel) -> None:
    rows = {i: (2100 + i).to_bytes(4, "little") for i in IDS}
    dynamixel.port.write(dxl2.sync_write(116, rows))
    assert [dynamixel.read(i, "goal_position") for i in IDS] == [2100 + i for i in IDS]
    dynamixel.ask(dxl2.reg_write(1, 116, (2000).to_bytes(4, "little")))
    assert dynamixel.read(1, "goal_position") == 2101
    dynamixel.port.write(dxl2.action())
    assert dynamixel.read(1, "goal_position") == 2000
    dynamixel.twin.monitor.check()
