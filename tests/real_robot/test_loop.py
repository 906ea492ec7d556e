"""The loop's place before other processes: asked for, given back, and done without where it is refused."""

import os

import pytest

from real_robot.loop import first_in_line


def test_the_thread_is_first_in_line_and_then_as_before() -> None:
    before = os.sched_getscheduler(0)
    with first_in_line() as permitted:
        inside = os.sched_getscheduler(0)
    assert inside == (os.SCHED_FIFO if permitted else before)
    assert os.sched_getscheduler(0) == before


def test_a_refusal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    before = os.sched_getscheduler(0)
    with first_in_line() as permitted:
        assert not permitted
        assert os.sched_getscheduler(0) == before


def test_it_is_given_back_when_the_loop_raises() -> None:
    before = os.sched_getscheduler(0)
    with pytest.raises(ValueError, match="broken"), first_in_line():
        raise ValueError("broken")
    assert os.sched_getscheduler(0) == before
