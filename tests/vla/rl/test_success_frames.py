"""Copies of success against the golden number of their discounted sum."""

from dataclasses import replace

import numpy as np
import pytest

from vla.rl.gather import Recording, Row, to_replay
from vla.rl.success_frames import attainable, duplicated


def success(steps: int) -> Recording:
    """Ten steps, of which the last succeeds; the action says which step it is."""
    return Recording(
        row=Row(task="t", init_state=0, seed=0),
        features_TD=np.arange(steps + 1, dtype=np.float32)[:, None],
        actions_TA=np.linspace(-1, 1, steps, dtype=np.float32)[:, None],
        plan_TPA=np.zeros((steps, 1, 1), np.float32),
        planned_T=np.ones(steps, np.int64),
        open_loop_T=np.ones(steps, np.int64),
        success_T=np.eye(steps, dtype=np.float32)[-1],
        terminated=True,
        truncated=False,
        success=True,
        demo=True,
        clock_limit=100,
    )


def returns(recording: Recording) -> np.ndarray:
    return to_replay([recording], {}).with_returns("success", 0.9).returns["success"].return_N


def test_returns_before_and_after() -> None:
    """Success at the last of ten steps, discount 0.9; with five copies 0.9^9 (1 - 0.9^6) / 0.1 = 1.8153."""
    plain, more = success(10), duplicated(success(10), 5)
    assert returns(plain)[[0, 4, 9]] == pytest.approx([0.3874, 0.5905, 1.0], abs=1e-4)
    assert returns(more)[0] == pytest.approx(1.8153, abs=1e-4)
    assert returns(more).max() == pytest.approx(attainable(0.9, 5), rel=1e-5)
    assert attainable(0.9, 0) == 1.0


def test_a_copy_is_the_last_state_and_action_and_the_end_stays_the_end() -> None:
    more = duplicated(success(10), 5)
    assert len(more) == 15 and more.terminated and more.clock_limit == 105
    np.testing.assert_array_equal(more.features_TD[10:, 0], 10)
    np.testing.assert_array_equal(more.actions_TA[9:, 0], 1)
    np.testing.assert_array_equal(more.success_T, [0] * 9 + [1] * 6)


def test_failures_and_none_at_all_stay_as_they_are() -> None:
    failure = replace(success(10), success=False)
    assert duplicated(failure, 5) is failure
    one = success(10)
    assert duplicated(one, 0) is one
