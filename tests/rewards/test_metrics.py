import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from rewards.metrics import Judged, auc, episode_score, judge, judge_progress, share, voc


def episode(scores: list[float], done_at: int | None) -> Judged:
    done_T = np.zeros(len(scores), bool)
    if done_at is not None:
        done_T[done_at:] = True
    return Judged(scores_T=np.array(scores, np.float32), done_T=done_T)


def test_auc_counts_pairs():
    rng = np.random.default_rng(0)
    scores_N, positive_N = rng.integers(0, 5, 40).astype(np.float32), rng.random(40) < 0.4  # many ties
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores_N[positive_N] for n in scores_N[~positive_N]]
    assert auc(scores_N, positive_N) == pytest.approx(np.mean(pairs))
    assert auc(-scores_N, positive_N) == pytest.approx(1 - np.mean(pairs))
    assert math.isnan(auc(scores_N, np.ones(40, bool)))


@pytest.mark.parametrize(("count", "total"), [(0, 10), (7, 10), (57, 60), (60, 60)])
def test_wilson_in_closed_form(count: int, total: int):
    z = 1.959963984540054
    p = count / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    part = share(count, total)
    assert part["low"] == pytest.approx(max(0, centre - half), abs=1e-9)
    assert part["high"] == pytest.approx(min(1, centre + half), abs=1e-9)
    assert share(0, 0)["share"] is None


def test_voc_is_spearman():
    rng = np.random.default_rng(1)
    noisy_T = np.round(np.linspace(0, 1, 30) + rng.normal(0, 0.2, 30), 1).astype(np.float32)  # with ties
    assert voc(noisy_T) == pytest.approx(spearmanr(noisy_T, np.arange(30)).statistic)
    assert voc(noisy_T[::-1]) == pytest.approx(-voc(noisy_T))
    assert voc(np.ones(5, np.float32)) == 0.0


def test_an_episode_is_judged_where_success_is_declared():
    """Worked out by hand at threshold 0 and two frames in a row."""
    episodes = [
        episode([-1, -1, 1, 1, 1], done_at=2),  # declared at 3, done: right, one frame late
        episode([-1, 1, 1, 1, 1], done_at=4),  # declared at 2, not yet done: wrong, though it succeeds in the end
        episode([-1, 1, -1, 1, -1], done_at=None),  # never two in a row
        episode([-1, -1, 1, 1, -1], done_at=None),  # a false alarm
        episode([-1, -1, -1, -1, 1], done_at=3),  # missed
    ]
    report = judge(episodes, threshold=0.0, consecutive=2)
    assert (report["precision"]["count"], report["precision"]["total"]) == (1, 3)
    assert (report["recall"]["count"], report["recall"]["total"]) == (1, 3)
    assert report["hacking"]["share"] == pytest.approx(2 / 3)
    assert (report["false_alarms"]["count"], report["false_alarms"]["total"]) == (1, 2)
    assert report["delay"] == 1.0
    assert (report["frame"]["recall"]["count"], report["frame"]["recall"]["total"]) == (5, 6)


def test_judging_by_the_outcome_alone_would_flatter():
    """The mutation: a judge that calls out too early is precise by outcome, and pays for undone work."""
    early = [episode([1.0] * 6, done_at=5) for _ in range(4)]
    by_outcome = np.mean([each.success for each in early])
    assert by_outcome == 1.0 and judge(early, threshold=0.0, consecutive=1)["precision"]["share"] == 0.0


def test_episode_score_is_the_threshold_at_which_it_flips():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = episode(rng.normal(size=12).tolist(), done_at=None)
        edge = episode_score(one.scores_T, 3)
        for threshold, declared in ((edge - 1e-4, 1), (edge + 1e-4, 0)):
            assert judge([one], threshold=threshold, consecutive=3)["false_alarms"]["count"] == declared
    assert episode_score(np.zeros(2, np.float32), 3) == -np.inf


def test_progress_of_kinds():
    up_T = np.linspace(0, 1, 9, dtype=np.float32)
    report = judge_progress([up_T, up_T / 2])
    assert report == pytest.approx({"episodes": 2, "voc": 1.0, "last": 0.75, "peak": 0.75})
    assert judge_progress([up_T[::-1]])["voc"] == pytest.approx(-1.0)
