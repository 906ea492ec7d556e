"""Verdicts against scipy's own paired test."""

import pytest
from scipy import stats

from agents.train.effect import Effect, summarise


def effects(baseline: list[float], method: list[float]) -> list[Effect]:
    return [
        Effect(scores={"old": a, "new": b}, baseline="old", method="new", measure="share", budget="none")
        for a, b in zip(baseline, method, strict=True)
    ]


@pytest.mark.parametrize(
    ("method", "verdict"),
    [
        ([0.9, 0.91, 0.92], "reproduced"),
        ([0.1, 0.11, 0.12], "opposite"),
        ([0.9, 0.4, 0.52], "not reproduced at this scale"),
    ],
)
def test_verdict_and_interval(method: list[float], verdict: str) -> None:
    baseline = [0.5, 0.52, 0.49]
    told = summarise(effects(baseline, method))
    interval = stats.ttest_rel(method, baseline).confidence_interval(0.95)
    assert (told.low, told.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert told.verdict == verdict


def test_two_seeds_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        summarise(effects([0.0, 0.0], [1.0, 1.0]))


def test_arms_are_there() -> None:
    with pytest.raises(ValueError, match="no 'new'"):
        Effect(scores={"old": 1.0}, baseline="old", method="new", measure="", budget="")
