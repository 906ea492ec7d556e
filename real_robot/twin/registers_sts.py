"""A Feetech STS3215 behind its memory table: what each register does.

Simulated: position mode with profile, gains, torque and angle limits; homing offset and multi-turn bit; EEPROM lock;
response level; overload, temperature, voltage and current protection; brown-out. Not simulated: modes 1 to 3 (the
motor holds), the integral gain, start force, dead zones, speed units other than one count per second.
"""

from real_robot.twin.motor import COUNTS_PER_RAD, COUNTS_PER_TURN, Command
from real_robot.twin.servo import ServoTwin

ID, BAUD, RETURN_DELAY, RESPONSE_LEVEL = 5, 6, 7, 8
MIN_ANGLE, MAX_ANGLE, MAX_TEMPERATURE, MAX_VOLTAGE, MIN_VOLTAGE, MAX_TORQUE = 9, 11, 13, 14, 15, 16
PHASE, UNLOAD, P_GAIN, D_GAIN, PROTECTION_CURRENT, OFFSET, MODE = 18, 19, 21, 22, 28, 31, 33
PROTECTIVE_TORQUE, PROTECTION_TIME, OVERLOAD_TORQUE, CURRENT_TIME = 34, 35, 36, 38
TORQUE, ACCELERATION, GOAL, GOAL_SPEED, TORQUE_LIMIT, LOCK = 40, 41, 42, 46, 48, 55
POSITION, SPEED, LOAD, VOLTAGE, TEMPERATURE, STATUS, MOVING, CURRENT = 56, 58, 60, 62, 63, 65, 66, 69
SET_MIDDLE = 128  # written to TORQUE: the present position becomes 2048
EEPROM_SIZE = 40

READ_ONLY = {0, 1, 3, 4, *range(56, 71)}
BAUDS = (1_000_000, 500_000, 250_000, 128_000, 115_200, 76_800, 57_600, 38_400)
VOLTAGE_BIT, TEMPERATURE_BIT, CURRENT_BIT, OVERLOAD_BIT = 1, 4, 8, 32

# address: (bytes, value) as it leaves the shop, for 12 V
SHOP = {
    **{0: (1, 3), 1: (1, 10), 3: (2, 777), ID: (1, 1), BAUD: (1, 0), RETURN_DELAY: (1, 0), RESPONSE_LEVEL: (1, 1)},
    **{MIN_ANGLE: (2, 0), MAX_ANGLE: (2, 4095), MAX_TEMPERATURE: (1, 70), MAX_VOLTAGE: (1, 140), MIN_VOLTAGE: (1, 40)},
    **{MAX_TORQUE: (2, 1000), PHASE: (1, 12), UNLOAD: (1, 44), 20: (1, 47), P_GAIN: (1, 32), D_GAIN: (1, 32)},
    **{24: (2, 16), 26: (1, 1), 27: (1, 1), PROTECTION_CURRENT: (2, 500), PROTECTIVE_TORQUE: (1, 20)},
    **{
        PROTECTION_TIME: (1, 200),
        OVERLOAD_TORQUE: (1, 80),
        CURRENT_TIME: (1, 200),
        TORQUE_LIMIT: (2, 1000),
        LOCK: (1, 1),
    },
    **{80: (1, 20), 81: (1, 1), 82: (1, 1), 84: (1, 80), 85: (1, 0)},
}

BROWN_OUT_V = 3.8
# Duty per count and per unit of the gain, and the same for the speed: 17.8 N m/rad at a P gain of 16, which is the
# stiffness that the published SO-101 model was identified with.
P_DUTY = 17.8 / 16 / 2.94 / COUNTS_PER_RAD
D_DUTY = 0.17 / 32 / COUNTS_PER_RAD
SATURATED_SPEED = 0x7FFF


class StsServo(ServoTwin):
    """See the module."""

    eeprom_size = EEPROM_SIZE
    _overload_s = 0.0
    _overcurrent_s = 0.0
    _status = 0
    _relaxed = False  # overload protection has cut the output

    @property
    def device_id(self) -> int:
        return self.memory[ID]

    @device_id.setter
    def device_id(self, value: int) -> None:
        self.memory[ID] = value

    @property
    def baud(self) -> int:
        return BAUDS[self.memory[BAUD] & 7]

    @property
    def return_delay_s(self) -> float:
        return 2e-6 * self.memory[RETURN_DELAY]

    @property
    def torque_on(self) -> bool:
        return self.memory[TORQUE] == 1

    @property
    def eeprom_open(self) -> bool:
        """Whether EEPROM writes would survive a reboot."""
        return self.memory[LOCK] == 0

    @property
    def error(self) -> int:
        return self._status

    @property
    def offset(self) -> int:
        """Homing offset [count]: present = actual - offset."""
        raw = self.get(OFFSET, 2)
        return -(raw & 0x7FF) if raw & 0x800 else raw & 0x7FF

    def power_on(self) -> None:
        self.memory[TORQUE_LIMIT : TORQUE_LIMIT + 2] = self.memory[MAX_TORQUE : MAX_TORQUE + 2]
        self.put(GOAL, 2, _magnitude(self._shown, 15))
        self._overload_s, self._overcurrent_s, self._relaxed, self._status = 0.0, 0.0, False, 0

    def write(self, address: int, data: bytes) -> int:
        """STS takes every write in silence; what is read-only stays as it is."""
        for index, byte in enumerate(data):
            if address + index not in READ_ONLY and address + index < len(self.memory):
                self.memory[address + index] = byte
        if address <= TORQUE < address + len(data):
            self._switch(data[TORQUE - address])
        if self.eeprom_open and address < EEPROM_SIZE:
            self.stored = bytes(self.memory[:EEPROM_SIZE])
        self.update_command()
        return 0

    def _switch(self, value: int) -> None:
        if value == SET_MIDDLE:
            shift = (round(self._shown) + self.offset - 2048 + 2047) % COUNTS_PER_TURN - 2047
            self.put(OFFSET, 2, abs(min(shift, 2047)) | (0x800 if shift < 0 else 0))
            self.stored = self.stored[:OFFSET] + self.memory[OFFSET : OFFSET + 2] + self.stored[OFFSET + 2 :]
            self._shown = 2048.0
            self.memory[TORQUE] = int(self.command.torque)
        self._overload_s, self._relaxed = 0.0, False
        if self.command.torque != 1:
            self.motor.hold(self._shown)

    def update_command(self) -> None:
        goal = _signed(self.get(GOAL, 2), 15)
        if not self.memory[PHASE] & 0x10:
            goal = min(max(goal, self.get(MIN_ANGLE, 2)), self.get(MAX_ANGLE, 2))
        speed = abs(_signed(self.get(GOAL_SPEED, 2), 15))
        torque = self.memory[TORQUE]
        self.command = Command(
            torque=torque if torque in (0, 1, 2) else 0,
            goal=goal if self.memory[MODE] == 0 else self.motor.reference,
            max_speed=speed or float(SATURATED_SPEED),
            max_acceleration=100.0 * self.memory[ACCELERATION] or float("inf"),
            kp=P_DUTY * self.memory[P_GAIN],
            kd=D_DUTY * self.memory[D_GAIN],
            duty_limit=self._duty_limit(),
        )

    def _duty_limit(self) -> float:
        limit = min(self.get(TORQUE_LIMIT, 2), 1000) / 1000.0
        return min(limit, self.memory[PROTECTIVE_TORQUE] / 100.0) if self._relaxed else limit

    def watch(self, now_s: float, dt_s: float) -> None:
        memory = self.memory
        if self._supply_v < BROWN_OUT_V:
            self.brown_out(now_s)
            return
        heavy = abs(self.motor.duty) * 100.0 > memory[OVERLOAD_TORQUE]
        forced = self.active("overload", now_s) is not None
        self._overload_s = self._overload_s + dt_s if heavy else 0.0
        heavy = self.motor.current_a > 0.0065 * self.get(PROTECTION_CURRENT, 2)
        self._overcurrent_s = self._overcurrent_s + dt_s if heavy else 0.0
        if not self._relaxed and (forced or self._overload_s > 0.01 * memory[PROTECTION_TIME]):
            self._relaxed = True
            self.update_command()
        volts, status = 10.0 * self._supply_v, OVERLOAD_BIT if self._relaxed or forced else 0
        status |= 0 if memory[MIN_VOLTAGE] <= volts <= memory[MAX_VOLTAGE] else VOLTAGE_BIT
        status |= TEMPERATURE_BIT if self.motor.temperature_c > memory[MAX_TEMPERATURE] else 0
        status |= CURRENT_BIT if self._overcurrent_s > 0.01 * memory[CURRENT_TIME] else 0
        self._status = status
        # an overload falls back to the protective torque; the other faults of the mask let go of the arm
        if self.command.torque and status & ~OVERLOAD_BIT & memory[UNLOAD]:
            memory[TORQUE] = 0
            self.update_command()

    def present(self, joint_rad: float) -> float:
        counts = round(self.zero_count + self.direction * joint_rad * COUNTS_PER_RAD) - self.offset
        return float(counts if self.memory[PHASE] & 0x10 else counts % COUNTS_PER_TURN)

    def publish(self) -> None:
        self.put(POSITION, 2, _magnitude(self._shown, 15))
        self.put(SPEED, 2, _magnitude(self._speed, 15))
        self.put(LOAD, 2, _magnitude(1000.0 * self.motor.duty, 10))
        self.memory[VOLTAGE] = min(255, round(10.0 * self._supply_v))
        self.memory[TEMPERATURE] = min(255, round(self.motor.temperature_c))
        self.memory[STATUS] = self._status
        self.memory[MOVING] = int(abs(self._speed) > 20.0)
        self.put(CURRENT, 2, round(self.motor.current_a / 0.0065))


def _signed(raw: int, bit: int) -> int:
    return -(raw & (1 << bit) - 1) if raw & 1 << bit else raw & (1 << bit) - 1


def _magnitude(value: float, bit: int) -> int:
    size = min(round(abs(value)), (1 << bit) - 1)
    return size | 1 << bit if value < 0 and size else size
