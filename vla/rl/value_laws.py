"""What a value network predicts: the value itself, a histogram of it, or the logit of a probability.

`outputs` is the width of a prediction (None: one number, without an axis of its own), `value` turns predictions into
values, `loss` compares predictions with target values, element by element.
HL-Gauss: Farebrother et al. 2024, "Stop Regressing"; here the histogram reaches past both ends of the range, so that
the mean of a projected target is the target at the ends too. Bernoulli: cross entropy on returns between 0 and 1, as in
decoupled Q-chunking.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from agents.objectives.regression import squared_error

_SIGMA_BINS = 0.75  # width of the Gaussian in bins: enough overlap that its mean survives the binning
_MARGIN_BINS = 3  # four sigma past each end


class ValueLaw(Protocol):
    """Frozen; holds no weights."""

    @property
    def outputs(self) -> int | None: ...

    def value(self, outputs: Tensor) -> Tensor:
        """Predictions (...) or (..., outputs) to values (...)."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss (...) of each prediction against its target value (...), not reduced."""
        ...


@dataclass(frozen=True)
class Squared:
    """The value itself under a squared error."""

    outputs: int | None = None

    def value(self, outputs: Tensor) -> Tensor:
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return squared_error(outputs, targets)


@dataclass(frozen=True, kw_only=True)
class HLGauss:
    """Logits of a histogram over [low, high]; a target becomes a Gaussian of 0.75 bins. Targets outside are clipped."""

    low: float
    high: float
    bins: int = 101

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)
        if self.bins <= 2 * _MARGIN_BINS:
            raise ValueError(f"bins is {self.bins}, expected more than {2 * _MARGIN_BINS}")

    @property
    def outputs(self) -> int | None:
        return self.bins

    def value(self, outputs: Tensor) -> Tensor:
        edges = self._edges(outputs)
        return outputs.softmax(dim=-1) @ ((edges[1:] + edges[:-1]) / 2)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(self.histogram(targets) * outputs.log_softmax(dim=-1)).sum(dim=-1)

    def histogram(self, targets: Tensor) -> Tensor:
        """(..., bins): the mass of N(target, sigma) between the edges of each bin, made to sum to one."""
        edges = self._edges(targets)
        sigma = _SIGMA_BINS * self._bin_width
        clipped = targets.clamp(self.low, self.high).unsqueeze(-1)
        below = torch.special.ndtr((edges - clipped) / sigma)
        mass = below.diff(dim=-1)
        return mass / mass.sum(dim=-1, keepdim=True)

    @property
    def _bin_width(self) -> float:
        return (self.high - self.low) / (self.bins - 2 * _MARGIN_BINS)

    def _edges(self, like: Tensor) -> Tensor:
        margin = _MARGIN_BINS * self._bin_width
        return torch.linspace(
            self.low - margin, self.high + margin, self.bins + 1, dtype=like.dtype, device=like.device
        )


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """A logit: the value lies between low and high as a probability between 0 and 1. Targets are clipped to that."""

    low: float
    high: float
    outputs: int | None = None

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def value(self, outputs: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * outputs.sigmoid()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        shares = ((targets - self.low) / (self.high - self.low)).clamp(0, 1)
        return functional.binary_cross_entropy_with_logits(outputs, shares, reduction="none")


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}: expected low < high, the range of attainable returns")
