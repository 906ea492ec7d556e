"""Losses of continuous and binary predictions, element by element; `reduce.py` weighs and averages them."""

from torch import Tensor
from torch.nn import functional


def absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """|prediction - target|, same shape. Up to a constant, minus the log-density of a Laplace law of unit scale."""
    return (predictions - targets).abs()


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """(prediction - target)^2, same shape; its minimum is the conditional mean, as denoising needs."""
    return (predictions - targets).square()


def binary_cross_entropy(logits: Tensor, signs: Tensor) -> Tensor:
    """-log sigmoid(sign * logit) [nat], same shape, for targets written as -1 and +1.

    Args:
        logits: any shape; positive means +1.
        signs: the same shape; only the sign is read, zero counts as -1.
    """
    return functional.binary_cross_entropy_with_logits(logits, (signs > 0).to(logits.dtype), reduction="none")
