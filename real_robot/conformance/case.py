"""One row of the suite."""

from collections.abc import Callable
from dataclasses import dataclass

from real_robot.conformance.bench import Device


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault and what shows that it is handled.

    run      builds its own bench, raises CaseFailed, returns the measured numbers in words; None: nothing runs yet
    missing  what of the case is not built; then it does not count as passed, whatever `run` says
    devices  where it runs
    absent   why it runs nowhere else, where the fault could exist there; then it is not built, else not applicable
    """

    number: int
    title: str
    run: Callable[[Device], str] | None = None
    missing: str = ""
    devices: tuple[Device, ...] = ("sts", "dxl")
    absent: str = ""
