"""Control table of the Feetech STS/SMS series (STS3215, STS3250, SM8512BL): what stands where, how wide, signed how.

Source: Feetech's memory table; 0..39 is EEPROM, 40.. is volatile. Register 40 takes 128 as "the present position is
2048", which rewrites the homing offset: no driver sends it.
"""

from real_robot.protocols.rows import Register

COUNTS_PER_TURN = 4096
MODELS = {777: "sts3215", 2825: "sts3250", 11272: "sm8512bl"}
# Register 6. Values 5 to 7 differ from tables in circulation, which shift them by one place.
BAUDS = {0: 1_000_000, 1: 500_000, 2: 250_000, 3: 128_000, 4: 115_200, 5: 76_800, 6: 57_600, 7: 38_400}
MULTI_TURN_BIT = 0x10  # of `phase`: positions leave 0..4095 while it is set

TABLE = (
    Register(name="firmware_major", address=0, width=1, eeprom=True, read_only=True),
    Register(name="firmware_minor", address=1, width=1, eeprom=True, read_only=True),
    Register(name="model", address=3, width=2, eeprom=True, read_only=True),
    Register(name="id", address=5, width=1, eeprom=True),
    Register(name="baud", address=6, width=1, eeprom=True),
    Register(name="return_delay", address=7, width=1, eeprom=True, unit="2 us"),
    Register(name="response_level", address=8, width=1, eeprom=True),
    Register(name="min_angle", address=9, width=2, eeprom=True, unit="count"),
    Register(name="max_angle", address=11, width=2, eeprom=True, unit="count"),
    Register(name="max_temperature", address=13, width=1, eeprom=True, unit="degree C"),
    Register(name="max_voltage", address=14, width=1, eeprom=True, unit="0.1 V"),
    Register(name="min_voltage", address=15, width=1, eeprom=True, unit="0.1 V"),
    Register(name="max_torque", address=16, width=2, eeprom=True, unit="0.1 %"),
    Register(name="phase", address=18, width=1, eeprom=True),
    Register(name="unload_condition", address=19, width=1, eeprom=True),
    Register(name="led_condition", address=20, width=1, eeprom=True),
    Register(name="p_gain", address=21, width=1, eeprom=True),
    Register(name="d_gain", address=22, width=1, eeprom=True),
    Register(name="i_gain", address=23, width=1, eeprom=True),
    Register(name="min_start_force", address=24, width=2, eeprom=True, unit="0.1 %"),
    Register(name="dead_zone_cw", address=26, width=1, eeprom=True, unit="count"),
    Register(name="dead_zone_ccw", address=27, width=1, eeprom=True, unit="count"),
    Register(name="protection_current", address=28, width=2, eeprom=True, unit="6.5 mA"),
    Register(name="homing_offset", address=31, width=2, sign_bit=11, eeprom=True, unit="count"),
    Register(name="mode", address=33, width=1, eeprom=True),
    Register(name="protective_torque", address=34, width=1, eeprom=True, unit="1 %"),
    Register(name="protection_time", address=35, width=1, eeprom=True, unit="10 ms"),
    Register(name="overload_torque", address=36, width=1, eeprom=True, unit="1 %"),
    Register(name="torque_enable", address=40, width=1),
    Register(name="acceleration", address=41, width=1, unit="100 count/s^2"),
    Register(name="goal_position", address=42, width=2, sign_bit=15, unit="count"),
    Register(name="goal_time", address=44, width=2, sign_bit=15),
    Register(name="goal_speed", address=46, width=2, sign_bit=15, unit="count/s"),
    Register(name="torque_limit", address=48, width=2, unit="0.1 %"),
    Register(name="lock", address=55, width=1),
    Register(name="present_position", address=56, width=2, sign_bit=15, read_only=True, unit="count"),
    Register(name="present_speed", address=58, width=2, sign_bit=15, read_only=True, unit="count/s"),
    Register(name="present_load", address=60, width=2, sign_bit=10, read_only=True, unit="0.1 %"),
    Register(name="present_voltage", address=62, width=1, read_only=True, unit="0.1 V"),
    Register(name="present_temperature", address=63, width=1, read_only=True, unit="degree C"),
    Register(name="async_flag", address=64, width=1, read_only=True),
    Register(name="status", address=65, width=1, read_only=True),
    Register(name="moving", address=66, width=1, read_only=True),
    Register(name="present_current", address=69, width=2, sign_bit=15, read_only=True, unit="6.5 mA"),
    Register(name="max_speed", address=84, width=1, unit="50 count/s"),
    Register(name="max_acceleration", address=85, width=1, unit="100 count/s^2"),
)
REGISTERS = {row.name: row for row in TABLE}
