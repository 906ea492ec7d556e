"""Which encoder count is which angle: sweep first, home second; files of ours and of lerobot.

What is special: the hand moves each joint through its whole travel *before* anything is written, and the counts are
unwrapped by adding up shortest differences. Only then is the homing offset chosen, such that the middle of the travel
shows 2048 and the encoder's wrap lies opposite. Homing first, as usual elsewhere, goes wrong for every joint whose
travel crosses the wrap. Nothing here talks to a servo; `drivers.servo_arm.store` writes the result.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import tau
from pathlib import Path

from real_robot.core.types import ArmSpec
from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError, SpecMismatchError

COUNTS_PER_TURN = 4096
COUNTS_PER_RAD = COUNTS_PER_TURN / tau
MIDDLE = 2048
MAX_OFFSET = 2047
LEAST_SHARE, MOST_SHARE = 0.8, 1.25  # of the travel that the arm's specification expects


class CalibrationError(GrasplineError):
    """A sweep that cannot be right; the message names the joint and what to do."""


@dataclass(frozen=True, kw_only=True)
class JointCalibration:
    """One joint, in counts of the present-position register once the homing offset is stored in the servo.

    zero_count  shown at joint angle 0
    direction   +1, or -1 where counts fall as the angle grows
    """

    device_id: int
    homing_offset: int = 0
    low_count: int = 0
    high_count: int = COUNTS_PER_TURN - 1
    zero_count: float = MIDDLE
    direction: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.low_count < self.high_count < COUNTS_PER_TURN:
            raise CalibrationError(
                f"servo {self.device_id}: travel {self.low_count}..{self.high_count} is not inside "
                f"0..{COUNTS_PER_TURN - 1}; it crosses the encoder's wrap, calibrate again"
            )
        if abs(self.homing_offset) > MAX_OFFSET:
            raise CalibrationError(f"servo {self.device_id}: homing offset {self.homing_offset} is beyond {MAX_OFFSET}")
        if self.direction not in (-1, 1):
            raise CalibrationError(f"servo {self.device_id}: direction is {self.direction}, expected 1 or -1")

    def to_rad(self, count: float) -> float:
        return self.direction * (count - self.zero_count) / COUNTS_PER_RAD

    def to_count(self, angle_rad: float) -> int:
        """The nearest count inside the calibrated travel."""
        count = round(self.zero_count + self.direction * angle_rad * COUNTS_PER_RAD)
        return min(max(count, self.low_count), self.high_count)


@dataclass(frozen=True, kw_only=True)
class ArmCalibration:
    """The joints of one arm, in the order of its specification."""

    arm: str
    joints: Mapping[str, JointCalibration]

    @property
    def sha256(self) -> str:
        """Of its content; goes into every dataset that is recorded with it."""
        return hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(self._plain(), indent=1)

    def _plain(self) -> dict[str, object]:
        return {"arm": self.arm, "joints": {name: asdict(joint) for name, joint in self.joints.items()}}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json() + "\n")

    @staticmethod
    def load(path: Path) -> "ArmCalibration":
        """Raises MissingAssetError without the file, CorruptFileError when it is not one of ours."""
        if not path.is_file():
            raise MissingAssetError(f"{path}: no such calibration; make it with `python -m scripts.robot calibrate`")
        try:
            data = json.loads(path.read_text())
            joints = {name: JointCalibration(**fields) for name, fields in data["joints"].items()}
            return ArmCalibration(arm=data["arm"], joints=joints)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptFileError(f"{path}: not a calibration ({error})") from error

    def to_lerobot(self) -> str:
        """The JSON that lerobot keeps for a robot's id."""
        rows = {
            name: {
                "id": joint.device_id,
                "drive_mode": int(joint.direction < 0),
                "homing_offset": joint.homing_offset,
                "range_min": joint.low_count,
                "range_max": joint.high_count,
            }
            for name, joint in self.joints.items()
        }
        return json.dumps(rows, indent=4)

    @staticmethod
    def from_lerobot(text: str, spec: ArmSpec) -> "ArmCalibration":
        """Lerobot's file knows no angle zero: the middle of the travel is taken for the middle of the specification."""
        try:
            rows = json.loads(text)
            joints = {
                name: _joint(
                    spec,
                    name,
                    device_id=rows[name]["id"],
                    homing_offset=rows[name]["homing_offset"],
                    low_count=rows[name]["range_min"],
                    high_count=rows[name]["range_max"],
                    direction=-1 if rows[name]["drive_mode"] else 1,
                )
                for name in spec.names
            }
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptFileError(f"not a lerobot calibration of {spec.name}: {error!r}") from error
        return ArmCalibration(arm=spec.name, joints=joints)


def uncalibrated(spec: ArmSpec) -> ArmCalibration:
    """Servos 1, 2, ... in the order of the joints, whole turns: to talk to an arm before its first calibration."""
    joints = {name: JointCalibration(device_id=i) for i, name in enumerate(spec.names, start=1)}
    return ArmCalibration(arm=spec.name, joints=joints)


def narrowed(spec: ArmSpec, calibration: ArmCalibration) -> ArmSpec:
    """The specification with its position limits inside the calibrated travel: beyond it a servo clips the goal."""
    joints = []
    for limits in spec.joints:
        joint = calibration.joints[limits.name]
        ends_rad = sorted((joint.to_rad(joint.low_count), joint.to_rad(joint.high_count)))
        joints.append(replace(limits, low=max(limits.low, ends_rad[0]), high=min(limits.high, ends_rad[1])))
    return replace(spec, joints=tuple(joints))


class Sweep:
    """Follows present-position counts while a hand moves the limp joints. `update` with each reading."""

    def __init__(self) -> None:
        self._last: list[int] | None = None
        self.travelled: list[int] = []  # unwrapped, from the first reading on
        self.low: list[int] = []
        self.high: list[int] = []
        self.first: list[int] = []

    def update(self, counts: Sequence[int]) -> None:
        """Readings must come often enough that no joint moves by half a turn in between."""
        if self._last is None:
            self.first = list(counts)
            self.travelled, self.low, self.high = ([0] * len(counts) for _ in range(3))
        else:
            for j, (before, now) in enumerate(zip(self._last, counts, strict=True)):
                step = (now - before + MIDDLE) % COUNTS_PER_TURN - MIDDLE
                self.travelled[j] += step
                self.low[j] = min(self.low[j], self.travelled[j])
                self.high[j] = max(self.high[j], self.travelled[j])
        self._last = list(counts)

    def span_rad(self) -> list[float]:
        return [(high - low) / COUNTS_PER_RAD for low, high in zip(self.low, self.high)]


def finish_sweep(
    sweep: Sweep,
    spec: ArmSpec,
    *,
    device_ids: Sequence[int],
    offsets: Sequence[int],
    directions: Sequence[int] | None = None,
    offset_sign: int = -1,
) -> ArmCalibration:
    """The calibration that a sweep shows.

    Args:
        sweep: with the travel of every joint.
        spec: of the arm; its limits say how far each joint should have gone.
        device_ids: in the order of the joints, as everything here.
        offsets: homing offsets that the servos held during the sweep.
        directions: +1 or -1, from one known motion (`direction_of`).
        offset_sign: -1 where present = actual - offset (Feetech), +1 where it is added (Dynamixel).

    Raises:
        CalibrationError: too little travel, too much, or two joints that look exchanged.
    """
    if len(sweep.low) != len(spec.joints):
        raise SpecMismatchError(f"the sweep has {len(sweep.low)} joints, {spec.name} has {len(spec.joints)}")
    _check_spans(sweep.span_rad(), spec)
    joints = {}
    for j, name in enumerate(spec.names):
        middle = sweep.first[j] + (sweep.low[j] + sweep.high[j]) // 2
        actual = middle - offset_sign * offsets[j]  # what the encoder itself shows there
        offset = _folded(offset_sign * (MIDDLE - actual))
        span = sweep.high[j] - sweep.low[j]
        joints[name] = _joint(
            spec,
            name,
            device_id=device_ids[j],
            homing_offset=offset,
            low_count=MIDDLE - span // 2,
            high_count=MIDDLE - span // 2 + span,
            direction=1 if directions is None else directions[j],
        )
    return ArmCalibration(arm=spec.name, joints=joints)


def direction_of(before: int, after: int) -> int:
    """+1 or -1 from one motion that is known to be positive. Raises CalibrationError when it hardly moved."""
    step = (after - before + MIDDLE) % COUNTS_PER_TURN - MIDDLE
    if abs(step) < 100:
        raise CalibrationError(f"the joint moved by {step} counts only: move it by at least 10 degrees")
    return 1 if step > 0 else -1


def _folded(offset: int) -> int:
    """Into +-2047; half a turn, which the register cannot hold, misses by one count."""
    return min((offset + MIDDLE) % COUNTS_PER_TURN - MIDDLE, MAX_OFFSET) if offset % COUNTS_PER_TURN != MIDDLE else 2047


def _joint(
    spec: ArmSpec, name: str, *, low_count: int, high_count: int, direction: int, **rest: int
) -> JointCalibration:
    limits = spec.joints[spec.names.index(name)]
    middle_rad = 0.5 * (limits.low + limits.high)
    zero = 0.5 * (low_count + high_count) - direction * middle_rad * COUNTS_PER_RAD
    return JointCalibration(low_count=low_count, high_count=high_count, direction=direction, zero_count=zero, **rest)


def _check_spans(spans_rad: Sequence[float], spec: ArmSpec) -> None:
    expected = [joint.high - joint.low for joint in spec.joints]
    shares = [span / most for span, most in zip(spans_rad, expected)]
    short = [j for j, share in enumerate(shares) if share < LEAST_SHARE]
    far = [j for j, share in enumerate(shares) if share > MOST_SHARE]
    for j in far:
        other = min(range(len(expected)), key=lambda k: abs(spans_rad[j] - expected[k]))
        text = f"'{spec.names[j]}' moved through {spans_rad[j]:.2f} rad, expected {expected[j]:.2f}"
        if other != j and other in short:
            raise CalibrationError(f"{text}: that is the travel of '{spec.names[other]}'; are the two exchanged?")
        raise CalibrationError(f"{text}: more than the joint can do; is it the right arm?")
    if short:
        rows = [f"'{spec.names[j]}' {spans_rad[j]:.2f} of {expected[j]:.2f} rad" for j in short]
        raise CalibrationError(f"too little travel, move to both stops: {', '.join(rows)}")
