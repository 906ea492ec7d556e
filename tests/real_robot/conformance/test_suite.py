"""The suite itself: the quick cases on both devices, and that it can fail."""

import pytest

from real_robot.conformance.bench import CaseFailed, expect
from real_robot.conformance.case import Case
from real_robot.conformance.table import Verdict, cases, run_case, score
from real_robot.core import controller, rules
from real_robot.core.admission import Admission, Admitted
from real_robot.drivers import dxl_arm, servo_arm, sts_arm
from real_robot.drivers.register_shadow import RegisterShadow

BY_NUMBER = {case.number: case for case in cases()}
QUICK = {"sts": (8, 10, 17, 18, 20, 25, 30, 31, 32, 33, 34, 36, 42, 45, 51, 56), "dxl": (15, 18, 33, 36, 47, 52, 53)}


def test_sixty_cases() -> None:
    assert [case.number for case in cases()] == list(range(1, 61))
    assert all(case.run is not None or case.missing for case in cases())


@pytest.mark.parametrize(("device", "number"), [(d, n) for d, numbers in QUICK.items() for n in numbers])
def test_quick_cases(device, number: int) -> None:
    outcome = run_case(BY_NUMBER[number], device)
    assert outcome.verdict == Verdict.PASS, str(outcome)


def test_what_does_not_count() -> None:
    nothing = run_case(Case(number=1, title="a", missing="x"), "sts")
    part = run_case(Case(number=1, title="a", run=lambda _: "seen", missing="x"), "sts")
    absent = run_case(Case(number=1, title="a", run=lambda _: "", devices=("dxl",)), "sts")
    failed = run_case(Case(number=1, title="a", run=lambda _: expect(False, "no") or ""), "sts")
    assert [o.verdict for o in (nothing, part, absent, failed)] == ["not built", "part", "n/a", "FAIL"]
    assert score([nothing, part, absent, failed]) == (0, 3)
    with pytest.raises(CaseFailed):
        expect(False, "no")


def _no_rule(monkeypatch, name: str) -> None:
    rest = tuple(rule for rule in rules.RULES if rule.__name__ != name)
    monkeypatch.setattr(rules, "RULES", rest)


@pytest.mark.parametrize("number", [4, 10, 17, 22, 23, 31, 36, 37, 56])
def test_each_protection_that_is_taken_out_is_missed(number: int, monkeypatch) -> None:
    """Mutations: one protection off, and its case fails."""
    if number == 4:
        monkeypatch.setattr("real_robot.core.leases.Leases.expired", lambda self, now_s: False)
    elif number == 10:
        monkeypatch.setattr(Admission, "admit", lambda self, chunk, now_s, q_J: Admitted(chunk=chunk))
    elif number == 17:
        _no_rule(monkeypatch, "silent")
    elif number == 22:
        _no_rule(monkeypatch, "goal_not_taken")
    elif number == 23:
        monkeypatch.setattr(RegisterShadow, "differences", lambda *_: [])
        _no_rule(monkeypatch, "torque_lost")
    elif number == 31:
        monkeypatch.setattr(sts_arm.StsArm, "check_calibration", lambda self: None)
    elif number == 36:
        monkeypatch.setattr(servo_arm.ServoArm, "_stand_at", lambda self, q_J: None)
        monkeypatch.setattr(servo_arm.ServoArm, "_verify", lambda self, goal_J: None)
    elif number == 37:
        monkeypatch.setattr(controller, "needs_alignment", lambda *_: False)
    else:
        monkeypatch.setattr(sts_arm.StsArm, "resident", lambda self, i: {"torque_limit": 1000})
    assert run_case(BY_NUMBER[number], "sts").verdict == Verdict.FAIL


def test_a_bus_watchdog_that_is_not_set_is_missed(monkeypatch) -> None:
    monkeypatch.setattr(dxl_arm, "WATCHDOG", 0)
    assert run_case(BY_NUMBER[33], "dxl").verdict == Verdict.FAIL
