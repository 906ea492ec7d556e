"""What every servo twin has, whatever it speaks: a memory with a stored part, an encoder, a motor, a script of faults.

A protocol's servo (`registers_sts`, `registers_dxl`) says where things stand in the memory and what a write does.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from real_robot.twin.faults import FaultScript
from real_robot.twin.motor import COUNTS_PER_RAD, COUNTS_PER_TURN, Command, Motor, MotorModel

BOOT_S = 0.25  # from power to the first answer
MEMORY_SIZE = 256


class ServoTwin(FaultScript, ABC):
    """One servo on a bus, moving one joint of a plant.

    joint: index in the plant. zero_count: what the encoder shows at joint angle 0. direction: +1 or -1, as it is
    mounted. defaults: address -> (width, value) as the servo leaves the shop.
    """

    eeprom_size: int  # the memory below this address survives a reboot

    def __init__(
        self,
        *,
        device_id: int,
        joint: int,
        clock: Callable[[], float],
        motor: MotorModel,
        defaults: Mapping[int, tuple[int, int]],
        zero_count: int = COUNTS_PER_TURN // 2,
        direction: int = 1,
    ) -> None:
        super().__init__(clock)
        self.joint, self.zero_count, self._mounted = joint, zero_count, direction
        self.motor = Motor(motor)
        self.memory = bytearray(MEMORY_SIZE)
        self._defaults = dict(defaults)
        self.command = Command()
        self.pending: tuple[int, bytes] | None = None  # of REG_WRITE
        self.held_reply: bytes | None = None  # of the fault `stale_reply`
        self.reboots = 0
        self._booted_s = -math.inf
        self._shown = 0.0
        self._speed = 0.0  # [count/s], signed as the counts
        self._supply_v = motor.nominal_v
        for address, (width, value) in self._defaults.items():
            self.put(address, width, value)
        self.device_id = device_id
        self.stored = bytes(self.memory[: self.eeprom_size])

    # memory

    def get(self, address: int, width: int) -> int:
        return int.from_bytes(self.memory[address : address + width], "little")

    def put(self, address: int, width: int, value: int) -> None:
        """Into the memory as it stands; says nothing to the motor."""
        self.memory[address : address + width] = value.to_bytes(width, "little")

    def read(self, address: int, size: int) -> bytes:
        """As a READ finds it: the present values are brought up to date first."""
        self.publish()
        return bytes(self.memory[address : address + size])

    @property
    def direction(self) -> int:
        """+1 or -1: counts against joint."""
        return self._mounted

    @property
    @abstractmethod
    def device_id(self) -> int: ...

    @device_id.setter
    @abstractmethod
    def device_id(self, value: int) -> None: ...

    @property
    @abstractmethod
    def baud(self) -> int: ...

    @property
    @abstractmethod
    def return_delay_s(self) -> float: ...

    @property
    @abstractmethod
    def torque_on(self) -> bool: ...

    @property
    @abstractmethod
    def error(self) -> int:
        """The bits that ride on every status packet."""
        ...

    @abstractmethod
    def write(self, address: int, data: bytes) -> int:
        """Carries out a WRITE. Returns an error code of the protocol, 0 if it was taken."""
        ...

    @abstractmethod
    def publish(self) -> None:
        """Writes the present values into the memory."""
        ...

    @abstractmethod
    def update_command(self) -> None:
        """Reads the memory into `command`."""
        ...

    @abstractmethod
    def watch(self, now_s: float, dt_s: float) -> None:
        """Protections and timers of the firmware, once a tick."""
        ...

    @abstractmethod
    def present(self, joint_rad: float) -> float:
        """Counts that the position register would show for a joint angle, before faults."""
        ...

    # time

    def brown_out(self, now_s: float) -> None:
        """The supply does not carry the firmware: one reboot, which lasts as long as the sag."""
        if now_s - self._booted_s > BOOT_S:
            self.reboot(now_s)
        self._booted_s = now_s

    def awake(self, at_s: float) -> bool:
        """Whether it hears and answers."""
        return at_s - self._booted_s >= BOOT_S and self.active("silent", at_s) is None

    def reboot(self, at_s: float | None = None) -> None:
        """Power off and on, now: volatile registers at their defaults, torque off, mute while it boots."""
        self.memory[self.eeprom_size :] = bytes(MEMORY_SIZE - self.eeprom_size)
        self.memory[: self.eeprom_size] = self.stored
        for address, (width, value) in self._defaults.items():
            if address >= self.eeprom_size:
                self.put(address, width, value)
        self.pending, self.held_reply = None, None
        self.reboots += 1
        self._booted_s = self._now() if at_s is None else at_s
        self.power_on()
        self.update_command()

    def power_on(self) -> None:
        """What the firmware sets by itself at power-on."""

    def step(self, now_s: float, dt_s: float, joint_rad: float, joint_rad_s: float, supply: float) -> float:
        """One tick of firmware and motor. Returns the torque on the joint [N m], in the joint's direction.

        supply: voltage as a share of the motor's nominal one.
        """
        self._supply_v = supply * self.motor.model.nominal_v
        self._speed = self.direction * joint_rad_s * COUNTS_PER_RAD
        if self.active("freeze", now_s) is None:
            jump_rad = (self.active("jump", now_s) or 0.0) / COUNTS_PER_RAD
            self._shown = self.present(joint_rad + self.direction * jump_rad)
        hot_c = self.active("heat", now_s)
        if hot_c is not None:
            self.motor.temperature_c = max(hot_c, self.motor.temperature_c)
        self.watch(now_s, dt_s)
        torque = self.motor.step(self.command, self._shown, self.direction * joint_rad_s, supply, dt_s)
        return self.direction * torque

    def place(self, joint_rad: float) -> None:
        """The joint stands here, at rest: encoder and profile agree with it."""
        self._shown = self.present(joint_rad)
        self._speed = 0.0
        self.motor.hold(self._shown)
