"""The drivers' register tables against lerobot's, against the twins' own, and against themselves."""

import pytest
from lerobot.motors.dynamixel import tables as dxl_theirs
from lerobot.motors.feetech import tables as sts_theirs

from real_robot.protocols import dxl2_table, sts_table
from real_robot.protocols.rows import Register
from real_robot.twin import registers_dxl, registers_sts

# their names for the rows that both have
STS_NAMES = {
    "firmware_major": "Firmware_Major_Version",
    "model": "Model_Number",
    "id": "ID",
    "baud": "Baud_Rate",
    "return_delay": "Return_Delay_Time",
    "response_level": "Response_Status_Level",
    "min_angle": "Min_Position_Limit",
    "max_angle": "Max_Position_Limit",
    "max_temperature": "Max_Temperature_Limit",
    "max_voltage": "Max_Voltage_Limit",
    "min_voltage": "Min_Voltage_Limit",
    "max_torque": "Max_Torque_Limit",
    "phase": "Phase",
    "unload_condition": "Unloading_Condition",
    "p_gain": "P_Coefficient",
    "d_gain": "D_Coefficient",
    "i_gain": "I_Coefficient",
    "protection_current": "Protection_Current",
    "homing_offset": "Homing_Offset",
    "mode": "Operating_Mode",
    "protective_torque": "Protective_Torque",
    "protection_time": "Protection_Time",
    "overload_torque": "Overload_Torque",
    "torque_enable": "Torque_Enable",
    "acceleration": "Acceleration",
    "goal_position": "Goal_Position",
    "goal_time": "Goal_Time",
    "goal_speed": "Goal_Velocity",
    "torque_limit": "Torque_Limit",
    "lock": "Lock",
    "present_position": "Present_Position",
    "present_speed": "Present_Velocity",
    "present_load": "Present_Load",
    "present_voltage": "Present_Voltage",
    "present_temperature": "Present_Temperature",
    "status": "Status",
    "moving": "Moving",
    "present_current": "Present_Current",
}
DXL_NAMES = {
    "model": "Model_Number",
    "firmware": "Firmware_Version",
    "id": "ID",
    "baud": "Baud_Rate",
    "return_delay": "Return_Delay_Time",
    "drive_mode": "Drive_Mode",
    "mode": "Operating_Mode",
    "shadow_id": "Secondary_ID",
    "homing_offset": "Homing_Offset",
    "max_temperature": "Temperature_Limit",
    "max_voltage": "Max_Voltage_Limit",
    "min_voltage": "Min_Voltage_Limit",
    "pwm_limit": "PWM_Limit",
    "current_limit": "Current_Limit",
    "acceleration_limit": "Acceleration_Limit",
    "velocity_limit": "Velocity_Limit",
    "max_angle": "Max_Position_Limit",
    "min_angle": "Min_Position_Limit",
    "shutdown": "Shutdown",
    "torque_enable": "Torque_Enable",
    "led": "LED",
    "response_level": "Status_Return_Level",
    "hardware_error": "Hardware_Error_Status",
    "position_d_gain": "Position_D_Gain",
    "position_i_gain": "Position_I_Gain",
    "position_p_gain": "Position_P_Gain",
    "bus_watchdog": "Bus_Watchdog",
    "goal_pwm": "Goal_PWM",
    "goal_current": "Goal_Current",
    "goal_velocity": "Goal_Velocity",
    "profile_acceleration": "Profile_Acceleration",
    "profile_velocity": "Profile_Velocity",
    "goal_position": "Goal_Position",
    "tick": "Realtime_Tick",
    "moving": "Moving",
    "present_pwm": "Present_PWM",
    "present_current": "Present_Current",
    "present_velocity": "Present_Velocity",
    "present_position": "Present_Position",
    "present_voltage": "Present_Input_Voltage",
    "present_temperature": "Present_Temperature",
}


@pytest.mark.parametrize(("ours", "theirs"), STS_NAMES.items())
def test_sts_rows_agree_with_lerobot(ours: str, theirs: str) -> None:
    row = sts_table.REGISTERS[ours]
    assert (row.address, row.width) == sts_theirs.STS_SMS_SERIES_CONTROL_TABLE[theirs]
    signs = sts_theirs.STS_SMS_SERIES_ENCODINGS_TABLE
    if ours not in ("goal_time", "present_current"):  # theirs leaves these unsigned
        assert row.sign_bit == signs.get(theirs)


@pytest.mark.parametrize(("ours", "theirs"), DXL_NAMES.items())
def test_dxl_rows_agree_with_lerobot(ours: str, theirs: str) -> None:
    row = dxl2_table.REGISTERS[ours]
    assert (row.address, row.width) == dxl_theirs.X_SERIES_CONTROL_TABLE[theirs]
    assert row.twos_complement == (theirs in dxl_theirs.X_SERIES_ENCODINGS_TABLE)


@pytest.mark.parametrize(("table", "eeprom"), [(sts_table.TABLE, 40), (dxl2_table.TABLE, 64)])
def test_rows_do_not_overlap_and_know_their_memory(table: tuple[Register, ...], eeprom: int) -> None:
    taken: set[int] = set()
    for row in table:
        places = set(range(row.address, row.address + row.width))
        assert not places & taken, row.name
        taken |= places
        assert row.eeprom == (row.address < eeprom), row.name


def test_the_twins_table_agrees() -> None:
    """Two tables, written apart."""
    for shop, table in [(registers_sts.SHOP, sts_table.TABLE), (registers_dxl.SHOP, dxl2_table.TABLE)]:
        widths = {row.address: row.width for row in table}
        assert {address: width for address, (width, _) in shop.items() if address in widths} == {
            address: widths[address] for address in shop if address in widths
        }
    assert tuple(sts_table.BAUDS.values()) == registers_sts.BAUDS
    assert tuple(dxl2_table.BAUDS.values()) == registers_dxl.BAUDS


def test_pack_and_unpack() -> None:
    goal = sts_table.REGISTERS["goal_position"]
    assert goal.pack(-5) == b"\x05\x80"
    assert goal.unpack(b"\x05\x80") == -5
    assert (goal.low, goal.high) == (-32767, 32767)
    wide = dxl2_table.REGISTERS["goal_position"]
    assert wide.unpack(wide.pack(-5)) == -5
    assert wide.pack(-5) == b"\xfb\xff\xff\xff"
    block = bytes(range(31))
    assert sts_table.REGISTERS["torque_limit"].find(block, 40) == 8 + 256 * 9
    for bad in (lambda: goal.pack(32768), lambda: goal.unpack(b"\x00"), lambda: goal.find(block, 60)):
        with pytest.raises(ValueError, match="goal_position"):
            bad()
