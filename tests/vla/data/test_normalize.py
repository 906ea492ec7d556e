"""Statistics against numpy on the raw columns, the normalisation pair against its inverse."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.core.errors import NonFiniteError, SpecMismatchError
from vla.data.normalize import Normalize, Statistics
from vla.data.transforms import Transforms


def test_statistics_are_of_all_frames_and_not_lerobots(source, episodes, dataset_root):
    actions_NA = np.concatenate([episode.actions_TA for episode in episodes]).astype(np.float64)
    statistics = Statistics.of(source.columns().actions_NA)
    order_NA = np.sort(actions_NA, axis=0)
    for name, q in (("q01", 0.01), ("q99", 0.99)):  # linear interpolation between order statistics, written out
        place = q * (len(order_NA) - 1)
        low = int(place)
        expected_A = order_NA[low] + (place - low) * (order_NA[low + 1] - order_NA[low])
        np.testing.assert_allclose(getattr(statistics, name), expected_A, rtol=1e-12)
    np.testing.assert_array_equal(statistics.min, order_NA[0])
    np.testing.assert_array_equal(statistics.max, order_NA[-1])
    np.testing.assert_allclose(statistics.mean, actions_NA.sum(axis=0) / len(actions_NA))
    np.testing.assert_allclose(statistics.std**2, ((actions_NA - statistics.mean) ** 2).mean(axis=0))
    assert statistics.count == len(actions_NA)

    theirs = json.loads((dataset_root / "meta" / "stats.json").read_text())["action"]
    span_A = statistics.max - statistics.min
    error_A = np.abs(np.array(theirs["q99"]) - statistics.q99) / span_A
    assert error_A[:2].max() > 0.05  # a mean of per-episode quantiles is another number


def test_known_numbers():
    values_ND = np.linspace(0, 100, 101)[:, None]  # q01 = 1, q99 = 99
    normalize = Normalize.fit(values_ND, [False], clip=1.0)
    scaled = normalize.forward(np.array([[1.0], [50.0], [99.0], [0.0], [1000.0]]))
    np.testing.assert_allclose(scaled[:, 0], [-1, 0, 1, -1, 1], atol=1e-7)
    np.testing.assert_allclose(normalize.inverse(np.array([[-1.0], [0.0], [1.0]]))[:, 0], [1, 50, 99], rtol=1e-7)
    wide = Normalize.fit(values_ND, [False], clip=1.5)
    np.testing.assert_allclose(wide.forward(np.array([[-20.0], [0.0]]))[:, 0], [-1.42857143, -1.02040816], rtol=1e-6)
    assert wide.forward(np.array([1e9]))[0] == 1.5


def test_binary_constant_and_rarely_moving_axes():
    count = 1000
    values_ND = np.zeros((count, 3))
    values_ND[:3, 0], values_ND[:, 1], values_ND[0, 2] = 1.0, 0.3, 5.0
    normalize = Normalize.fit(values_ND, [True, False, False])
    seen = np.array([[0.0, 0.3, 0.0], [1.0, 0.31, 5.0]])
    np.testing.assert_allclose(normalize.forward(seen), [[-1, 0, -1], [1, 0, 1]])
    predicted = np.array([[-0.2, 0.7, 0.0], [0.1, -3.0, 1.0]])
    np.testing.assert_allclose(normalize.inverse(predicted), [[0, 0.3, 2.5], [1, 0.3, 5]], rtol=1e-6)


finite = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=30), st.data())
def test_inverse_undoes_forward_within_bounds(rows, data):
    values_ND = np.array(rows)
    normalize = Normalize.fit(values_ND, [False, False])
    scaled = normalize.forward(values_ND)
    assert (np.abs(scaled) <= 1).all()
    statistics = normalize.statistics
    moving_D = statistics.q99 > statistics.q01
    low_D, high_D = (
        np.where(moving_D, statistics.q01, statistics.min),
        np.where(moving_D, statistics.q99, statistics.max),
    )
    inside_D = low_D + data.draw(st.floats(0, 1)) * (high_D - low_D)
    np.testing.assert_allclose(
        normalize.inverse(normalize.forward(inside_D)), inside_D, rtol=1e-6, atol=1e-6 * np.abs(values_ND).max() + 1e-7
    )
    np.testing.assert_allclose(
        normalize.inverse(scaled), np.clip(values_ND, low_D, high_D), atol=1e-6 * np.abs(values_ND).max() + 1e-7
    )


def test_any_leading_shape():
    normalize = Normalize.fit(np.random.default_rng(0).standard_normal((50, 4)), [False] * 4)
    chunk = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    scaled = normalize.forward(chunk)
    assert scaled.shape == (2, 3, 4) and scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled[1, 2], normalize.forward(chunk[1, 2]))


def test_through_json(spec, source):
    columns = source.columns()
    transforms = Transforms.fit(spec, columns.states_NS, columns.actions_NA)
    again = Transforms.from_dict(json.loads(json.dumps(transforms.to_dict())))
    np.testing.assert_array_equal(again.observation(columns.states_NS), transforms.observation(columns.states_NS))
    scaled = transforms.actions(columns.actions_NA)
    np.testing.assert_array_equal(again.inverse_actions(scaled), transforms.inverse_actions(scaled))
    assert set(np.unique(scaled[:, 2])) == {-1.0, 1.0}
    assert again.state.clip == 1.5 and again.action.clip == 1.0


def test_what_is_refused():
    normalize = Normalize.fit(np.eye(3), [False] * 3)
    with pytest.raises(NonFiniteError, match=r"\[1\]"):
        normalize.forward(np.array([0.0, np.nan, 0.0]))
    with pytest.raises(NonFiniteError, match=r"\[2\]"):
        normalize.inverse(np.array([0.0, 0.0, -np.inf]))
    with pytest.raises(NonFiniteError):
        Statistics.of([[1.0], [np.nan]])
    with pytest.raises(SpecMismatchError, match="3 dimensions"):
        normalize.forward(np.zeros(4))
    with pytest.raises(SpecMismatchError, match="binary"):
        Normalize.fit(np.eye(3), [False])
    plain = normalize.to_dict()
    del plain["statistics"]["q99"]
    with pytest.raises(SpecMismatchError, match="q99"):
        Normalize.from_dict(plain)
    with pytest.raises(SpecMismatchError, match="action"):
        Transforms.from_dict({"state": normalize.to_dict()})
    with pytest.raises(SpecMismatchError, match="clip"):
        Normalize.from_dict({"statistics": {}, "binary": []})
