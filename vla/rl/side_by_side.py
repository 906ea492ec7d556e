"""Algorithms beside a baseline on the same episodes, over several seeds: success and cycle time with intervals.

A cycle is an episode's steps, failures at the cap, for time over successes alone flatters whoever fails in hard
episodes. Special: seeds and episodes are both drawn with replacement, for a run of luck of one seed is not sixty
episodes of evidence; differences pair each seed and episode with the baseline's.

Letters: S seeds, N episodes of each, the same for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla.core.errors import GrasplineError

RESAMPLES = 4000

type Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """What came of one algorithm: (S, N) arrays, whose columns are the episodes in one order."""

    success_SN: NDArray
    cycle_SN: NDArray


def outcomes(rows_of_seeds: Sequence[Rows], caps: Mapping[str, int]) -> Outcomes:
    """The rows of an evaluation for each seed; `caps` is the time limit [steps] of each task.

    Raises:
        GrasplineError: the seeds did not play the same episodes.
    """
    ordered = [sorted(rows, key=_episode) for rows in rows_of_seeds]
    if any([_episode(row) for row in rows] != [_episode(row) for row in ordered[0]] for rows in ordered):
        raise GrasplineError("the runs were not evaluated on the same episodes: tasks, initial states or seeds differ")
    cycles = [[row["steps"] if row["success"] else caps[row["task"]] for row in rows] for rows in ordered]
    wins = [[bool(row["success"]) for row in rows] for rows in ordered]
    return Outcomes(success_SN=np.array(wins, float), cycle_SN=np.array(cycles, float))


def _episode(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["task"], row["init_state"], row["seed"]


def estimate(values_SN: NDArray) -> Estimate:
    """Mean over all seeds and episodes."""
    means = [values_SN[np.ix_(seeds, episodes)].mean() for seeds, episodes in _draws(values_SN.shape)]
    return _estimate(float(values_SN.mean()), means)


def difference(values_SN: NDArray, baseline_SN: NDArray, *, relative: bool) -> Estimate:
    """Mean of `values_SN` minus the baseline's, or its share of the baseline's; paired.

    Raises:
        GrasplineError: other seeds or episodes than the baseline's.
    """
    if values_SN.shape != baseline_SN.shape:
        raise GrasplineError(f"{values_SN.shape} seeds and episodes, the baseline has {baseline_SN.shape}: cannot pair")

    def between(values: NDArray, baseline: NDArray) -> float:
        change = float(values.mean() - baseline.mean())
        return change / float(baseline.mean()) if relative else change

    drawn = [np.ix_(*places) for places in _draws(values_SN.shape)]
    found = [between(values_SN[place], baseline_SN[place]) for place in drawn]
    return _estimate(between(values_SN, baseline_SN), found)


def _draws(shape: tuple[int, ...]) -> list[tuple[NDArray, NDArray]]:
    rng = np.random.default_rng(17)
    seeds, episodes = shape
    return [(rng.integers(seeds, size=seeds), rng.integers(episodes, size=episodes)) for _ in range(RESAMPLES)]


def _estimate(mean: float, resampled: Sequence[float]) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(mean=mean, low=float(low), high=float(high))
