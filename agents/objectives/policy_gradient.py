"""Policy gradients: one surrogate, of which the named algorithms are arguments.

    PPO              advantages of `advantages.turn_advantages`, how="token"
    GRPO             `group_advantages`, how="sequence", kl_coefficient=0.04 (arXiv 2402.03300)
    Dr. GRPO         `group_advantages(scale=False)`, how="constant" (arXiv 2503.20783)
    DAPO             clip_high=0.28, how="token", groups without variance dropped (arXiv 2503.14476)
    GSPO             ratio="sequence_mean", how="sequence" (arXiv 2507.18071)
    RLOO             `leave_one_out_advantages`, ratio="sequence_sum", how="sequence" (arXiv 2402.14740)
    CISPO            surrogate="cispo", clip_low=1 (arXiv 2506.13585)
    RAFT++           rewards 0 / 1 as advantages
    REINFORCE        surrogate="reinforce"

A sequence may be an action chunk: N is then its horizon, log p comes from `laplace.py`, and ratio="sequence_mean" keeps
the ratio of the long sum near one.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from agents.objectives.reduce import SAME_TOKENS, Aggregation, aggregate, per_token, require_finite, require_shape

Surrogate = Literal["clip", "cispo", "reinforce"]
Ratio = Literal["token", "sequence_mean", "sequence_sum"]
_LARGEST_LOG_RATIO = 20.0  # exp(20) is far outside any clip; beyond it infinity times a zero advantage would be NaN


def policy_gradient(
    logp_BN: Tensor,
    advantages: Tensor,
    mask_BN: Tensor,
    *,
    logp_old_BN: Tensor | None = None,
    logp_ref_BN: Tensor | None = None,
    surrogate: Surrogate = "clip",
    ratio: Ratio = "token",
    clip_low: float | Tensor = 0.2,
    clip_high: float | Tensor = 0.2,
    dual_clip: float | None = None,
    kl_coefficient: float = 0.0,
    unbiased_kl: bool = True,
    weights: Tensor | None = None,
    how: Aggregation = "token",
    total: Tensor | None = None,
    length: int | None = None,
) -> Tensor:
    """The loss whose gradient raises the log-probability of what had an advantage.

    Args:
        logp_BN: log-probability [nat] of the taken tokens or actions, with gradient.
        advantages: (B,) or (B, N); used as constants.
        mask_BN: bool, what the policy itself wrote.
        logp_old_BN: of the policy that sampled; `logp_BN` itself when None (on-policy: every ratio is one).
        logp_ref_BN: of the reference, for the KL term.
        surrogate: `clip` is -min(r A, clip(r) A); `cispo` is -clip(r) A log p with a constant clip(r), so that no token
            loses its gradient; `reinforce` is -A log p.
        ratio: r of each token, or of the sequence: its geometric mean over tokens, or the product.
        clip_low: the ratio's lower limit is 1 - clip_low; a tensor (B, N) where demonstrated tokens have their own.
        clip_high: the upper limit is 1 + clip_high.
        dual_clip: where A < 0 the objective is at least dual_clip * A (arXiv 1912.09729); more than 1.
        kl_coefficient: times `kl_k3_BN`, added to each token.
        unbiased_kl: times the ratio, which makes the gradient that of KL(p || p_ref) (DeepSeek-V3.2, arXiv 2512.02556);
            without, it is that of KL(p_ref || p), as in the first GRPO.
        weights: (B,) or (B, N) constants on the policy's term, e.g. durations or a mask of high-entropy tokens.
        how: see `reduce.aggregate`, as for total and length.
        total: see `how`.
        length: see `how`.
    """
    require_shape(logp_BN, hint=SAME_TOKENS, mask=mask_BN, logp_old=logp_old_BN, logp_ref=logp_ref_BN)
    require_finite("advantages", advantages)
    advantages_BN = per_token(advantages.detach().to(logp_BN.dtype), logp_BN, "advantages")
    ratio_BN = importance_ratio(logp_BN, logp_BN if logp_old_BN is None else logp_old_BN, mask_BN, ratio)
    if surrogate == "reinforce":
        losses_BN = -advantages_BN * logp_BN
    else:
        losses_BN = _surrogate_BN(logp_BN, ratio_BN, advantages_BN, surrogate, clip_low, clip_high, dual_clip)
    if weights is not None:
        losses_BN = losses_BN * per_token(weights.detach().to(logp_BN.dtype), logp_BN, "weights")
    if kl_coefficient:
        if logp_ref_BN is None:
            raise ValueError(f"kl_coefficient is {kl_coefficient}, but logp_ref is None")
        kl_BN = kl_k3_BN(logp_BN, logp_ref_BN)
        losses_BN = losses_BN + kl_coefficient * (kl_BN * ratio_BN if unbiased_kl else kl_BN)
    return aggregate(losses_BN, mask_BN, how, total=total, length=length)


def _surrogate_BN(
    logp_BN: Tensor,
    ratio_BN: Tensor,
    advantages_BN: Tensor,
    surrogate: Surrogate,
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    dual_clip: float | None,
) -> Tensor:
    low, high = torch.as_tensor(1 - clip_low).to(ratio_BN), torch.as_tensor(1 + clip_high).to(ratio_BN)
    clipped_BN = ratio_BN.clamp(low, high)
    if surrogate == "cispo":
        return -clipped_BN.detach() * advantages_BN * logp_BN
    if surrogate != "clip":
        raise ValueError(f"surrogate is {surrogate!r}, expected one of {', '.join(get_args(Surrogate))}")
    objective_BN = torch.minimum(ratio_BN * advantages_BN, clipped_BN * advantages_BN)
    if dual_clip is not None:
        if dual_clip <= 1:
            raise ValueError(f"dual_clip is {dual_clip}, expected more than 1")
        objective_BN = objective_BN.where(advantages_BN >= 0, objective_BN.maximum(dual_clip * advantages_BN))
    return -objective_BN


def importance_ratio(logp_BN: Tensor, logp_old_BN: Tensor, mask_BN: Tensor, ratio: Ratio = "token") -> Tensor:
    """(B, N) probability now over probability when sampled; of a sequence, the same number at each of its tokens."""
    log_BN = (logp_BN - logp_old_BN.detach()).where(mask_BN.bool(), 0.0)
    if ratio == "sequence_sum":
        log_BN = log_BN.sum(dim=1, keepdim=True).expand_as(log_BN)
    elif ratio == "sequence_mean":
        log_BN = (log_BN.sum(dim=1) / mask_BN.sum(dim=1).clamp(min=1))[:, None].expand_as(log_BN)
    elif ratio != "token":
        raise ValueError(f"ratio is {ratio!r}, expected one of {', '.join(get_args(Ratio))}")
    return log_BN.clamp(max=_LARGEST_LOG_RATIO).exp()


def kl_k1_BN(logp_BN: Tensor, logp_ref_BN: Tensor) -> Tensor:
    """The log-ratio log p - log p_ref, an unbiased estimate of KL(p || p_ref) from samples of p.

    For a reward's penalty (RLOO, CORY). As a loss it does nothing: its gradient has mean zero.
    """
    require_shape(logp_BN, hint=SAME_TOKENS, logp_ref=logp_ref_BN)
    return logp_BN - logp_ref_BN.detach()


def kl_k3_BN(logp_BN: Tensor, logp_ref_BN: Tensor) -> Tensor:
    """The estimate p_ref / p - 1 - log(p_ref / p), never negative and unbiased for KL(p || p_ref).

    As a loss its gradient, in the mean over samples of p, is that of KL(p_ref || p), unless the ratio multiplies it.
    Source: J. Schulman, "Approximating KL divergence", 2020.
    """
    require_shape(logp_BN, hint=SAME_TOKENS, logp_ref=logp_ref_BN)
    log_BN = (logp_ref_BN.detach() - logp_BN).clamp(max=_LARGEST_LOG_RATIO)
    return log_BN.exp() - log_BN - 1


def clip_fraction(
    ratio_BN: Tensor, advantages: Tensor, mask_BN: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> float:
    """Share of the tokens whose gradient the clip has taken away; to be logged."""
    advantages_BN = per_token(advantages, ratio_BN, "advantages")
    low_BN = (ratio_BN < 1 - clip_low) & (advantages_BN < 0)
    high_BN = (ratio_BN > 1 + clip_high) & (advantages_BN > 0)
    return float(aggregate((low_BN | high_BN).float(), mask_BN))
