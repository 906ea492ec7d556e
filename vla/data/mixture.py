"""Which samples come when: a pure function of (seed, step), so that a run resumes at the sample where it stopped."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class WeightedOrder:
    """Draws rows with probability proportional to their weights.

    Within a batch the draws are stratified (one from each of B slices of equal weight), so every batch is spread over
    the whole dataset; each row's expected number of draws is exactly its share of the batch.
    """

    def __init__(self, weights_N: NDArray, seed: int) -> None:
        """Raises ValueError on weights that are negative, not finite or all zero."""
        weights_N = np.asarray(weights_N, np.float64)
        if not np.isfinite(weights_N).all() or (weights_N < 0).any() or weights_N.sum() == 0:
            raise ValueError("weights must be finite, not negative and not all zero")
        self._cumulative_N = np.cumsum(weights_N) / weights_N.sum()
        self._last = int(np.flatnonzero(weights_N)[-1])
        self._seed = seed

    def rows(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """The rows (B,) of batch `step`, in random order."""
        rng = np.random.default_rng([self._seed, step])
        points_B = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
        rows_B = np.searchsorted(self._cumulative_N, points_B, side="right")
        return rng.permutation(np.minimum(rows_B, self._last))


def mix(weights: Sequence[NDArray], shares: Sequence[float]) -> NDArray[np.float64]:
    """Weights of several datasets, put end to end so that dataset i is drawn with probability shares[i] / sum(shares).

    Raises:
        ValueError: not one share for each dataset, or one that is negative.
    """
    if len(weights) != len(shares) or min(shares, default=0) < 0:
        raise ValueError(f"{len(weights)} datasets with shares {list(shares)}: expected one share >= 0 for each")
    return np.concatenate([share * np.asarray(w) / np.sum(w) for w, share in zip(weights, shares, strict=True)])
