"""A Dynamixel X servo behind its control table: what each register does, and which writes it refuses.

Simulated: position, extended and current-based position modes; profile, gains, PWM and current limits; homing offset;
EEPROM closed while torque is on; bus watchdog; hardware errors that only a reboot clears; multi-turn counting
since power-on; reverse drive, which mirrors the counts about 2048; secondary (shadow) IDs. Not simulated: modes 0, 1
and 16 (the motor holds), integral and feed-forward gains, indirect addresses.
"""

from real_robot.twin.motor import COUNTS_PER_RAD as PER_RAD
from real_robot.twin.motor import COUNTS_PER_TURN, Command
from real_robot.twin.servo import ServoTwin

MODEL, FIRMWARE, ID, BAUD, RETURN_DELAY, DRIVE_MODE, MODE, SHADOW_ID = 0, 6, 7, 8, 9, 10, 11, 12
OFFSET, MAX_TEMPERATURE, MAX_VOLTAGE, MIN_VOLTAGE, PWM_LIMIT, CURRENT_LIMIT = 20, 31, 32, 34, 36, 38
VELOCITY_LIMIT, MAX_ANGLE, MIN_ANGLE, SHUTDOWN = 44, 48, 52, 63
TORQUE, RESPONSE_LEVEL, HARDWARE_ERROR, D_GAIN, P_GAIN, WATCHDOG = 64, 68, 70, 80, 84, 98
GOALS, GOAL_PWM, GOAL_CURRENT, ACCELERATION, VELOCITY, GOAL = 100, 100, 102, 108, 112, 116
GOALS_END = 120
TICK, MOVING, PWM, CURRENT, SPEED, POSITION, VOLTAGE, TEMPERATURE = 120, 122, 124, 126, 128, 132, 144, 146
EEPROM_SIZE = 64

READ_ONLY = {*range(7), *range(69, 72), *range(120, 150)}
BAUDS = (9600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000)
RESULT_FAIL, RANGE_ERROR, LENGTH_ERROR, LIMIT_ERROR, ACCESS_ERROR = 1, 4, 5, 6, 7
VOLTAGE_BIT, HEAT_BIT, OVERLOAD_BIT = 1, 4, 32
ALERT = 0x80
POSITION_MODE, EXTENDED_MODE, CURRENT_POSITION_MODE = 3, 4, 5

SPEED_COUNTS = 0.229 * COUNTS_PER_TURN / 60.0  # [count/s] per unit
ACCELERATION_COUNTS = 214.577 * COUNTS_PER_TURN / 3600.0  # [count/s^2] per unit
FULL_PWM = 885.0
P_DUTY = 1.0 / 128.0 / FULL_PWM  # per count and unit of the gain
D_DUTY = 1.0e-6  # per count/s and unit of the gain
OVERLOAD_DUTY, OVERLOAD_S = 0.8, 2.0
BROWN_OUT = 0.45  # of the nominal voltage

# address: (bytes, value) as it leaves the shop
SHOP = {
    **{
        MODEL: (2, 1060),
        FIRMWARE: (1, 45),
        ID: (1, 1),
        BAUD: (1, 3),
        RETURN_DELAY: (1, 250),
        MODE: (1, 3),
        SHADOW_ID: (1, 255),
    },
    **{13: (1, 2), 24: (4, 10), MAX_TEMPERATURE: (1, 72), MAX_VOLTAGE: (2, 160), MIN_VOLTAGE: (2, 60)},
    **{PWM_LIMIT: (2, 885), CURRENT_LIMIT: (2, 1750), 40: (4, 32767), VELOCITY_LIMIT: (4, 265), MAX_ANGLE: (4, 4095)},
    **{SHUTDOWN: (1, 52), RESPONSE_LEVEL: (1, 2), 76: (2, 1000), 78: (2, 100), P_GAIN: (2, 800), D_GAIN: (2, 0)},
    **{GOAL_PWM: (2, 885), GOAL_CURRENT: (2, 1750)},
}


class DxlServo(ServoTwin):
    """See the module."""

    eeprom_size = EEPROM_SIZE
    _overload_s = 0.0
    _last_packet_s = 0.0
    _now_s = 0.0
    _turn_shift = 0  # [count], whole turns that the encoder has forgotten at power-on

    @property
    def device_id(self) -> int:
        return self.memory[ID]

    @device_id.setter
    def device_id(self, value: int) -> None:
        self.memory[ID] = value

    @property
    def direction(self) -> int:
        return -self._mounted if self.memory[DRIVE_MODE] & 1 else self._mounted

    def follows(self, device_id: int) -> bool:
        """Whether it does in silence what servo `device_id` is told. Its own ID goes first; 253 and above: nobody."""
        return self.memory[SHADOW_ID] == device_id != self.device_id and device_id < 253

    @property
    def baud(self) -> int:
        return BAUDS[min(self.memory[BAUD], 6)]

    @property
    def return_delay_s(self) -> float:
        return 2e-6 * self.memory[RETURN_DELAY]

    @property
    def torque_on(self) -> bool:
        return self.memory[TORQUE] == 1

    @property
    def watchdog_tripped(self) -> bool:
        return self.memory[WATCHDOG] == 255

    @property
    def error(self) -> int:
        return ALERT if self.memory[HARDWARE_ERROR] else 0

    @property
    def offset(self) -> int:
        """Homing offset [count]: present = actual + offset."""
        return self._signed(OFFSET, 4)

    def _signed(self, address: int, width: int) -> int:
        return int.from_bytes(self.memory[address : address + width], "little", signed=True)

    def hear(self, at_s: float) -> None:
        """Any instruction packet on the bus feeds the bus watchdog."""
        self._last_packet_s = at_s

    def hardware_error(self, bits: int) -> None:
        """Sets bits of register 70; those of the shutdown mask take the torque away until a reboot."""
        self.memory[HARDWARE_ERROR] |= bits
        if bits & self.memory[SHUTDOWN]:
            self.memory[TORQUE] = 0
            self.update_command()

    def power_on(self) -> None:
        self._overload_s = 0.0
        self.clear_turns()
        self._write_signed(GOAL, 4, round(self._shown))

    def clear_turns(self) -> None:
        """Folds the position back into one turn, and the profile with it."""
        actual = round(self._shown) - self.offset
        shift = actual - actual % COUNTS_PER_TURN
        self._turn_shift += shift
        self._shown -= shift
        self.motor.hold(self._shown)

    def write(self, address: int, data: bytes) -> int:
        """Refuses a write as a whole where the manual says so, and returns the error code."""
        code = self._refusal(address, data)
        if code:
            return code
        was_on = self.torque_on
        self.memory[address : address + len(data)] = data
        if address < EEPROM_SIZE:
            self.stored = bytes(self.memory[:EEPROM_SIZE])
        if not was_on:
            self.motor.hold(self._shown)
            self._last_packet_s = self._now_s
        self.update_command()
        return 0

    def _refusal(self, address: int, data: bytes) -> int:
        end = address + len(data)
        if end > 230 or any(place in READ_ONLY for place in range(address, end)):
            return ACCESS_ERROR
        if address < EEPROM_SIZE and self.torque_on:
            return ACCESS_ERROR
        if self.watchdog_tripped and address < GOALS_END and end > GOALS:
            return RANGE_ERROR
        if address <= WATCHDOG < end and data[WATCHDOG - address] > 127:
            return RANGE_ERROR
        if address <= TORQUE < end and data[TORQUE - address]:
            if data[TORQUE - address] > 1:
                return RANGE_ERROR
            if self.memory[HARDWARE_ERROR] & self.memory[SHUTDOWN]:
                return RESULT_FAIL
        if address <= GOAL and end >= GOAL + 4 and self.memory[MODE] == POSITION_MODE:
            goal = int.from_bytes(data[GOAL - address : GOAL - address + 4], "little", signed=True)
            if not self._signed(MIN_ANGLE, 4) <= goal <= self._signed(MAX_ANGLE, 4):
                return LIMIT_ERROR
        return 0

    def update_command(self) -> None:
        mode = self.memory[MODE]
        moves = mode in (POSITION_MODE, EXTENDED_MODE, CURRENT_POSITION_MODE) and not self.watchdog_tripped
        duty = min(abs(self._signed(GOAL_PWM, 2)), self.get(PWM_LIMIT, 2)) / FULL_PWM
        if mode == CURRENT_POSITION_MODE:
            duty = min(duty, abs(self._signed(GOAL_CURRENT, 2)) / 1000.0 / self.motor.model.stall_current_a)
        self.command = Command(
            torque=self.memory[TORQUE],
            goal=float(self._signed(GOAL, 4)) if moves else self.motor.reference,
            max_speed=SPEED_COUNTS * self.get(VELOCITY, 4) or float("inf"),
            max_acceleration=ACCELERATION_COUNTS * self.get(ACCELERATION, 4) or float("inf"),
            kp=P_DUTY * self.get(P_GAIN, 2),
            kd=D_DUTY * self.get(D_GAIN, 2),
            duty_limit=min(duty, 1.0),
        )

    def watch(self, now_s: float, dt_s: float) -> None:
        self._now_s = now_s
        memory, supply_v = self.memory, self._supply_v
        if supply_v < BROWN_OUT * self.motor.model.nominal_v:
            self.brown_out(now_s)
            return
        watchdog_s = 0.02 * memory[WATCHDOG]
        if memory[TORQUE] and 0 < memory[WATCHDOG] < 128 and now_s - self._last_packet_s > watchdog_s:
            memory[WATCHDOG] = 255
            self.motor.hold(self._shown)  # brakes at once, whatever the profile
            self.update_command()
        heavy = abs(self.motor.duty) > OVERLOAD_DUTY
        self._overload_s = self._overload_s + dt_s if heavy else 0.0
        bits = 0
        if not self.get(MIN_VOLTAGE, 2) <= 10.0 * supply_v <= self.get(MAX_VOLTAGE, 2):
            bits |= VOLTAGE_BIT
        if self.motor.temperature_c > memory[MAX_TEMPERATURE]:
            bits |= HEAT_BIT
        if self._overload_s > OVERLOAD_S or self.active("overload", now_s) is not None:
            bits |= OVERLOAD_BIT
        if bits & ~memory[HARDWARE_ERROR]:
            self.hardware_error(bits)

    def present(self, joint_rad: float) -> float:
        counts = round(self.zero_count + self.direction * joint_rad * PER_RAD) - self._turn_shift
        return float(counts + self.offset)

    def publish(self) -> None:
        self.put(TICK, 2, int(1000.0 * self._now_s) % 32768)
        self.memory[MOVING] = int(abs(self._speed) > 10.0 * SPEED_COUNTS)
        self._write_signed(PWM, 2, round(FULL_PWM * self.motor.duty))
        amperes = self.motor.current_a if self.motor.duty >= 0 else -self.motor.current_a
        self._write_signed(CURRENT, 2, round(1000.0 * amperes))
        self._write_signed(SPEED, 4, round(self._speed / SPEED_COUNTS))
        self._write_signed(POSITION, 4, round(self._shown))
        self.put(VOLTAGE, 2, round(10.0 * self._supply_v))
        self.memory[TEMPERATURE] = min(255, round(self.motor.temperature_c))

    def _write_signed(self, address: int, width: int, value: int) -> None:
        self.memory[address : address + width] = value.to_bytes(width, "little", signed=True)
