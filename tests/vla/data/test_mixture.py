"""The order is a pure function of (seed, step), and as uneven as the weights say."""

import numpy as np
import pytest

from vla.data.mixture import WeightedOrder, mix


def test_order_depends_on_seed_and_step_alone():
    weights_N = np.arange(1, 101)
    order = WeightedOrder(weights_N, seed=5)
    later = order.rows(7, 16)
    for step in range(7):
        order.rows(step, 16)
    np.testing.assert_array_equal(order.rows(7, 16), later)
    np.testing.assert_array_equal(WeightedOrder(weights_N, seed=5).rows(7, 16), later)
    assert not np.array_equal(WeightedOrder(weights_N, seed=6).rows(7, 16), later)
    assert not np.array_equal(order.rows(8, 16), later)
    assert later.dtype == np.int64 and later.shape == (16,)


def test_rows_come_as_often_as_their_weights_say():
    weights_N = np.array([1.0, 0.0, 4.0, 2.0, 1.0, 0.0])
    order = WeightedOrder(weights_N, seed=0)
    counts_N = np.bincount(np.concatenate([order.rows(step, 10) for step in range(2000)]), minlength=6)
    assert counts_N[1] == counts_N[5] == 0
    np.testing.assert_allclose(counts_N / counts_N.sum(), weights_N / 8, atol=0.01)


def test_a_batch_is_spread_over_the_dataset_but_shuffled():
    rows_B = WeightedOrder(np.ones(1000), seed=0).rows(0, 10)
    np.testing.assert_array_equal(np.sort(rows_B) // 100, np.arange(10))  # one from each tenth
    assert not np.array_equal(np.sort(rows_B), rows_B)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan]])
def test_weights_that_make_no_sense(weights):
    with pytest.raises(ValueError, match="weights"):
        WeightedOrder(np.array(weights), seed=0)


def test_mix_by_hand():
    np.testing.assert_allclose(mix([np.ones(4), np.array([1.0, 3.0])], [1, 2]), [0.25] * 4 + [0.5, 1.5])
    with pytest.raises(ValueError, match="one share"):
        mix([np.ones(2)], [1, 2])
