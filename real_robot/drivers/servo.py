"""Rows that the servo drivers share."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Servo:
    """Who moves a joint. `models`: what may be there. `shadow_ids`: second motors that repeat what this one is told."""

    device_id: int
    models: frozenset[int]
    shadow_ids: tuple[int, ...] = ()


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
