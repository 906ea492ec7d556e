import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.debounce import debounce, first_declared


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5))
def test_every_window_must_be_positive(frames: list[bool], count: int):
    """Against the definition, window by window."""
    positive_T = np.array(frames, bool)
    expected = [t + 1 >= count and all(frames[t + 1 - count : t + 1]) for t in range(len(frames))]
    assert debounce(positive_T, count).tolist() == expected
    assert first_declared(positive_T, count) == (expected.index(True) if any(expected) else None)


def test_a_gap_starts_the_count_again():
    assert first_declared(np.array([1, 1, 0, 1, 1, 1], bool), 3) == 5
    assert first_declared(np.array([1, 1, 0, 1, 1, 0], bool), 3) is None


def test_false_alarms_of_independent_frames():
    """The specification's figure: 92 % of 40-frame episodes at 6 % a frame; three in a row leave under 1 %."""
    rng = np.random.default_rng(0)
    episodes = rng.random((4000, 40)) < 0.06
    alarms = [np.mean([first_declared(each, count) is not None for each in episodes]) for count in (1, 3)]
    assert alarms[0] == pytest.approx(1 - 0.94**40, abs=0.015)
    assert alarms[1] == pytest.approx(0.008, abs=0.006)


def test_count_below_one():
    with pytest.raises(ValueError, match="count is 0"):
        debounce(np.ones(3, bool), 0)
