"""Runs the suite on a device and prints it: one line a case, `passed/total` last."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from real_robot.conformance.bench import CaseFailed, Device, inspected
from real_robot.conformance.case import Case
from real_robot.conformance.cases_bus import CASES as BUS
from real_robot.conformance.cases_cell import CASES as CELL
from real_robot.conformance.cases_host import CASES as HOST
from real_robot.conformance.cases_policy import CASES as POLICY
from real_robot.conformance.cases_power import CASES as POWER
from real_robot.core.faults import RefusedError
from real_robot.drivers.errors import BusError

CASES: tuple[Case, ...] = tuple(sorted([*POLICY, *BUS, *POWER, *HOST, *CELL], key=lambda case: case.number))


class Verdict(StrEnum):
    """PART: what exists of the case passes, the rest is not built. Only PASS counts; ABSENT is not counted at all."""

    PASS = "pass"
    FAIL = "FAIL"
    PART = "part"
    NOT_BUILT = "not built"
    ABSENT = "n/a"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    case: Case
    device: str
    verdict: Verdict
    detail: str
    wall_s: float = 0.0

    def __str__(self) -> str:
        head = f"{self.case.number:2d} {self.device:4s} {self.verdict:9s} {self.case.title:38s}"
        return f"{head} {self.detail}  ({self.wall_s:.1f} s)" if self.wall_s else f"{head} {self.detail}"


def run_case(case: Case, device: Device) -> Outcome:
    """One row; whatever the case raises of ours is a failure, not the end of the table."""
    if device not in case.devices:
        verdict = Verdict.NOT_BUILT if case.absent else Verdict.ABSENT
        return Outcome(case=case, device=device, verdict=verdict, detail=case.absent or "the fault cannot exist here")
    if case.run is None:
        return Outcome(case=case, device=device, verdict=Verdict.NOT_BUILT, detail=case.missing)
    start_s = time.perf_counter()
    try:
        detail, verdict = inspected(case.run, device), Verdict.PART if case.missing else Verdict.PASS
    except (CaseFailed, RefusedError, BusError, AssertionError) as error:
        detail, verdict = f"{type(error).__name__}: {error}", Verdict.FAIL
    if verdict == Verdict.PART:
        detail = f"{detail}; not built: {case.missing}"
    wall_s = time.perf_counter() - start_s
    return Outcome(case=case, device=device, verdict=verdict, detail=detail, wall_s=wall_s)


def run_suite(devices: Iterable[Device], numbers: Iterable[int] | None = None) -> Iterator[Outcome]:
    wanted = None if numbers is None else set(numbers)
    for device in devices:
        for case in CASES:
            if wanted is None or case.number in wanted:
                yield run_case(case, device)


def score(outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """(passed, total); rows whose fault cannot exist on a device are left out of both."""
    counted = [outcome for outcome in outcomes if outcome.verdict != Verdict.ABSENT]
    return sum(outcome.verdict == Verdict.PASS for outcome in counted), len(counted)
