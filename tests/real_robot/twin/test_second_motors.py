"""What a servo with a secondary ID does, against the e-manual's words, with the vendor's SDK as host."""

import dynamixel_sdk
import pytest

from real_robot.protocols import dxl2, dxl2_table
from real_robot.twin.arms import viperx, widowx
from real_robot.twin.motor import COUNTS_PER_RAD


@pytest.fixture(params=[viperx, widowx], ids=["viperx", "widowx"])
def host(request, clock, host_of):
    return host_of(request.param(clock=clock), dxl2, dxl2_table.REGISTERS)


@pytest.fixture
def arm(clock, host_of):
    return host_of(viperx(clock=clock), dxl2, dxl2_table.REGISTERS)


def test_nine_servos_stand_as_the_vendors_files_say(host) -> None:
    assert [host.read(i, "shadow_id") for i in range(1, 10)] == [255, 255, 2, 255, 4, 255, 255, 255, 255]
    first, second = host.read(2, "drive_mode"), host.read(3, "drive_mode")
    assert {first, second} == {0, 1} == {host.read(4, "drive_mode"), host.read(5, "drive_mode")}


def test_both_encoders_of_a_joint_show_the_same(host) -> None:
    """They face each other, and one is reversed; unreversed, the mirrored count shows."""
    host.twin.place([0.2, -0.5, 0.7, 0, 0.3, 0, 0])
    shown = [host.read(i, "present_position") for i in range(1, 8)]
    expected = [round(2048 + q * COUNTS_PER_RAD) for q in (0.2, -0.5, -0.5, 0.7, 0.7, 0, 0.3)]
    assert shown == pytest.approx(expected, abs=1)
    host.write(3, "drive_mode", host.read(3, "drive_mode") ^ 1)
    host.clock.sleep(0.01)
    assert host.read(3, "present_position") == pytest.approx(4096 - expected[2], abs=1)


def test_ram_follows_in_silence_and_eeprom_does_not(host) -> None:
    assert host.write(2, "profile_velocity", 77) == 0
    assert (host.read(2, "profile_velocity"), host.read(3, "profile_velocity")) == (77, 77)
    assert host.write(2, "homing_offset", 9) == 0
    assert (host.read(2, "homing_offset"), host.read(3, "homing_offset")) == (9, 0)
    assert host.port.read(99, host.clock() + 0.01) == b"", "one answer each, and it has been read"
    for packet in (dxl2.ping(2), dxl2.read(2, 132, 4)):
        host.port.write(packet)
        assert len(dxl2.StatusDecoder().feed(host.port.read(999, host.clock() + 0.02))) == 1, "nor to PING and READ"


def test_groups_and_actions_follow(arm) -> None:
    arm.port.write(dxl2.sync_write(116, {2: (2000).to_bytes(4, "little"), 4: (2100).to_bytes(4, "little")}))
    assert [arm.read(i, "goal_position") for i in (2, 3, 4, 5)] == [2000, 2000, 2100, 2100]
    arm.ask(dxl2.reg_write(2, 116, (1900).to_bytes(4, "little")))
    arm.ask(dxl2.reg_write(2, 24, bytes(4)))  # EEPROM: replaces what the first one waits with, not the second
    arm.port.write(dxl2.action())
    arm.clock.sleep(0.01)
    assert arm.read(3, "goal_position") == 1900


def test_its_own_id_goes_first_and_253_is_nobody(arm) -> None:
    arm.write(3, "shadow_id", 3)
    assert arm.write(3, "led", 1) == 0, "answers as itself"
    arm.write(3, "shadow_id", 253)
    arm.write(2, "profile_velocity", 55)
    assert arm.read(3, "profile_velocity") == 0


def test_a_reboot_is_not_followed(arm) -> None:
    arm.ask(dxl2.reboot(2))
    arm.clock.sleep(0.3)
    assert [arm.twin.servo(i).reboots for i in (2, 3)] == [1, 0]


@pytest.mark.parametrize("pair", [True, False])
def test_two_motors_lift_what_one_cannot(arm, pair: bool) -> None:
    """15 N m at a shoulder whose motors stall at 10.6 each."""
    arm.twin.plant.loads_nm[1] = 15.0
    if not pair:
        arm.write(3, "shadow_id", 255)
    arm.write(2, "goal_position", 2048)
    arm.write(2, "torque_enable", 1)
    assert arm.twin.torque_flags()[3] == pair
    arm.clock.sleep(1.0)
    assert (arm.joint(2) < 0.3) == pair


def test_the_vendors_sdk_sees_one_answer(clock, arm) -> None:
    port = dynamixel_sdk.PortHandler("twin")
    port.is_open, port.tx_time_per_byte = True, 0.01
    port.getCurrentTime = lambda: 1000.0 * clock()

    class Line:
        def write(self, data) -> int:
            arm.port.write(bytes(data))
            return len(data)

        def read(self, size: int) -> bytes:
            return arm.port.read(size, clock() + 1e-4)

        def flush(self) -> None: ...

    port.ser = Line()
    handler = dynamixel_sdk.PacketHandler(2.0)
    assert handler.write4ByteTxRx(port, 2, 112, 60) == (0, 0)
    assert handler.read4ByteTxRx(port, 3, 112) == (60, 0, 0)
    found, result = handler.broadcastPing(port)
    assert result == 0 and [found[i][0] for i in sorted(found)] == [1120] * 7 + [1020] * 2
