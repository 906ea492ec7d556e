"""One-token rollouts: at each place of a demonstration the policy draws tokens and is rewarded for the label.

A drawn token has reward 1 if it is the label, else beta (zero or a little negative), and the loss is REINFORCE on the
draws. In the limit of many draws at kappa = 1 the gradient is (1 - beta) times that of DFT (`nll` with `dft_weights`):
DFT is the baseline to beat. `one_token_rollout_mean_BN` is that limit for any kappa, without chance.

Source: Ming et al. 2025, "One-token rollout" (arXiv 2509.26313); its constants are not confirmed, ours are arguments.
"""

import torch
from torch import Tensor

from agents.objectives.reduce import require_shape


def one_token_rollout_BN(
    logits_BNV: Tensor,
    ids_BN: Tensor,
    *,
    draws: int,
    beta: float = -0.1,
    kappa: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, N) loss of each place, not reduced.

    Args:
        logits_BNV: those that predict `ids_BN`.
        ids_BN: the labels; any valid id where the caller's mask is off.
        draws: K tokens a place.
        beta: reward of a token that is not the label.
        kappa: temperature of the draws; more than 1 explores.
        generator: makes the draws repeatable.
    """
    require_shape(ids_BN, logits=logits_BNV[..., 0])
    logp_BNV = logits_BNV.float().log_softmax(dim=-1)
    law_MV = (logits_BNV.detach().float() / kappa).softmax(dim=-1).flatten(0, 1)
    drawn_BNK = torch.multinomial(law_MV, draws, replacement=True, generator=generator).view(*ids_BN.shape, draws)
    rewards_BNK = torch.where(drawn_BNK == ids_BN[..., None], 1.0, beta)
    return -(rewards_BNK * logp_BNV.gather(-1, drawn_BNK)).mean(dim=-1)


def one_token_rollout_mean_BN(logits_BNV: Tensor, ids_BN: Tensor, *, beta: float = -0.1, kappa: float = 1.0) -> Tensor:
    """(B, N) the mean of `one_token_rollout_BN` over all draws, in closed form: -sum_a q(a) R(a) log pi(a)."""
    require_shape(ids_BN, logits=logits_BNV[..., 0])
    logp_BNV = logits_BNV.float().log_softmax(dim=-1)
    law_BNV = (logits_BNV.detach().float() / kappa).softmax(dim=-1)
    label_BN1 = ids_BN[..., None]
    others_BN = (law_BNV * logp_BNV).sum(dim=-1)
    label_BN = (law_BNV * logp_BNV).gather(-1, label_BN1)[..., 0]
    return -(beta * others_BN + (1 - beta) * label_BN)
