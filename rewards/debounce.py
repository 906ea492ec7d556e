"""A success is declared after k consecutive positive frames, not after one.

With a chance p of a false positive in each of n independent frames, an episode has one with 1 - (1 - p)^n: 92 % at
p = 0.06 and n = 40. Three in a row cut that to 0.8 %. Frames are not independent, so the gain has to be measured; but
a false positive pays for failing, where a miss only delays.
"""

import numpy as np
from numpy.typing import NDArray


def debounce(positive_T: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """True where this frame and the count - 1 before it are all positive.

    Raises:
        ValueError: count below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    run, declared = 0, np.zeros(len(positive_T), bool)
    for t, positive in enumerate(positive_T):
        run = run + 1 if positive else 0
        declared[t] = run >= count
    return declared


def first_declared(positive_T: NDArray[np.bool_], count: int) -> int | None:
    """The frame at which success is declared, or None. An episode that is told so ends there."""
    frames = np.flatnonzero(debounce(positive_T, count))
    return int(frames[0]) if len(frames) else None
