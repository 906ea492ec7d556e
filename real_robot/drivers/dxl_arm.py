"""Arms of Dynamixel X servos: Koch v1.1, WidowX-250s, ViperX-300s (second motors by shadow ID).

Special: these servos have a bus watchdog, so they stop by themselves 200 ms after the host fell silent; once it has
tripped, goals are read-only until an operator's reset. Two blocks a tick: 64..70 (torque, hardware error) and 98..146
(watchdog, limits, goal, everything present). A hardware error takes the torque away until the servo is rebooted.

A second motor does in RAM, in silence, what its first is told; EEPROM does not follow (e-manual, Secondary ID). So it
may stop following unseen: limits of its own, a reboot, a lost ID. It is therefore read every tick too, and whatever it
says becomes its joint's: silence, torque off, another goal, an error bit, or another position than the first motor's.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import nan

from real_robot.calibration import COUNTS_PER_RAD, ArmCalibration, JointCalibration
from real_robot.core.faults import FaultCode
from real_robot.core.types import ArmState
from real_robot.drivers.errors import BusError
from real_robot.drivers.servo import Block, Reading
from real_robot.drivers.servo_arm import ServoArm
from real_robot.protocols import dxl2
from real_robot.protocols.dxl2_table import (
    ACCELERATION_UNIT_RPM2,
    COUNTS_PER_TURN,
    HARDWARE_ERRORS,
    REGISTERS,
    VELOCITY_UNIT_RPM,
    WATCHDOG_TRIPPED,
)
from real_robot.protocols.rows import Status

SPEED_SHARE, ACCELERATION_SHARE = 1.15, 1.5
WATCHDOG = 10  # x 20 ms
FULL_PWM = 885
BOOT_S, BOOT_PATIENCE_S = 0.05, 2.0  # asked often: the others' watchdogs hear it
POSITION_MODES = (3, 5)  # position, current-based position
XL430 = 1060  # reports load where the others report current
CURRENT_UNIT_A = {1190: 1e-3, 1200: 1e-3, 1020: 2.69e-3, 1120: 2.69e-3}
ERROR_BYTE, TRIPPED_BIT, APART_BIT = 0xFF, 0x100, 0x200  # of `status`
APART_COUNTS = 34  # 3 degrees between two motors of one joint: more than gears' play
GOAL_APART_COUNTS = 2
MOST_OFFSET = 1024  # that a servo heeds in position mode
SETTLE_S = 0.02  # until a new offset shows in the position
_COUNTS_S = VELOCITY_UNIT_RPM * COUNTS_PER_TURN / 60.0
_COUNTS_S2 = ACCELERATION_UNIT_RPM2 * COUNTS_PER_TURN / 3600.0
_VOLATILE = ("bus_watchdog", "goal_pwm", "profile_acceleration", "profile_velocity")
_CODES = {
    0x01: FaultCode.VOLTAGE,
    0x04: FaultCode.OVER_TEMPERATURE,
    0x08: FaultCode.DEVICE,
    0x10: FaultCode.DEVICE,
    0x20: FaultCode.OVERLOAD,
}


class DxlArm(ServoArm):
    """See the module and `ServoArm`."""

    codec = dxl2
    registers = REGISTERS
    identity_size = 3
    blocks = (Block(start=64, size=7), Block(start=98, size=49))
    second_blocks = (Block(start=64, size=7), Block(start=116, size=31))

    def parse(self, device_id: int, *blocks: tuple[int, Status]) -> Reading:
        (guard_start, guard), (start, live), *second = blocks

        def value(name: str) -> int:
            return REGISTERS[name].find(live.data, start)

        torque = REGISTERS["torque_enable"].find(guard.data, guard_start)
        error = REGISTERS["hardware_error"].find(guard.data, guard_start)
        tripped = TRIPPED_BIT if value("bus_watchdog") == WATCHDOG_TRIPPED else 0
        models = self.servos[self.ids.index(device_id)].models
        unit_a = nan if XL430 in models else CURRENT_UNIT_A[min(models)]
        reading = Reading(
            count=value("present_position"),
            counts_s=_COUNTS_S * value("present_velocity"),
            goal_count=value("goal_position"),
            effort=value("present_pwm") / FULL_PWM,
            current_a=unit_a * value("present_current"),
            temperature_c=value("present_temperature"),
            voltage_v=0.1 * value("present_voltage"),
            torque_on=torque == 1,
            status=error | tripped,
            volatile={"torque_enable": torque} | {name: value(name) for name in _VOLATILE if not tripped},
        )
        for pair in zip(second[::2], second[1::2], strict=True):
            reading = _with_second(reading, *pair)
        return reading

    def resident(self, device_id: int) -> dict[str, int]:
        joint = self.spec.joints[self.ids.index(device_id)]
        speed = SPEED_SHARE * joint.max_velocity * COUNTS_PER_RAD
        return {
            "bus_watchdog": WATCHDOG,
            "goal_pwm": FULL_PWM,
            "profile_acceleration": round(ACCELERATION_SHARE * joint.max_acceleration * COUNTS_PER_RAD / _COUNTS_S2),
            "profile_velocity": round(speed / _COUNTS_S),
        }

    def limit_torque(self, device_id: int, share: float) -> None:
        self.put_volatile(device_id, {"goal_pwm": round(share * FULL_PWM)})

    def stored(self, joint: JointCalibration) -> dict[str, int]:
        return {
            "homing_offset": joint.homing_offset,
            "min_angle": joint.low_count,
            "max_angle": joint.high_count,
        }

    def misconfigured(self, device_id: int) -> list[str]:
        found = []
        if (mode := self.get(device_id, "mode")) not in POSITION_MODES:
            found.append(f"operating mode is {mode}, expected one of {list(POSITION_MODES)}")
        servo = self.servos[self.ids.index(device_id)]
        if (drive := self.get(device_id, "drive_mode") & 1) != servo.reversed:
            found.append(f"drive mode bit 0 is {drive}, expected {int(servo.reversed)}: its counts run the other way")
        position = self.get(device_id, "present_position")
        if not 0 <= position < COUNTS_PER_TURN:
            found.append(f"position {position} is outside one turn: reboot the servo, or `calibrate` again")
        return found + [text for i in servo.shadow_ids for text in self._second_misconfigured(device_id, i)]

    def _second_misconfigured(self, device_id: int, shadow_id: int) -> list[str]:
        """Why a second motor would not follow, or would pull against the first."""
        expected = {name: self.get(device_id, name) for name in ("mode", "min_angle", "max_angle")}
        expected |= {"shadow_id": device_id, "drive_mode": self.get(device_id, "drive_mode") ^ 1}
        seen = {name: self.get(shadow_id, name) for name in expected}
        found = [
            f"second motor {shadow_id}: {name} is {seen[name]}, expected {value}"
            for name, value in expected.items()
            if seen[name] != value
        ]
        apart = self.get(shadow_id, "present_position") - self.get(device_id, "present_position")
        if abs(apart) > APART_COUNTS:
            found.append(f"second motor {shadow_id} stands {apart} counts from the first; `calibrate` aligns them")
        return found

    def store(self, calibration: ArmCalibration) -> None:
        """Second motors get the same limits, and the homing offset that makes them show what the first one shows."""
        super().store(calibration)
        for servo in self.servos:
            for shadow_id in servo.shadow_ids:
                joint = self.joint(servo.device_id)
                self.clock.sleep_until(self.clock.now() + SETTLE_S)
                self.put(shadow_id, {"min_angle": joint.low_count, "max_angle": joint.high_count})
                ahead = self.get(shadow_id, "present_position") - self.get(servo.device_id, "present_position")
                offset = self.get(shadow_id, "homing_offset") - ahead
                if abs(offset) > MOST_OFFSET:
                    raise BusError(
                        f"second motor {shadow_id} of {self.names[servo.device_id]} stands {ahead} counts from the "
                        f"first: an offset of {offset} is beyond {MOST_OFFSET}, mount its horn anew"
                    )
                self.put(shadow_id, {"homing_offset": offset})

    def describe(self, status: int) -> list[tuple[FaultCode, str]]:
        found = [(code, HARDWARE_ERRORS[bit]) for bit, code in _CODES.items() if status & bit]
        if status & TRIPPED_BIT:
            found.append((FaultCode.DEVICE, "bus watchdog tripped: the servo heard nobody for 200 ms"))
        if status & APART_BIT:
            found.append((FaultCode.DEVICE, "its two motors show different positions: a slipped horn or an offset"))
        return found

    def write_goals(self, counts: Mapping[int, int]) -> None:
        row = REGISTERS["goal_position"]
        self.bus.sync_write(row.address, {device_id: row.pack(count) for device_id, count in counts.items()})

    def recover(self, state: ArmState) -> None:
        """Opens tripped watchdogs and at once puts goal := present; reboots servos with a hardware error."""
        if any(status & TRIPPED_BIT for status in state.status_J):
            self.bus.sync_write(98, {i: b"\x00" for servo in self.servos for i in servo.motors})
            self._stand_at(state.q_J)
        for servo, status in zip(self.servos, state.status_J, strict=True):
            for device_id in servo.motors if status & ERROR_BYTE else ():
                if self.get(device_id, "hardware_error"):
                    self._reboot(device_id)

    def _reboot(self, device_id: int) -> None:
        self.bus.send(dxl2.reboot(device_id))
        give_up_s = self.clock.now() + BOOT_PATIENCE_S
        while self.clock.now() < give_up_s:
            self.clock.sleep_until(self.clock.now() + BOOT_S)
            if self.bus.ping(device_id, data_size=self.identity_size):
                return
        raise BusError(f"servo {device_id} did not come back from its reboot")

    def open_eeprom(self, device_id: int) -> None:
        """X servos have no lock: EEPROM is open while their torque is off."""

    def close_eeprom(self, device_id: int) -> None: ...


def _with_second(first: Reading, guard: tuple[int, Status], live: tuple[int, Status]) -> Reading:
    """The joint's reading, with what its second motor says where that is worse."""

    def value(name: str, block: tuple[int, Status]) -> int:
        return REGISTERS[name].find(block[1].data, block[0])

    goal = value("goal_position", live)
    apart = abs(value("present_position", live) - first.count) > APART_COUNTS
    return replace(
        first,
        goal_count=goal if abs(goal - first.goal_count) > GOAL_APART_COUNTS else first.goal_count,
        temperature_c=max(first.temperature_c, value("present_temperature", live)),
        torque_on=first.torque_on and value("torque_enable", guard) == 1,
        status=first.status | value("hardware_error", guard) | (APART_BIT if apart else 0),
    )
