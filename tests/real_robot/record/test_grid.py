"""The grid, against an oracle that compares every sample with every point."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from real_robot.record.grid import grid, nearest


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.floats(1.0, 60.0),
    st.floats(0.05, 0.5),
)
def test_nearest_is_nearest(steps_ms, rate_hz: float, length_s: float) -> None:
    times_N = 5.0 + np.cumsum(steps_ms) / 1000.0
    grid_G = grid(5.0, 5.0 + length_s, rate_hz)
    found = nearest(times_N, grid_G)
    distance_GN = np.abs(times_N[None] - grid_G[:, None])
    np.testing.assert_allclose(np.abs(found.skew_G), distance_GN.min(axis=1), atol=1e-12)
    np.testing.assert_array_equal(found.flag_G, distance_GN.min(axis=1) > 0.02 + 1e-9)
    assert grid_G[-1] <= 5.0 + length_s + 1e-6 < grid_G[-1] + 1.0 / rate_hz + 2e-6


def test_a_lost_frame_is_flagged_and_its_neighbours_are_not() -> None:
    times_N = np.arange(30) / 30.0
    found = nearest(np.delete(times_N, 10), times_N)
    assert np.flatnonzero(found.flag_G).tolist() == [10]
    latest = nearest(times_N + 0.001, times_N)  # a camera 1 ms late: its own frame, not the one before
    assert latest.place_G.tolist() == list(range(30)) and not latest.flag_G.any()


def test_nothing_to_match() -> None:
    with pytest.raises(ValueError, match="no samples"):
        nearest(np.zeros(0), np.zeros(3))
    assert len(grid(1.0, 0.5, 30.0)) == 0
