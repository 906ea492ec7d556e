"""What the registers of the Feetech twin do, against the memory table's words and closed forms."""

import math

import pytest

from real_robot.protocols import sts
from real_robot.twin.motor import COUNTS_PER_RAD

IDS = [1, 2, 3, 4, 5, 6]
COUNT = 1.0 / COUNTS_PER_RAD


def enable(feetech, device_id: int = 1) -> None:
    feetech.write(device_id, "goal_position", feetech.read(device_id, "present_position"))
    feetech.write(device_id, "torque_enable", 1)


def test_identity_and_position(feetech) -> None:
    assert feetech.read(4, "model") == 777
    assert feetech.read(4, "id") == 4
    feetech.twin.place([0.1, -0.2, 0.3, 0.0, -0.5, 1.0])
    for device_id, angle in zip(IDS, (0.1, -0.2, 0.3, 0.0, -0.5, 1.0)):
        assert feetech.read(device_id, "present_position") == round(2048 + angle * 4096 / (2 * math.pi))


def test_torque_gates_motion(feetech) -> None:
    feetech.write(1, "goal_position", 2300)
    feetech.clock.sleep(1.0)
    assert feetech.joint(1) == 0.0
    feetech.write(1, "torque_enable", 1)
    feetech.clock.sleep(1.0)
    assert feetech.read(1, "present_position") == pytest.approx(2300, abs=2)
    assert feetech.twin.torque_flags() == {1: True, 2: False, 3: False, 4: False, 5: False, 6: False}
    feetech.port.write(sts.torque_off_all())
    feetech.clock.sleep(0.01)
    assert not any(feetech.twin.torque_flags().values())


def test_a_stale_goal_jumps_at_enable(feetech) -> None:
    """The accident that a driver must prevent: torque on after the arm was moved by hand."""
    enable(feetech)
    feetech.write(1, "torque_enable", 0)
    feetech.twin.place([1.0, 0, 0, 0, 0, 0])
    feetech.write(1, "torque_enable", 1)
    feetech.clock.sleep(1.0)
    assert feetech.joint(1) == pytest.approx(0.0, abs=2 * COUNT)


def test_the_profile_takes_the_trapezoids_time(feetech) -> None:
    """1000 counts at 500 count/s and 1000 count/s^2: d/v + v/a = 2.5 s."""
    enable(feetech)
    feetech.write(1, "goal_speed", 500)
    feetech.write(1, "acceleration", 10)
    feetech.twin.peaks.reset()
    feetech.write(1, "goal_position", 3048)
    start_s = feetech.clock()
    servo = feetech.twin.servo(1)
    while servo.motor.reference != 3048.0:
        feetech.clock.sleep(2e-3)
        feetech.twin.advance()
        assert feetech.clock() - start_s < 5.0
    assert feetech.clock() - start_s == pytest.approx(2.5, abs=0.03)
    assert feetech.twin.peaks.speed_rad_s[0] * COUNTS_PER_RAD == pytest.approx(500, rel=0.1)
    feetech.clock.sleep(0.3)
    assert feetech.read(1, "present_position") == pytest.approx(3048, abs=2)
    assert feetech.read(1, "moving") == 0


def test_speed_is_signed_by_its_top_bit(feetech) -> None:
    enable(feetech)
    feetech.write(1, "goal_speed", 400)
    feetech.write(1, "goal_position", 1500)
    feetech.clock.sleep(0.5)
    assert feetech.read(1, "present_speed") == pytest.approx(-400, abs=20)
    assert feetech.read(1, "moving") == 1


def test_angle_limits_hold_whatever_is_asked(feetech) -> None:
    enable(feetech)
    feetech.write(1, "goal_position", 6600)
    feetech.clock.sleep(2.0)
    limit = feetech.read(1, "max_angle")
    assert feetech.read(1, "present_position") == pytest.approx(limit, abs=2)
    assert [v.rule for v in feetech.twin.monitor.violations] == ["goal_out_of_range"]
    with pytest.raises(AssertionError, match="goal_out_of_range: servo 1 @42"):
        feetech.twin.monitor.check()


def test_eeprom_survives_only_when_unlocked(feetech) -> None:
    feetech.write(1, "p_gain", 16)
    assert feetech.read(1, "p_gain") == 16
    feetech.twin.servo(1).reboot()
    feetech.clock.sleep(0.3)
    assert feetech.read(1, "p_gain") == 32, "the lock was on"
    feetech.write(1, "lock", 0)
    feetech.write(1, "p_gain", 16)
    feetech.twin.servo(1).reboot()
    feetech.clock.sleep(0.3)
    assert feetech.read(1, "p_gain") == 16
    assert feetech.read(1, "lock") == 1, "volatile, back at its default"
    assert feetech.twin.monitor.num_eeprom_writes == 2


def test_eeprom_write_under_torque_is_a_violation(feetech) -> None:
    enable(feetech)
    feetech.write(1, "p_gain", 16)
    assert [v.rule for v in feetech.twin.monitor.violations] == ["eeprom_while_torque_on"]


def test_homing_offset_shifts_the_present_position(feetech) -> None:
    """Present = Actual - Offset."""
    feetech.write(2, "homing_offset", -100)
    feetech.clock.sleep(0.01)
    assert feetech.read(2, "present_position") == 2148
    feetech.write(2, "homing_offset", 2047)
    feetech.clock.sleep(0.01)
    assert feetech.read(2, "present_position") == 1


def test_positions_wrap_unless_the_multi_turn_bit_is_set(feetech) -> None:
    feetech.write(5, "homing_offset", 2000)
    feetech.twin.place([0, 0, 0, 0, -0.2, 0])
    feetech.clock.sleep(0.01)
    assert feetech.read(5, "present_position") == 48 - round(0.2 * COUNTS_PER_RAD) + 4096
    feetech.write(5, "phase", 12 | 0x10)
    feetech.clock.sleep(0.01)
    assert feetech.read(5, "present_position") == 48 - round(0.2 * COUNTS_PER_RAD), "negative"


def test_128_to_the_torque_register_rewrites_the_zero(feetech) -> None:
    feetech.twin.place([0.5, 0, 0, 0, 0, 0])
    feetech.clock.sleep(0.01)
    feetech.write(1, "torque_enable", 128)
    feetech.clock.sleep(0.01)
    assert feetech.read(1, "present_position") == 2048
    assert feetech.read(1, "homing_offset") == round(0.5 * COUNTS_PER_RAD)
    assert feetech.read(1, "torque_enable") == 0
    assert [v.rule for v in feetech.twin.monitor.violations] == ["set_middle"]


def test_reg_write_waits_for_action(feetech) -> None:
    assert feetech.ask(sts.reg_write(1, 42, b"\x00\x07")) is not None
    before = feetech.read(1, "goal_position")
    feetech.port.write(sts.action())
    feetech.clock.sleep(0.01)
    assert before == 2048
    assert feetech.read(1, "goal_position") == 0x700


def test_response_level_0_answers_reads_only(feetech) -> None:
    feetech.write(1, "response_level", 0)
    assert feetech.write(1, "goal_position", 2000) is None
    assert feetech.read(1, "goal_position") == 2000
    assert feetech.ask(sts.ping(1)) is not None
    feetech.clock.sleep(0.01)


def test_read_only_registers_stay(feetech) -> None:
    feetech.ask(sts.write(1, 56, b"\x01\x00"))
    feetech.ask(sts.write(1, 3, b"\x01\x00"))
    assert feetech.read(1, "present_position") == 2048
    assert feetech.read(1, "model") == 777


def test_a_new_id_answers_under_the_old_one_once(feetech) -> None:
    assert feetech.write(6, "id", 9) == 0
    assert feetech.ask(sts.ping(6)) is None
    assert feetech.ask(sts.ping(9)).device_id == 9


def test_broadcast_ping_finds_all(feetech) -> None:
    feetech.port.write(sts.ping(sts.BROADCAST))
    found = sts.StatusDecoder().feed(feetech.port.read(36, feetech.clock() + 0.01))
    assert [status.device_id for status in found] == IDS


def test_a_stall_overloads_and_falls_back_to_the_protective_torque(feetech) -> None:
    """Load above 80 % for 2 s: output 20 %, bit 32 on every packet, until torque is written again."""
    enable(feetech)
    feetech.twin.servo(1).stall()
    feetech.write(1, "goal_position", 2600)
    feetech.clock.sleep(1.8)
    assert feetech.read(1, "present_load") == 1000
    assert feetech.ask(sts.ping(1)).error == 0
    feetech.clock.sleep(0.4)
    assert feetech.read(1, "present_load") == 200
    assert feetech.ask(sts.ping(1)).error == 32
    assert feetech.read(1, "status") == 32
    assert feetech.write(1, "goal_speed", 100) == 32, "the write has taken effect all the same"
    assert feetech.read(1, "goal_speed") == 100
    assert feetech.read(1, "torque_enable") == 1
    feetech.twin.servo(1).heal()
    feetech.write(1, "torque_enable", 1)
    feetech.clock.sleep(0.01)
    assert feetech.ask(sts.ping(1)).error == 0


def test_torque_limit_bounds_the_load(feetech) -> None:
    enable(feetech)
    feetech.twin.servo(1).stall()
    feetech.write(1, "torque_limit", 150)
    feetech.write(1, "goal_position", 1000)
    feetech.clock.sleep(0.2)
    assert feetech.read(1, "present_load") == -150
    amperes = 0.0065 * feetech.read(1, "present_current")
    assert amperes == pytest.approx(0.15 * 2.4, abs=0.0065)


def test_heat_drops_the_arm(feetech) -> None:
    enable(feetech, 2)
    feetech.twin.plant.loads_nm[1] = -0.5
    feetech.twin.servo(2).heat(65)
    feetech.clock.sleep(0.1)
    assert feetech.read(2, "present_temperature") == 65
    assert feetech.twin.torque_flags()[2]
    feetech.twin.servo(2).heat(71)
    feetech.clock.sleep(0.5)
    assert not feetech.twin.torque_flags()[2]
    assert feetech.ask(sts.ping(2)).error == 4
    assert feetech.joint(2) < -0.5, "it falls"


def test_the_winding_warms_up_as_an_rc(feetech) -> None:
    """T = room + c i^2 (1 - exp(-t / tau)), from 30 C."""
    enable(feetech)
    servo = feetech.twin.servo(1)
    servo.stall()
    feetech.write(1, "torque_limit", 400)
    feetech.write(1, "goal_position", 3000)
    feetech.clock.sleep(10.0)
    feetech.twin.advance()
    steady = 25.0 + 25.0 * (0.4 * 2.4) ** 2
    assert servo.motor.temperature_c == pytest.approx(steady + (30.0 - steady) * math.exp(-10.0 / 120.0), abs=0.1)


def test_a_sag_raises_the_bit_and_a_brown_out_reboots(feetech) -> None:
    enable(feetech)
    feetech.write(1, "torque_limit", 300)
    feetech.twin.sag(0.32, for_=0.2)  # 3.84 V, limit 4.0
    feetech.clock.sleep(0.1)
    assert feetech.ask(sts.ping(1)).error == 1
    assert feetech.read(1, "present_voltage") == 38
    feetech.clock.sleep(0.2)
    assert feetech.ask(sts.ping(1)).error == 0
    feetech.twin.sag(0.3, for_=0.1)
    feetech.clock.sleep(0.15)
    assert feetech.ask(sts.ping(1)) is None, "booting"
    feetech.clock.sleep(0.3)
    assert not feetech.twin.torque_flags()[1]
    assert feetech.read(1, "torque_limit") == 1000, "reloaded from its EEPROM twin"
    assert feetech.twin.servo(1).reboots == 1


def test_a_dead_host_leaves_the_arm_at_its_last_goal(feetech) -> None:
    """No watchdog on this bus: only the speed in the servo survives."""
    enable(feetech)
    feetech.write(1, "goal_speed", 200)
    feetech.write(1, "goal_position", 2600)
    feetech.link.unplug()
    feetech.twin.peaks.reset()
    feetech.clock.sleep(4.0)
    assert feetech.joint(1) * COUNTS_PER_RAD == pytest.approx(552, abs=2)
    assert feetech.twin.peaks.speed_rad_s[0] * COUNTS_PER_RAD < 260
