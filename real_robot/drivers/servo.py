"""Rows that the servo drivers share."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Servo:
    """Who moves a joint.

    models      what may be there
    shadow_ids  second motors on the same joint, mounted against this one, that repeat what it is told
    reversed    its drive mode is set to reverse; that of a second motor is then not, and the other way round
    """

    device_id: int
    models: frozenset[int]
    shadow_ids: tuple[int, ...] = ()
    reversed: bool = False

    @property
    def motors(self) -> tuple[int, ...]:
        """Every ID that moves the joint, the first one first."""
        return (self.device_id, *self.shadow_ids)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Registers that are read together, every tick."""

    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One servo's answer, in counts and SI. NaN: not measured. `volatile`: registers that the shadow compares.

    effort  share of full torque, signed
    status  the device's error bits
    """

    count: int
    counts_s: float
    goal_count: int
    effort: float
    current_a: float
    temperature_c: float
    voltage_v: float
    torque_on: bool
    status: int
    volatile: Mapping[str, int]
