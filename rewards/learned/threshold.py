"""The threshold of a judge of success, chosen on episodes that it was not trained on.

A false positive pays for failing, a false negative only delays, so the rule is: as many successes found as possible
while at least `precision` of the declared ones are real; between thresholds that find the same, the middle of the gap.
0.5 is the threshold of nothing in particular: training batches are half positives, episodes are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.metrics import Judged, judge


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and what it did on the episodes it was chosen on.

    reached  whether the wanted precision was; if not, the threshold is the most precise one
    report   as `judge` gives
    """

    threshold: float
    consecutive: int
    reached: bool
    report: dict[str, Any]


def calibrate(episodes: Sequence[Judged], *, precision: float = 0.95, consecutive: int = 3) -> Calibration:
    """Tries every threshold between two scores that occur.

    Raises:
        ValueError: no episode that succeeded, or none that failed: nothing could be learnt from the rest.
    """
    successes = sum(each.success for each in episodes)
    if not 0 < successes < len(episodes):
        raise ValueError(f"calibration: {successes} of {len(episodes)} episodes are successes; both kinds are needed")
    reports = [judge(episodes, threshold=t, consecutive=consecutive) for t in _candidates(episodes)]
    reports = [report for report in reports if report["precision"]["total"]]
    good = [report for report in reports if report["precision"]["share"] >= precision]
    best = max(good or reports, key=lambda report: _rank(report, precise_first=not good))
    same = [r for r in good or reports if _rank(r, precise_first=not good) == _rank(best, precise_first=not good)]
    middle = same[len(same) // 2]
    return Calibration(
        threshold=middle["threshold"], consecutive=consecutive, reached=bool(good) and _finds(best), report=middle
    )


def _finds(report: dict[str, Any]) -> bool:
    return report["recall"]["count"] > 0


def _rank(report: dict[str, Any], *, precise_first: bool) -> tuple[float, float]:
    recall, precision = report["recall"]["share"], report["precision"]["share"]
    return (precision, recall) if precise_first else (recall, precision)


def _candidates(episodes: Sequence[Judged], most: int = 256) -> list[float]:
    """Midpoints between neighbouring scores, at most so many, spread evenly over them."""
    values = np.unique(np.concatenate([each.scores_T for each in episodes]).astype(np.float64))
    middles = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    places = np.linspace(0, len(middles) - 1, min(most, len(middles))).round().astype(int)
    return middles[places].tolist()
