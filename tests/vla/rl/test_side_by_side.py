"""Estimates over seeds and episodes against closed forms."""

import numpy as np
import pytest

from vla.core.errors import GrasplineError
from vla.rl.side_by_side import difference, estimate, outcomes


def test_with_one_seed_the_interval_is_that_of_a_mean() -> None:
    values_SN = np.random.default_rng(0).normal(5.0, 2.0, size=(1, 400))
    found = estimate(values_SN)
    half = 1.96 * values_SN.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values_SN.mean())
    assert found.low == pytest.approx(found.mean - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.15 * half)


def test_seeds_that_differ_widen_the_interval_however_many_episodes_there_are() -> None:
    """Three seeds at 0, 0.5 and 1: a draw of three has the mean 0 in one case of 27, more than the tail of 2.5 %."""
    values_SN = np.repeat([[0.0], [0.5], [1.0]], 10_000, axis=1)
    found = estimate(values_SN)
    assert (found.low, found.high) == (0.0, 1.0)


def test_differences_are_paired() -> None:
    """What makes an episode hard cancels: the same shift everywhere has no spread."""
    baseline_SN = np.random.default_rng(1).uniform(10, 100, size=(3, 50))
    found = difference(baseline_SN - 2.0, baseline_SN, relative=False)
    assert found.mean == pytest.approx(-2.0) and found.high - found.low < 1e-9
    share = difference(0.7 * baseline_SN, baseline_SN, relative=True)
    assert share.mean == pytest.approx(-0.3) and share.high - share.low < 1e-9
    with pytest.raises(GrasplineError, match="cannot pair"):
        difference(baseline_SN[:2], baseline_SN, relative=False)


def test_failures_count_at_the_cap_and_episodes_are_matched_by_name_not_by_order() -> None:
    one = [
        {"task": "b", "init_state": 0, "seed": 1, "success": False, "steps": 3},
        {"task": "a", "init_state": 0, "seed": 1, "success": True, "steps": 7},
    ]
    found = outcomes([one, one[::-1]], {"a": 20, "b": 50})
    np.testing.assert_array_equal(found.cycle_SN, [[7, 50], [7, 50]])
    np.testing.assert_array_equal(found.success_SN, [[1, 0], [1, 0]])
    with pytest.raises(GrasplineError, match="same episodes"):
        outcomes([one, one[:1]], {"a": 20, "b": 50})
