"""Weighted negative log-likelihood: supervised fine-tuning and everything that is one with other weights.

The weight multiplies the gradient and has none itself. `nll` alone is SFT, RAFT, rejection sampling and filtered
cloning; with the functions below it is

    dft_weights          DFT, arXiv 2508.05629: p, so that the gradient is that of -p
    chord_weights        CHORD-phi, arXiv 2508.11408: p (1 - p), nothing for what is certain or hopeless
    luffy_weights        LUFFY, arXiv 2504.14945: gamma p / (p + gamma)^2, the gradient of -p / (p + gamma)
    exponential_weights  AWR / RWR, and the weight exp(r / tau) of RISE, arXiv 2407.18219
    key_token_weights    TL-Training, arXiv 2412.15495: the few tokens that decide which tool is called

It serves action chunks through `laplace.py`; the three weights of a probability p need p <= 1 and refuse densities.
"""

import math

import torch
from torch import Tensor

from agents.objectives.reduce import Aggregation, aggregate, per_token, require_shape


def nll(
    logp_BN: Tensor,
    mask_BN: Tensor,
    weights: Tensor | None = None,
    *,
    how: Aggregation = "token",
    total: Tensor | None = None,
    length: int | None = None,
) -> Tensor:
    """The aggregate of -weight * log p.

    Args:
        logp_BN: log-probability [nat] of each target.
        mask_BN: bool, the targets.
        weights: (B,) or (B, N); used as constants. One everywhere when None.
        how: see `reduce.aggregate`, as for total and length. The mean divides by the number of targets, not by the sum
            of weights; give `total` for another denominator.
        total: see `how`.
        length: see `how`.
    """
    require_shape(logp_BN, mask=mask_BN)
    losses_BN = -logp_BN
    if weights is not None:
        losses_BN = losses_BN * per_token(weights.detach().to(logp_BN.dtype), logp_BN, "weights")
    return aggregate(losses_BN, mask_BN, how, total=total, length=length)


def dft_weights(logp_BN: Tensor) -> Tensor:
    """The probability p of each target."""
    return _probability(logp_BN)


def chord_weights(logp_BN: Tensor) -> Tensor:
    """The product p (1 - p), at most 1/4."""
    p_BN = _probability(logp_BN)
    return p_BN * (1 - p_BN)


def luffy_weights(logp_BN: Tensor, gamma: float = 0.1) -> Tensor:
    """The slope gamma p / (p + gamma)^2 of p / (p + gamma) in log p."""
    p_BN = _probability(logp_BN)
    return gamma * p_BN / (p_BN + gamma).square()


def exponential_weights(advantages: Tensor, temperature: float, cap: float = 20.0) -> Tensor:
    """min(exp(advantage / temperature), cap), any shape, never infinite.

    Source: Peng et al. 2019 (AWR), equation 12 and its clipping at 20; with rewards for advantages it is
    reward-weighted regression.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected more than 0")
    return (advantages.detach() / temperature).clamp(max=math.log(cap)).exp()


def key_token_weights(key_BN: Tensor, mask_BN: Tensor, cap: float = 9.0) -> Tensor:
    """min(rest / keys, cap) on key tokens where they are the fewer, one on the other targets, (B, N) float32.

    Counted row by row, so that a row's weights do not depend on its neighbours. The paper divides by the sum of the
    weights: pass it to `nll` as `total`.

    Args:
        key_BN: bool, the tokens that `masks.divergence_points` marks.
        mask_BN: bool, the targets.
        cap: the largest weight.
    """
    require_shape(mask_BN, key=key_BN)
    key_BN = key_BN.bool() & mask_BN.bool()
    keys_B1 = key_BN.sum(dim=1, keepdim=True)
    rest_B1 = mask_BN.bool().sum(dim=1, keepdim=True) - keys_B1
    weight_B1 = (rest_B1 / keys_B1.clamp(min=1)).clamp(min=1.0, max=cap)
    return torch.where(key_BN, weight_B1, torch.ones_like(weight_B1))


def _probability(logp_BN: Tensor) -> Tensor:
    """exp(log p) without gradient; tokens have one, continuous actions a density that may exceed it."""
    logp_BN = logp_BN.detach()
    if (logp_BN > 1e-4).any():
        raise ValueError(
            f"logp has {logp_BN.max().item():.3g}, expected at most 0: p and p (1 - p) weigh probabilities of tokens, "
            "not densities of actions"
        )
    return logp_BN.clamp(max=0.0).exp()
