"""Control table of the Dynamixel X series (XL330, XL430, XC430, XM430, XM540): what stands where, how wide, signed how.

Source: Robotis e-manual. Addresses below 64 are EEPROM and refuse writes while torque is on. Two's complement.
"""

from real_robot.protocols.rows import Register

COUNTS_PER_TURN = 4096
VELOCITY_UNIT_RPM = 0.229
ACCELERATION_UNIT_RPM2 = 214.577
MODELS = {
    1060: "xl430-w250",
    1070: "xc430-w150",
    1190: "xl330-m077",
    1200: "xl330-m288",
    1020: "xm430-w350",
    1120: "xm540-w270",
}
BAUDS = {0: 9600, 1: 57_600, 2: 115_200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}
HARDWARE_ERRORS = {0x01: "voltage", 0x04: "temperature", 0x08: "encoder", 0x10: "electrical shock", 0x20: "overload"}
WATCHDOG_TRIPPED = (
    255  # what register 98 reads once the bus watchdog has expired; goals are read-only until 0 is written
)

TABLE = (
    Register(name="model", address=0, width=2, eeprom=True, read_only=True),
    Register(name="firmware", address=6, width=1, eeprom=True, read_only=True),
    Register(name="id", address=7, width=1, eeprom=True),
    Register(name="baud", address=8, width=1, eeprom=True),
    Register(name="return_delay", address=9, width=1, eeprom=True, unit="2 us"),
    Register(name="drive_mode", address=10, width=1, eeprom=True),
    Register(name="mode", address=11, width=1, eeprom=True),
    Register(name="shadow_id", address=12, width=1, eeprom=True),
    Register(name="homing_offset", address=20, width=4, twos_complement=True, eeprom=True, unit="count"),
    Register(name="max_temperature", address=31, width=1, eeprom=True, unit="degree C"),
    Register(name="max_voltage", address=32, width=2, eeprom=True, unit="0.1 V"),
    Register(name="min_voltage", address=34, width=2, eeprom=True, unit="0.1 V"),
    Register(name="pwm_limit", address=36, width=2, eeprom=True, unit="0.113 %"),
    Register(name="current_limit", address=38, width=2, eeprom=True),
    Register(name="acceleration_limit", address=40, width=4, eeprom=True, unit="214.577 rev/min^2"),
    Register(name="velocity_limit", address=44, width=4, eeprom=True, unit="0.229 rpm"),
    Register(name="max_angle", address=48, width=4, eeprom=True, unit="count"),
    Register(name="min_angle", address=52, width=4, eeprom=True, unit="count"),
    Register(name="shutdown", address=63, width=1, eeprom=True),
    Register(name="torque_enable", address=64, width=1),
    Register(name="led", address=65, width=1),
    Register(name="response_level", address=68, width=1),
    Register(name="hardware_error", address=70, width=1, read_only=True),
    Register(name="position_d_gain", address=80, width=2),
    Register(name="position_i_gain", address=82, width=2),
    Register(name="position_p_gain", address=84, width=2),
    Register(name="bus_watchdog", address=98, width=1, unit="20 ms"),
    Register(name="goal_pwm", address=100, width=2, twos_complement=True, unit="0.113 %"),
    Register(name="goal_current", address=102, width=2, twos_complement=True),
    Register(name="goal_velocity", address=104, width=4, twos_complement=True, unit="0.229 rpm"),
    Register(name="profile_acceleration", address=108, width=4, unit="214.577 rev/min^2"),
    Register(name="profile_velocity", address=112, width=4, unit="0.229 rpm"),
    Register(name="goal_position", address=116, width=4, twos_complement=True, unit="count"),
    Register(name="tick", address=120, width=2, read_only=True, unit="1 ms"),
    Register(name="moving", address=122, width=1, read_only=True),
    Register(name="present_pwm", address=124, width=2, twos_complement=True, read_only=True, unit="0.113 %"),
    Register(name="present_current", address=126, width=2, twos_complement=True, read_only=True),
    Register(name="present_velocity", address=128, width=4, twos_complement=True, read_only=True, unit="0.229 rpm"),
    Register(name="present_position", address=132, width=4, twos_complement=True, read_only=True, unit="count"),
    Register(name="present_voltage", address=144, width=2, read_only=True, unit="0.1 V"),
    Register(name="present_temperature", address=146, width=1, read_only=True, unit="degree C"),
)
REGISTERS = {row.name: row for row in TABLE}
