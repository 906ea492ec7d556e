"""How good a judge of success or of progress is: counted per episode, with intervals.

Accuracy per frame is useless, since nearly all frames are negatives. What reinforcement learning meets is the moment at
which success is declared: that frame ends the episode and pays. So an episode counts as rightly declared only if the
task is done at that very frame; `hacking` is the share of declared episodes where it is not.

Letters: T frames of an episode, all with an observation. Spearman's coefficient of prediction against time is the
value-order correlation (VOC) of GVL (arXiv 2411.04549).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, rankdata

from rewards.debounce import first_declared
from vla.core.types import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One episode as a judge saw it.

    scores_T  higher is more like success
    done_T    whether the task was really done at that frame
    """

    scores_T: Float
    done_T: NDArray[np.bool_]

    @property
    def success(self) -> bool:
        """Whether it was done at any frame that the judge saw."""
        return bool(self.done_T.any())


def auc(scores_N: Float, positive_N: NDArray[np.bool_]) -> float:
    """The chance that a positive scores higher than a negative, ties counted half; nan where one kind is missing."""
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if not positives or not negatives:
        return float("nan")
    ranks_N = rankdata(scores_N)
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def share(count: int, total: int) -> dict[str, Any]:
    """A proportion with its 95 % Wilson interval; all None where nothing was counted."""
    if total == 0:
        return {"count": 0, "total": 0, "share": None, "low": None, "high": None}
    interval = binomtest(count, total).proportion_ci(method="wilson")
    shares = {"share": count / total, "low": float(interval.low), "high": float(interval.high)}
    return {"count": count, "total": total, **shares}


def episode_score(scores_T: Float, consecutive: int) -> float:
    """The highest threshold at which the episode would be declared: the best of the minima of `consecutive` frames."""
    if len(scores_T) < consecutive:
        return -np.inf
    windows = np.lib.stride_tricks.sliding_window_view(scores_T, consecutive)
    return float(windows.min(axis=1).max())


def judge(episodes: Sequence[Judged], *, threshold: float, consecutive: int) -> dict[str, Any]:
    """What a judge of success is worth at the threshold in use.

    Returns:
        precision     declared episodes that were done at the declared frame, of all declared
        recall        those, of all episodes that succeeded
        hacking       declared though not done at that frame, of all declared: 1 - precision
        false_alarms  declared, of the episodes that never succeeded
        auc           of episodes by their `episode_score`
        frame         the same precision and recall over single frames without debounce, for comparison
        delay         median frames between success and its declaration, None if nothing was rightly declared
    """
    declared = [first_declared(each.scores_T >= threshold, consecutive) for each in episodes]
    right = [at is not None and bool(each.done_T[at]) for each, at in zip(episodes, declared, strict=True)]
    count = sum(at is not None for at in declared)
    failed = [at for each, at in zip(episodes, declared, strict=True) if not each.success]
    delays = [
        at - int(each.done_T.argmax())
        for each, at, good in zip(episodes, declared, right, strict=True)
        if good and at is not None
    ]
    scores_N = np.array([episode_score(each.scores_T, consecutive) for each in episodes])
    return {
        "threshold": threshold,
        "consecutive": consecutive,
        "precision": share(sum(right), count),
        "recall": share(sum(right), sum(each.success for each in episodes)),
        "hacking": share(count - sum(right), count),
        "false_alarms": share(sum(at is not None for at in failed), len(failed)),
        "auc": auc(scores_N, np.array([each.success for each in episodes])),
        "frame": _frames(episodes, threshold),
        "delay": float(np.median(delays)) if delays else None,
    }


def _frames(episodes: Sequence[Judged], threshold: float) -> dict[str, Any]:
    positive_N = np.concatenate([each.scores_T >= threshold for each in episodes])
    done_N = np.concatenate([each.done_T for each in episodes])
    right = int((positive_N & done_N).sum())
    return {"precision": share(right, int(positive_N.sum())), "recall": share(right, int(done_N.sum()))}


def voc(progress_T: Float) -> float:
    """Spearman's rank correlation of a prediction with time, in [-1, 1]; 0 for a constant one."""
    ranks_T = rankdata(progress_T)
    if len(ranks_T) < 2 or np.ptp(ranks_T) == 0:
        return 0.0
    return float(np.corrcoef(ranks_T, np.arange(len(ranks_T)))[0, 1])


def judge_progress(predictions: Sequence[Float]) -> dict[str, float]:
    """Means over episodes of one kind (successes, reversed ones, failures, mismatched text).

    Returns:
        voc    order in time; near 1 for successes, near -1 for reversed ones
        last   the prediction at the end; high for successes alone
        peak   the highest prediction; what hovering at the best place would earn if progress were a reward
    """
    return {
        "episodes": float(len(predictions)),
        "voc": float(np.mean([voc(each_T) for each_T in predictions])),
        "last": float(np.mean([each_T[-1] for each_T in predictions])),
        "peak": float(np.mean([each_T.max() for each_T in predictions])),
    }
