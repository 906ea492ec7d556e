"""What one run of a recipe with one seed says, and what several say together."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

Verdict = Literal["reproduced", "not reproduced at this scale", "opposite"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One seed.

    scores    by arm; higher is better
    baseline  the arm to beat
    method    the arm of the published method
    measure   what a score is, with its unit
    budget    what each arm was given
    """

    scores: Mapping[str, float]
    baseline: str
    method: str
    measure: str
    budget: str

    def __post_init__(self) -> None:
        for name in (self.baseline, self.method):
            if name not in self.scores:
                raise ValueError(f"scores has no {name!r}, only {', '.join(self.scores)}")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several seeds: mean of each arm, and the mean difference of method and baseline with its 95 % interval."""

    means: Mapping[str, float]
    difference: float
    low: float
    high: float
    seeds: int
    verdict: Verdict


def summarise(effects: Sequence[Effect]) -> Summary:
    """Student's t over the differences seed by seed. The claim of a paper is always "method above baseline".

    Args:
        effects: of one recipe, at least three seeds.
    """
    if len(effects) < 3:
        raise ValueError(f"effects has {len(effects)} seeds, expected at least 3")
    differences = [each.scores[each.method] - each.scores[each.baseline] for each in effects]
    mean, count = statistics.fmean(differences), len(differences)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    low, high = mean - half, mean + half
    verdict: Verdict = "reproduced" if low > 0 else "opposite" if high < 0 else "not reproduced at this scale"
    means = {arm: statistics.fmean(each.scores[arm] for each in effects) for arm in effects[0].scores}
    return Summary(means=means, difference=mean, low=low, high=high, seeds=count, verdict=verdict)
