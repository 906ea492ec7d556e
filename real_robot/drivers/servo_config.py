"""The still half of a servo arm: its registers, who is there, calibration, resident limits. No motion here.

EEPROM is written in `store` alone, which refuses while any torque is on. Resident limits are volatile registers: the
servo keeps them when the host dies, and loses them when its own supply does, which the register shadow sees.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from real_robot.calibration import ArmCalibration, JointCalibration, narrowed
from real_robot.core.types import ArmSpec, Clock
from real_robot.drivers.bus import SLACK_S, Bus, Codec
from real_robot.drivers.errors import BusError, CalibrationMismatchError
from real_robot.drivers.identify import identify
from real_robot.drivers.register_shadow import RegisterShadow
from real_robot.drivers.servo import Servo
from real_robot.protocols.rows import Register
from real_robot.transports import Transport
from vla.core.errors import SpecMismatchError


class ServoConfig(ABC):
    """Registers of the servos of one arm.

    Args:
        spec: limits and rates; `self.spec` is it narrowed to the calibrated travel.
        servos: in the order of the joints.
        calibration: what the servos' EEPROM must say.
        open_port: opens the transport; called by each `connect`.
        clock: the daemon's.
        baud: of the bus.
        slack_s: patience for an answer beyond the time of its bytes; more for an adapter that hoards them.
    """

    codec: Codec
    registers: Mapping[str, Register]
    identity_size = 0  # data bytes of an answer to PING

    def __init__(
        self,
        spec: ArmSpec,
        servos: Sequence[Servo],
        calibration: ArmCalibration,
        *,
        open_port: Callable[[], Transport],
        clock: Clock,
        baud: int = 1_000_000,
        slack_s: float = SLACK_S,
    ) -> None:
        if len(servos) != len(spec.joints) or tuple(calibration.joints) != spec.names:
            raise SpecMismatchError(
                f"{spec.name}: {len(servos)} servos and calibrated joints {list(calibration.joints)}, "
                f"expected {list(spec.names)}"
            )
        self.spec, self.servos, self.calibration = narrowed(spec, calibration), tuple(servos), calibration
        self.ids = [servo.device_id for servo in servos]
        self.names = dict(zip(self.ids, spec.names, strict=True))
        self.clock, self._open_port, self._baud, self._slack_s = clock, open_port, baud, slack_s
        self.shadow = RegisterShadow()
        self._bus: Bus | None = None

    @property
    def bus(self) -> Bus:
        """The open bus. Raises BusError before `open`."""
        if self._bus is None:
            raise BusError(f"{self.spec.name} is not connected")
        return self._bus

    def open(self) -> None:
        """Opens the port and finds out whether the adapter echoes. Asks nothing of the servos."""
        self.close()
        self._bus = Bus(self._open_port(), self.codec, self.clock, baud=self._baud, slack_s=self._slack_s)
        self._bus.probe_echo(self.ids[0])

    def close(self) -> None:
        """Lets go of the port."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None

    def check_identity(self) -> None:
        """Raises IdentityError."""
        identify(self.bus, self.servos, self.registers, self.identity_size).check(self.names)

    def joint(self, device_id: int) -> JointCalibration:
        return self.calibration.joints[self.names[device_id]]

    def get(self, device_id: int, name: str) -> int:
        """One register by its name. Raises BusError."""
        row = self.registers[name]
        return row.unpack(self.bus.read(device_id, row.address, row.width).data)

    def put(self, device_id: int, values: Mapping[str, int]) -> None:
        """Writes registers that differ, one by one, and reads them back. Raises BusError when one is not taken."""
        for name, value in values.items():
            row = self.registers[name]
            if self.get(device_id, name) == value:
                continue
            self.bus.write(device_id, row.address, row.pack(value))
            if (seen := self.get(device_id, name)) != value:
                raise BusError(f"servo {device_id}: {name} is {seen} after {value} was written")

    def put_volatile(self, device_id: int, values: Mapping[str, int]) -> None:
        """`put`, also for the second motors of a joint; the shadow watches the values from now on."""
        self.shadow.expect(device_id, values)
        self.put(device_id, values)
        for shadow_id in self.servos[self.ids.index(device_id)].shadow_ids:
            self.put(shadow_id, values)

    def write_resident(self) -> None:
        """The limits that survive us: speed, acceleration, torque."""
        for device_id in self.ids:
            self.put_volatile(device_id, self.resident(device_id))

    def check_calibration(self) -> None:
        """Raises CalibrationMismatchError with every difference between the file and the servos."""
        lines = []
        for device_id, name in self.names.items():
            for register, value in self.stored(self.joint(device_id)).items():
                seen = self.get(device_id, register)
                if seen != value:
                    lines.append(f"{name} (servo {device_id}): {register} is {seen}, the file says {value}")
            lines += [f"{name} (servo {device_id}): {text}" for text in self.misconfigured(device_id)]
        if lines:
            raise CalibrationMismatchError(
                "no torque: the servos do not hold this calibration. Another arm's file, or `calibrate` again:\n  "
                + "\n  ".join(lines)
            )

    def store(self, calibration: ArmCalibration) -> None:
        """Writes a calibration into the servos where it differs, all torque being off."""
        for device_id in (motor for servo in self.servos for motor in servo.motors):
            if self.get(device_id, "torque_enable"):
                raise BusError(f"servo {device_id} has torque on: a calibration is stored into a limp arm only")
        self.calibration = calibration
        for device_id in self.ids:
            self.open_eeprom(device_id)
            try:
                self.put(device_id, self.stored(self.joint(device_id)))
            finally:
                self.close_eeprom(device_id)

    # what a family of servos says

    @abstractmethod
    def resident(self, device_id: int) -> dict[str, int]:
        """Volatile registers with the limits that the servo itself keeps."""
        ...

    @abstractmethod
    def stored(self, joint: JointCalibration) -> dict[str, int]:
        """EEPROM registers of a calibration."""
        ...

    @abstractmethod
    def misconfigured(self, device_id: int) -> list[str]:
        """What else is stored wrongly, with the fix."""
        ...

    @abstractmethod
    def open_eeprom(self, device_id: int) -> None:
        """Makes the next EEPROM writes survive."""
        ...

    @abstractmethod
    def close_eeprom(self, device_id: int) -> None: ...
