"""A fixed grid of times, and for each of its points the sample nearest in time.

What is special: nearest, not latest. A camera that runs freely at the dataset's rate slips by one frame now and then;
with `latest`, its pictures are up to a period old and one is doubled. What is too far away is used and flagged, so
nothing is dropped in silence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from real_robot.core.types import Array

MAX_SKEW_S = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """For each point of a grid (G,) the place of the nearest sample, its time minus the point's; flagged if far."""

    place_G: NDArray[np.intp]
    skew_G: Array
    flag_G: NDArray[np.bool_]


def grid(start_s: float, end_s: float, rate_hz: float) -> Array:
    """Times from `start_s`, 1 / rate apart, up to `end_s` and never past it."""
    return start_s + np.arange(max(0, int((end_s - start_s) * rate_hz + 1e-6) + 1)) / rate_hz


def nearest(times_N: Array, grid_G: Array, max_skew_s: float = MAX_SKEW_S) -> Matched:
    """Matches samples, whose times grow, to a grid. Of two that are equally near it takes the earlier one."""
    if not len(times_N):
        raise ValueError("no samples to match")
    right_G = np.clip(np.searchsorted(times_N, grid_G), 0, len(times_N) - 1)
    left_G = np.maximum(right_G - 1, 0)
    later = np.abs(times_N[right_G] - grid_G) < np.abs(times_N[left_G] - grid_G)
    place_G = np.where(later, right_G, left_G)
    skew_G = times_N[place_G] - grid_G
    return Matched(place_G=place_G, skew_G=skew_G, flag_G=np.abs(skew_G) > max_skew_s + 1e-9)
