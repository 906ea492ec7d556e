"""Exact statistics of raw columns, and the normalisation pair that training and run time share.

Quantiles are taken over all frames at once. (Those that LeRobot keeps in meta/stats.json are frame-weighted means of
per-episode quantiles, which is another number.) The rule is OpenVLA's q99: y = 2 (x - q01) / (q99 - q01 + 1e-8) - 1,
clipped; it departs in three places. A binary axis maps its low to -1 and its high to +1. A constant axis maps to 0
instead of being divided by 1e-8. An axis with q01 = q99 that does move, now and then, uses its minimum and maximum.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla.core.errors import NonFiniteError, SpecMismatchError
from vla.core.types import Float

type Double = NDArray[np.float64]

_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Per-dimension statistics of (N, D) values, each (D,) float64, and the number of frames."""

    q01: Double
    q99: Double
    min: Double
    max: Double
    mean: Double
    std: Double
    count: int

    @classmethod
    def of(cls, values_ND: ArrayLike) -> Self:
        """Exact statistics over all frames. Raises NonFiniteError, ValueError if there are no frames."""
        values_ND = np.asarray(values_ND, np.float64)
        if values_ND.ndim != 2 or len(values_ND) == 0:
            raise ValueError(f"values have shape {values_ND.shape}, expected (N, D) with N > 0")
        _check_finite(values_ND)
        q01, q99 = np.quantile(values_ND, [0.01, 0.99], axis=0)
        return cls(
            q01=q01,
            q99=q99,
            min=values_ND.min(axis=0),
            max=values_ND.max(axis=0),
            mean=values_ND.mean(axis=0),
            std=values_ND.std(axis=0),
            count=len(values_ND),
        )

    def to_dict(self) -> dict[str, Any]:
        """Lists and numbers, for JSON."""
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SpecMismatchError when a statistic is missing."""
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in plain]:
            raise SpecMismatchError(f"statistics lack {missing}, expected {names}")
        arrays = {name: np.asarray(plain[name], np.float64) for name in names if name != "count"}
        return cls(**arrays, count=int(plain["count"]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalize:
    """Raw values (..., D) to about [-1, 1] and back.

    statistics  of the raw values
    binary_D    (D,) bool; these axes become exactly -1 or +1, and back the two values that were seen
    clip        bound of the normalised value; 1.0 for actions, more for states so that an excursion stays visible
    """

    statistics: Statistics
    binary_D: NDArray[np.bool_]
    clip: float

    @classmethod
    def fit(cls, values_ND: ArrayLike, binary_D: ArrayLike, *, clip: float = 1.0) -> Self:
        """From the raw values of all frames. Raises NonFiniteError, SpecMismatchError on a shape that does not fit."""
        statistics, binary_D = Statistics.of(values_ND), np.asarray(binary_D, bool)
        if binary_D.shape != statistics.min.shape:
            raise SpecMismatchError(f"binary axes have shape {binary_D.shape}, values {statistics.min.shape}")
        return cls(statistics=statistics, binary_D=binary_D, clip=clip)

    def forward(self, values: NDArray) -> Float:
        """(..., D) raw to (..., D) float32 within [-clip, clip]. Raises NonFiniteError, SpecMismatchError."""
        low_D, span_D = self._bounds()
        values = self._checked(values)
        scaled = np.clip(2.0 * (values - low_D) / span_D - 1.0, -self.clip, self.clip)
        scaled = np.where(self.binary_D, np.where(values > self._middle(), 1.0, -1.0), scaled)
        return np.where(self._constant(), 0.0, scaled).astype(np.float32)

    def inverse(self, scaled: NDArray) -> Float:
        """(..., D) normalised to (..., D) float32 raw; exact within the bounds. Raises as `forward` does."""
        low_D, span_D = self._bounds()
        scaled = self._checked(scaled)
        values = (scaled + 1.0) / 2.0 * span_D + low_D
        values = np.where(self.binary_D, np.where(scaled > 0, self.statistics.max, self.statistics.min), values)
        return np.where(self._constant(), self.statistics.min, values).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"statistics": self.statistics.to_dict(), "binary": self.binary_D.tolist(), "clip": self.clip}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SpecMismatchError when a key is missing."""
        if missing := [name for name in ("statistics", "binary", "clip") if name not in plain]:
            raise SpecMismatchError(f"normalisation lacks {missing}, expected ['statistics', 'binary', 'clip']")
        return cls(
            statistics=Statistics.from_dict(plain["statistics"]),
            binary_D=np.asarray(plain["binary"], bool),
            clip=float(plain["clip"]),
        )

    def _bounds(self) -> tuple[Double, Double]:
        seen = self.statistics
        moving_D = seen.q99 > seen.q01
        low_D, high_D = np.where(moving_D, seen.q01, seen.min), np.where(moving_D, seen.q99, seen.max)
        return low_D, high_D - low_D + _EPSILON

    def _middle(self) -> Double:
        return (self.statistics.min + self.statistics.max) / 2

    def _constant(self) -> NDArray[np.bool_]:
        return self.statistics.min == self.statistics.max

    def _checked(self, values: NDArray) -> Double:
        values, dims = np.asarray(values, np.float64), self.statistics.min.shape
        if values.shape[-1:] != dims:
            raise SpecMismatchError(f"values have shape {values.shape}, the statistics are of {dims[0]} dimensions")
        _check_finite(values)
        return values


def _check_finite(values: NDArray) -> None:
    if not np.isfinite(values).all():
        bad = np.unique(np.argwhere(~np.isfinite(values))[:, -1]).tolist()
        raise NonFiniteError(f"NaN or infinity in dimensions {bad}")
