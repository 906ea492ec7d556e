"""The ranking test: judges that are right, wrong and silent; statistics against scipy."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap, spearmanr

from sim.slow_reach import HOLD, SLOW_REACH, STEP_M, TABLE_M, SlowReachEnv
from vla.core.types import Float
from vla.rl.features import StateFeatures
from vla.rl.gather import Row
from vla.rl.ranking import Judged, Protocol, _finish, judge_row, mean_interval, sentence, spearman, verdict

FEATURES = StateFeatures(spec=SLOW_REACH, instructions=["move to the goal and stay there"])
PROTOCOL = Protocol(candidates=8, noise=0.5, execute=3, discount=0.95)


def homing(features_D: Float, seed: int, speed: float = 0.5) -> Float:
    left, chunk = 2 * TABLE_M * features_D[2:4], []
    for _ in range(3):
        wanted = left / STEP_M
        chunk.append(wanted * min(1.0, speed / max(np.abs(wanted).max(), 1e-9)))
        left = left - STEP_M * chunk[-1]
    return np.array(chunk, np.float32)


def by_distance(features_D: Float, chunks_NHA: Float) -> NDArray:
    """A good critic: the less there is left to go after the chunk, the better."""
    left_N2 = 2 * TABLE_M * features_D[2:4] - STEP_M * np.clip(chunks_NHA, -1, 1).sum(axis=1)
    return -np.abs(left_N2).max(axis=1)


def judged(judge, rows: int = 12) -> list[Judged]:
    env = SlowReachEnv()
    found = [
        judge_row(env, Row(task="reach", init_state=30 + n, seed=n), FEATURES, homing, judge, PROTOCOL)
        for n in range(rows)
    ]
    return [each for each in found if each is not None]


def test_a_good_critic_passes_and_others_fail() -> None:
    good = verdict(judged(by_distance))
    assert good["passes"] and good["low"] > 0.3 and good["gain"] > 0
    assert good["oracle"]["return"] >= good["favourite"]["return"] > good["random"]["return"]
    upside_down = verdict(judged(lambda f, c: -by_distance(f, c)))
    assert not upside_down["passes"] and upside_down["high"] < 0
    silent = verdict(judged(lambda f, c: np.zeros(len(c))))
    assert silent["spearman"] == 0 and not silent["passes"]
    assert "passes" in sentence(good) and "FAILS" in sentence(silent)


def test_what_differs_between_states_alone_does_not_pass() -> None:
    """A critic that knows the state's value exactly and nothing of the chunk: calibrated, and of no use to choose."""
    rng = np.random.default_rng(0)

    def state_only(features_D: Float, chunks_NHA: Float) -> NDArray:
        return by_distance(features_D, 0 * chunks_NHA) + 1e-6 * rng.standard_normal(len(chunks_NHA))

    found = judged(state_only)
    assert not verdict(found)["passes"]
    pooled = spearman(
        np.concatenate([each.values_N for each in found]), np.concatenate([each.returns_N for each in found])
    )
    assert pooled > 0.5, "over all states together it looks like a good critic: the mistake that this test avoids"


def test_returns_are_those_of_the_candidate_then_the_policy() -> None:
    """From a point two full steps away: by hand."""
    env = SlowReachEnv()
    env.reset("reach", 0, 0)
    env.restore(np.array([0.0, 0.0, 0.034, 0.0, 0, 10], "<f8").tobytes())
    straight_HA = np.array([[1, 0], [0.75, 0], [0, 0]], np.float32)  # inside after the first step: three steps
    assert _finish(env, straight_HA, FEATURES, homing, PROTOCOL, 0) == (pytest.approx(0.95 ** (HOLD - 1)), 1.0)
    env.restore(np.array([0.0, 0.0, 0.034, 0.0, 0, 10], "<f8").tobytes())
    waiting_HA = np.zeros((3, 2), np.float32)  # then the policy's halves of steps: inside after two of them
    assert _finish(env, waiting_HA, FEATURES, homing, PROTOCOL, 0)[0] == pytest.approx(0.95 ** (3 + 2 + HOLD - 1 - 1))


def test_the_same_rows_are_the_same_judgement() -> None:
    for one, again in zip(judged(by_distance, 3), judged(by_distance, 3), strict=True):
        np.testing.assert_array_equal(one.returns_N, again.returns_N)
        np.testing.assert_array_equal(one.values_N, again.values_N)


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 5, 12).astype(float), rng.standard_normal(12).round(1)
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)


def test_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(1).standard_normal(30)
    low, high = mean_interval(values)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.02) and high == pytest.approx(theirs.high, abs=0.02)


def test_too_little_to_decide() -> None:
    same = Judged(
        row=Row(task="reach", init_state=0, seed=0),
        after_steps=0,
        values_N=np.arange(4.0),
        returns_N=np.ones(4),
        success_N=np.ones(4),
    )
    found = verdict([same] * 5)
    assert not found["passes"] and found["decided"] == 0 and "fewer than two" in sentence(found)
