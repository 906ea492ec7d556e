"""From a loss for every element to the one number that is differentiated.

Letters: B sequence, N token (or the steps of an action chunk: a chunk is a sequence, its actions are the tokens).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]
SAME_TOKENS = " as the log-probabilities have: were both made with the same tokenizer and padding?"


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


def aggregate(
    losses_BN: Tensor,
    mask_BN: Tensor,
    how: Aggregation = "token",
    *,
    total: Tensor | None = None,
    length: int | None = None,
) -> Tensor:
    """One number from the losses (B, N) of tokens; what stands where the mask is off, even infinity, has no effect.

    `token` counts every token alike (DAPO, and the safe choice). `sequence` takes the mean of each sequence first, so
    that tokens of long ones weigh less (GRPO); sequences without a token are not counted. `constant` divides by what
    the sequences could have held, so that length changes nothing (Dr. GRPO, arXiv 2503.20783).

    Args:
        losses_BN: not reduced; weights are already in it.
        mask_BN: bool, the tokens that are trained.
        how: see above.
        total: of the whole optimiser step where this batch is a part of it: its tokens for `token`, its sequences for
            the others. Means of means are not the mean: without it, accumulated gradients differ from one big batch.
        length: the longest sequence allowed [token], for `constant` only.
    """
    require_shape(losses_BN, mask=mask_BN)
    mask_BN = mask_BN.bool()
    losses_BN = losses_BN.where(mask_BN, 0.0)
    if how == "token":
        return masked_mean(losses_BN, mask_BN, total)
    if how == "sequence":
        count_B = mask_BN.sum(dim=1)
        return masked_mean(losses_BN.sum(dim=1) / count_B.clamp(min=1), count_B > 0, total)
    if how == "constant":
        if length is None:
            raise ValueError("length is None, but how='constant' divides by it: give the longest sequence allowed")
        sequences = len(losses_BN) if total is None else total
        return losses_BN.sum() / (sequences * length)
    raise ValueError(f"how is {how!r}, expected one of {', '.join(get_args(Aggregation))}")


def sequence_sum(values_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """(B,) sums over the tokens in the mask: of log-probabilities, the log-probability of the sequence."""
    require_shape(values_BN, mask=mask_BN)
    return values_BN.where(mask_BN.bool(), 0.0).sum(dim=1)


def require_shape(reference: Tensor, *, hint: str = "", **others: Tensor | None) -> None:
    """Raises ValueError, with name and hint, where one of `others` is there and has not the shape of `reference`."""
    for name, other in others.items():
        if other is not None and other.shape != reference.shape:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, expected {tuple(reference.shape)}{hint}")


def per_token(values: Tensor, logp_BN: Tensor, name: str) -> Tensor:
    """`values` (B,), one for each sequence, or (B, N), as (B, N)."""
    if values.shape == logp_BN.shape[:1]:
        return values[:, None].expand_as(logp_BN)
    if values.shape == logp_BN.shape:
        return values
    raise ValueError(
        f"{name} has shape {tuple(values.shape)}, expected {tuple(logp_BN.shape[:1])} or {tuple(logp_BN.shape)}"
    )


def require_finite(name: str, values: Tensor) -> None:
    """Raises ValueError, with the name and the first place, where `values` has NaN or infinity."""
    if not torch.isfinite(values).all():
        where = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise ValueError(f"{name} is {values[tuple(where)].item()} at {where}, expected finite numbers")
