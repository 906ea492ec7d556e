"""What a judge that errs reports, on real episodes."""

from dataclasses import replace

import numpy as np
import pytest

from sim.slow_reach import SLOW_REACH, SlowReachEnv
from vla.rl.features import StateFeatures
from vla.rl.gather import Explorer, Recording, Row, record, to_replay
from vla.rl.misjudged import misjudged

FEATURES = StateFeatures(spec=SLOW_REACH, instructions=["move to the goal and stay there"])


def attempt(gain: float, number: int = 0) -> Recording:
    """Towards the goal, or, with a gain of 0, nowhere."""

    def propose(features_D: np.ndarray, seed: int) -> np.ndarray:
        return np.tile(np.clip(gain * features_D[2:4], -1, 1), (3, 1)).astype(np.float32)

    explorer = Explorer(propose=propose, features=FEATURES, execute=3, noise=0.0)
    row = Row(task="reach", init_state=number, seed=number)
    return record(SlowReachEnv(horizon=40), row, explorer, FEATURES)


SUCCESS, FAILURE = attempt(4.0), attempt(0.0)


def test_a_judge_that_does_not_err_changes_nothing() -> None:
    assert SUCCESS.success and not FAILURE.success
    for each in (SUCCESS, FAILURE):
        assert misjudged(each, false_positive=0.0, false_negative=0.0, seed=0) is each


def test_a_miss_leaves_the_attempt_without_reward_and_cut_by_the_clock() -> None:
    missed = misjudged(SUCCESS, false_positive=0.0, false_negative=1.0, seed=0)
    assert not missed.success and missed.truncated and not missed.terminated and missed.success_T.sum() == 0
    np.testing.assert_array_equal(missed.actions_TA, SUCCESS.actions_TA)
    replay = to_replay([missed], {}).with_returns("success", 0.9, after_truncation="nothing")
    assert replay.returns["success"].return_N.max() == 0 and not replay.success_E[0]


def test_a_false_alarm_ends_the_attempt_where_it_comes() -> None:
    alarmed = misjudged(FAILURE, false_positive=1.0, false_negative=0.0, seed=0)
    length = len(alarmed)
    assert alarmed.success and alarmed.terminated and not alarmed.truncated and length < len(FAILURE)
    np.testing.assert_array_equal(alarmed.features_TD, FAILURE.features_TD[: length + 1])
    replay = to_replay([alarmed], {}).with_returns("success", 0.9, after_truncation="nothing")
    np.testing.assert_allclose(replay.returns["success"].return_N, 0.9 ** np.arange(length)[::-1], rtol=1e-5)


def test_demonstrations_are_known_to_be_what_they_are() -> None:
    demo = replace(SUCCESS, demo=True)
    assert misjudged(demo, false_positive=1.0, false_negative=1.0, seed=0) is demo


def test_rates_are_those_asked_for_and_a_row_decides_alike_every_time() -> None:
    rows = [replace(FAILURE, row=Row(task="reach", init_state=number, seed=5)) for number in range(400)]
    verdicts = [[misjudged(row, false_positive=0.3, false_negative=0.0, seed=1).success for row in rows] for _ in "ab"]
    assert verdicts[0] == verdicts[1]
    assert 0.3 * 400 - 3 * 9.2 < sum(verdicts[0]) < 0.3 * 400 + 3 * 9.2  # 9.2: deviation of the count
    with pytest.raises(ValueError, match="false_positive"):
        misjudged(FAILURE, false_positive=1.5, false_negative=0.0, seed=0)
