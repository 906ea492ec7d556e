"""Arms of Feetech STS servos: SO-100, SO-101, followers and leaders alike.

Special: STS has no bus watchdog, so what survives the host is in the servo: angle limits (stored), and speed,
acceleration and torque limit (volatile, read back in every tick with the goal). One block of 31 bytes a servo, 40..70,
holds all that is known about it: 2.4 ms of wire for six.
"""

from collections.abc import Mapping

from real_robot.calibration import COUNTS_PER_RAD, JointCalibration
from real_robot.core.faults import FaultCode
from real_robot.core.types import ArmState
from real_robot.drivers.servo import Block, Reading
from real_robot.drivers.servo_arm import ServoArm
from real_robot.protocols import sts
from real_robot.protocols.rows import Status
from real_robot.protocols.sts_table import MULTI_TURN_BIT, REGISTERS

SPEED_SHARE, ACCELERATION_SHARE = 1.15, 1.5  # of the specification: the filter leads, the servo's limit is the net
FULL_TORQUE = 1000
CURRENT_UNIT_A = 6.5e-3
POSITION_MODE = 0
_VOLATILE = ("torque_enable", "acceleration", "goal_speed", "torque_limit", "lock")
_CODES = {
    0x01: FaultCode.VOLTAGE,
    0x02: FaultCode.DEVICE,
    0x04: FaultCode.OVER_TEMPERATURE,
    0x08: FaultCode.OVERLOAD,
    0x20: FaultCode.OVERLOAD,
}


class StsArm(ServoArm):
    """See the module and `ServoArm`."""

    codec = sts
    registers = REGISTERS
    blocks = (Block(start=40, size=31),)

    def parse(self, device_id: int, *blocks: tuple[int, Status]) -> Reading:
        ((start, status),) = blocks

        def value(name: str) -> int:
            return REGISTERS[name].find(status.data, start)

        return Reading(
            count=value("present_position"),
            counts_s=value("present_speed"),
            goal_count=value("goal_position"),
            effort=value("present_load") / 1000.0,
            current_a=CURRENT_UNIT_A * value("present_current"),
            temperature_c=value("present_temperature"),
            voltage_v=0.1 * value("present_voltage"),
            torque_on=value("torque_enable") == 1,
            status=status.error | value("status"),
            volatile={name: value(name) for name in _VOLATILE},
        )

    def resident(self, device_id: int) -> dict[str, int]:
        joint = self.spec.joints[self.ids.index(device_id)]
        return {
            "lock": 1,
            "acceleration": min(254, round(ACCELERATION_SHARE * joint.max_acceleration * COUNTS_PER_RAD / 100.0)),
            "goal_speed": round(SPEED_SHARE * joint.max_velocity * COUNTS_PER_RAD),
            "torque_limit": FULL_TORQUE,
        }

    def limit_torque(self, device_id: int, share: float) -> None:
        self.put_volatile(device_id, {"torque_limit": round(share * FULL_TORQUE)})

    def stored(self, joint: JointCalibration) -> dict[str, int]:
        return {
            "homing_offset": joint.homing_offset,
            "min_angle": joint.low_count,
            "max_angle": joint.high_count,
        }

    def misconfigured(self, device_id: int) -> list[str]:
        found = []
        if self.get(device_id, "phase") & MULTI_TURN_BIT:
            found.append("phase bit 4 is set: positions leave 0..4095. Fix: clear it (`calibrate` does)")
        if (mode := self.get(device_id, "mode")) != POSITION_MODE:
            found.append(f"mode is {mode}, expected 0 (position)")
        position = self.get(device_id, "present_position")
        if not 0 <= position < 4096:
            found.append(f"position {position} is outside 0..4095")
        return found

    def describe(self, status: int) -> list[tuple[FaultCode, str]]:
        return [(code, sts.STATUS_BITS[bit]) for bit, code in _CODES.items() if status & bit]

    def write_goals(self, counts: Mapping[int, int]) -> None:
        row = REGISTERS["goal_position"]
        self.bus.sync_write(row.address, {device_id: row.pack(count) for device_id, count in counts.items()})

    def recover(self, state: ArmState) -> None:
        """An overload ends when torque is written again: only where it is on, and with goal := present."""
        self._stand_at(state.q_J)
        row = REGISTERS["torque_enable"]
        for device_id, on, status in zip(self.ids, state.torque_on_J, state.status_J, strict=True):
            if on and status:
                self.bus.write(device_id, row.address, row.pack(1))

    def open_eeprom(self, device_id: int) -> None:
        self.put(device_id, {"lock": 0})
        phase = self.get(device_id, "phase")
        self.put(device_id, {"phase": phase & ~MULTI_TURN_BIT})

    def close_eeprom(self, device_id: int) -> None:
        self.put(device_id, {"lock": 1})
