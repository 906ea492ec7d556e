"""Radians to lerobot's numbers and back: degrees, -100..100, 0..100.

What is special: lerobot's zero is not an angle of ours. Its numbers count from the middle or the ends of the calibrated
travel, so both directions go through encoder counts, and a policy trained on lerobot data moves our arm to the same
counts. Written to agree with `_normalize` and `_unnormalize` of lerobot 0.6.1, its oddities included: degrees use 4095
counts a turn and ignore the drive mode, and what is sent is cut towards zero (up to one count, 0.09 degrees).
"""

from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from real_robot.calibration import COUNTS_PER_RAD, COUNTS_PER_TURN, ArmCalibration, JointCalibration
from real_robot.core.types import Array
from vla.core.errors import unknown_name

_DEGREES_PER_COUNT = 360.0 / (COUNTS_PER_TURN - 1)


class Unit(StrEnum):
    """How lerobot writes a joint's position."""

    DEGREES = "degrees"  # from the middle of the travel
    PLUS_MINUS_100 = "plus_minus_100"  # the ends of the travel are -100 and 100
    PERCENT = "percent"  # the ends of the travel are 0 and 100


class LerobotUnits:
    """Converts positions of one arm; arrays are in the order of the calibration's joints.

    Args:
        calibration: of the arm.
        units: by joint; those that are not named are in degrees. SO arms: {"gripper": Unit.PERCENT}.
        apply_drive_mode: as the family's bus in lerobot has it: True for Feetech, False for Dynamixel.
    """

    def __init__(
        self, calibration: ArmCalibration, units: Mapping[str, Unit], *, apply_drive_mode: bool = True
    ) -> None:
        self.names = tuple(calibration.joints)
        for name in units:
            if name not in self.names:
                raise unknown_name("joint", name, self.names)
        self._joints = tuple(calibration.joints.values())
        self._units = [units.get(name, Unit.DEGREES) for name in self.names]
        self._flipped = [apply_drive_mode and joint.direction < 0 for joint in self._joints]

    def from_rad(self, q_J: Array) -> Array:
        """(J,) rad -> (J,) lerobot's numbers."""
        counts_J = [
            joint.zero_count + joint.direction * q * COUNTS_PER_RAD
            for joint, q in zip(self._joints, q_J.tolist(), strict=True)
        ]
        return self.from_counts(np.array(counts_J))

    def to_rad(self, values_J: Array) -> Array:
        """(J,) lerobot's numbers -> (J,) rad, before any rounding to counts; numbers past an end mean the end."""
        rows = zip(self._joints, self.to_counts(values_J).tolist(), strict=True)
        return np.array([joint.to_rad(count) for joint, count in rows])

    def from_counts(self, counts_J: Array) -> Array:
        """What lerobot reports at these counts (`_normalize`)."""
        rows = zip(self._joints, self._units, self._flipped, counts_J.tolist(), strict=True)
        return np.array([_from_count(joint, unit, flipped, count) for joint, unit, flipped, count in rows])

    def to_counts(self, values_J: Array) -> Array:
        """What lerobot would send for these numbers (`_unnormalize`), before it cuts off the fraction."""
        rows = zip(self._joints, self._units, self._flipped, values_J.tolist(), strict=True)
        return np.array([_to_count(joint, unit, flipped, value) for joint, unit, flipped, value in rows])


def _from_count(joint: JointCalibration, unit: Unit, flipped: bool, count: float) -> float:
    low, high = joint.low_count, joint.high_count
    if unit == Unit.DEGREES:
        return (count - 0.5 * (low + high)) * _DEGREES_PER_COUNT
    share = (min(max(count, low), high) - low) / (high - low)
    share = 1.0 - share if flipped else share
    return 100.0 * share if unit == Unit.PERCENT else 200.0 * share - 100.0


def _to_count(joint: JointCalibration, unit: Unit, flipped: bool, value: float) -> float:
    low, high = joint.low_count, joint.high_count
    if unit == Unit.DEGREES:
        return value / _DEGREES_PER_COUNT + 0.5 * (low + high)
    share = value / 100.0 if unit == Unit.PERCENT else (value + 100.0) / 200.0
    share = 1.0 - share if flipped else share
    return low + min(max(share, 0.0), 1.0) * (high - low)
