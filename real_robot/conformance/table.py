"""Runs the suite on a device and prints it: one line a case, `passed/total` last."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from real_robot.conformance import (
    cases_bus,
    cases_camera,
    cases_cell,
    cases_host,
    cases_network,
    cases_policy,
    cases_power,
    cases_record,
    cases_stop,
    cases_teleop,
)
from real_robot.conformance.bench import CaseFailed, Device, inspected
from real_robot.conformance.case import Case, Product
from vla.core.errors import GrasplineError

_ALONE = (cases_policy, cases_bus, cases_power, cases_host, cases_camera, cases_teleop, cases_cell, cases_network)


def cases(product: Product | None = None, *, soak_hours: float = 0.0) -> tuple[Case, ...]:
    """The sixty, by number. Without a `product`, those that need the layers above are not built."""
    found = [case for module in _ALONE for case in module.CASES]
    found += [*cases_stop.cases(product), *cases_record.cases(product), cases_cell.soak_case(soak_hours)]
    return tuple(sorted(found, key=lambda case: case.number))


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
    except (CaseFailed, GrasplineError, AssertionError) as error:
        detail, verdict = f"{type(error).__name__}: {error}", Verdict.FAIL
    if verdict == Verdict.PART:
        detail = f"{detail}; not built: {case.missing}"
    wall_s = time.perf_counter() - start_s
    return Outcome(case=case, device=device, verdict=verdict, detail=detail, wall_s=wall_s)


def run_suite(rows: Iterable[Case], devices: Iterable[Device]) -> Iterator[Outcome]:
    rows = tuple(rows)
    for device in devices:
        for case in rows:
            yield run_case(case, device)


def score(outcomes: Iterable[Outcome]) -> tuple[int, int]:
    """(passed, total); rows whose fault cannot exist on a device are left out of both."""
    counted = [outcome for outcome in outcomes if outcome.verdict != Verdict.ABSENT]
    return sum(outcome.verdict == Verdict.PASS for outcome in counted), len(counted)
