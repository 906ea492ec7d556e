"""What the twin writes down about its driver: every write with its time, every broken invariant, the worst motion.

Safe is measured here, at the servo's side of the wire, not where the driver says what it wanted.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

KEPT = 100_000  # writes that a long run keeps; the counts go on


@dataclass(frozen=True, kw_only=True)
class Write:
    """A register write as one servo heard it. `torque_on` is from before the write."""

    time_s: float
    device_id: int
    address: int
    data: bytes
    torque_on: bool


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A write that no driver of ours may make: goal_out_of_range, eeprom_while_torque_on, set_middle."""

    rule: str
    write: Write


@dataclass(kw_only=True)
class WireMonitor:
    """Fills as the bus runs.

    lost: packets that the host sent and no servo could read (checksum, stuffing, baud). collisions: both sides talked.
    """

    writes: deque[Write] = field(default_factory=lambda: deque(maxlen=KEPT))
    violations: deque[Violation] = field(default_factory=lambda: deque(maxlen=KEPT))
    num_writes: int = 0
    num_violations: int = 0
    num_eeprom_writes: int = 0
    packets: int = 0
    lost: int = 0
    collisions: int = 0

    def record(self, write: Write, *, eeprom: bool, broken: Sequence[str]) -> None:
        self.num_writes += 1
        self.num_eeprom_writes += eeprom
        self.num_violations += len(broken)
        self.writes.append(write)
        self.violations.extend(Violation(rule=rule, write=write) for rule in broken)

    def of(self, device_id: int, address: int) -> list[Write]:
        """The kept writes that touched one register of one servo, oldest first."""
        return [w for w in self.writes if w.device_id == device_id and w.address <= address < w.address + len(w.data)]

    def check(self) -> None:
        """Raises AssertionError that shows the first broken invariants."""
        shown = [
            f"{v.rule}: servo {v.write.device_id} @{v.write.address} <- {v.write.data.hex(' ')}"
            for v in self.violations
        ]
        assert not self.num_violations, f"{self.num_violations} wire invariants broken: {'; '.join(shown[:5])}"


class Peaks:
    """Extremes of the joints since the last `reset`: [rad/s], [rad] and [N]."""

    def __init__(self, num_joints: int) -> None:
        self._num = num_joints
        self.reset()

    def reset(self) -> None:
        self.speed_rad_s = [0.0] * self._num
        self.low_rad = [float("inf")] * self._num
        self.high_rad = [float("-inf")] * self._num
        self.contact_n = 0.0

    def add(self, positions: Sequence[float], speeds: Sequence[float], contact_n: float) -> None:
        for joint, (position, speed) in enumerate(zip(positions, speeds)):
            self.speed_rad_s[joint] = max(self.speed_rad_s[joint], abs(speed))
            self.low_rad[joint] = min(self.low_rad[joint], position)
            self.high_rad[joint] = max(self.high_rad[joint], position)
        self.contact_n = max(self.contact_n, contact_n)
