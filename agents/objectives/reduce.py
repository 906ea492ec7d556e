"""From a loss for every element to the one number that is differentiated."""

from torch import Tensor


def masked_mean(losses: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """sum(weights * losses) / total: each valid element counts the same, in whichever sequence or batch it stands.

    Args:
        losses: any shape, not reduced.
        weights: the same shape; a mask (bool) or weights >= 0.
        total: the sum of weights of the whole optimiser step, where this batch is only a part of it (several
            processes, accumulated gradients); the batch's own when None.

    Returns:
        A scalar; zero, with zero gradient, where nothing has weight.
    """
    weights = weights.to(losses.dtype)
    total = weights.sum() if total is None else total.to(losses.dtype)
    return (losses * weights).sum() / total.where(total > 0, total.new_ones(()))
