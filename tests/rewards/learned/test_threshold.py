import numpy as np
import pytest

from rewards.learned.threshold import calibrate
from rewards.metrics import Judged, judge


def episode(before: float, after: float, *, success: bool, frames: int = 6) -> Judged:
    done_T = np.zeros(2 * frames, bool)
    done_T[frames:] = success
    return Judged(scores_T=np.r_[np.full(frames, before), np.full(frames, after)].astype(np.float32), done_T=done_T)


def test_the_middle_of_the_gap():
    """Successes end at 3 or more, the rest stays at 1 or less: all are found, with the widest margin."""
    episodes = [episode(-2, 3 + i, success=True) for i in range(4)] + [
        episode(-2, 1 - i, success=False) for i in range(4)
    ]
    chosen = calibrate(episodes, precision=0.95, consecutive=2)
    assert chosen.reached and 1 < chosen.threshold < 3
    assert chosen.report["recall"]["share"] == 1.0


def test_precision_before_recall():
    """A failure that scores 4 costs the successes below it: 0.5 on the probability would pay for it."""
    episodes = [episode(-2, s, success=True) for s in (3, 5, 6)] + [episode(-2, 4, success=False)]
    chosen = calibrate(episodes, precision=0.95, consecutive=2)
    assert 4 < chosen.threshold < 5 and chosen.report["recall"]["count"] == 2
    careless = judge(episodes, threshold=0.0, consecutive=2)
    assert careless["precision"]["share"] == 0.75, "the mutation: threshold at p = 0.5"


def test_looser_precision_finds_more():
    episodes = [episode(-2, s, success=True) for s in (3, 5, 6)] + [episode(-2, 4, success=False)]
    assert calibrate(episodes, precision=0.7, consecutive=2).report["recall"]["count"] == 3


def test_an_unreachable_precision_is_said():
    episodes = [episode(-2, 1, success=True), episode(-2, 2, success=False), episode(-2, 2, success=False)]
    chosen = calibrate(episodes, precision=0.95, consecutive=2)
    assert not chosen.reached and chosen.report["precision"]["share"] == pytest.approx(1 / 3)


def test_debounce_is_part_of_it():
    """One frame of glare at 9: harmless with two frames in a row."""
    glare = episode(-2, -2, success=False)
    glare.scores_T[3] = 9
    chosen = calibrate([episode(-2, 3, success=True), glare], precision=0.95, consecutive=2)
    assert chosen.reached and chosen.threshold < 3
    assert calibrate([episode(-2, 3, success=True), glare], precision=0.95, consecutive=1).reached is False


def test_needs_both_kinds():
    with pytest.raises(ValueError, match="2 of 2 episodes are successes"):
        calibrate([episode(-1, 1, success=True)] * 2)
