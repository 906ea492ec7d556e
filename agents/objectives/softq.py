"""Imitation as inverse soft-Q learning: logits are action values, and the likelihood gets a Bellman term.

Q(s, a) is the raw logit, V(s) = logsumexp over a, log pi = Q - V, and V after the last token is zero. The loss of a
token is -log pi + penalty * (Q - gamma V')^2; r = Q - gamma V' is a reward that comes for free, from tokens of text and
of actions alike. The penalty also fixes what the likelihood leaves open, a constant in the logits: raise it slowly.

Source: Wulfmeier et al. 2024, "Imitating language via scalable inverse reinforcement learning" (arXiv 2409.01369).
"""

import torch
from torch import Tensor

from agents.objectives.reduce import require_shape


def soft_rewards_BN(logits_BNV: Tensor, ids_BN: Tensor, mask_BN: Tensor, discount: float = 1.0) -> Tensor:
    """(B, N) r = Q - gamma V', zero where the mask is off; V' is V at the sequence's next token in the mask.

    Args:
        logits_BNV: those that predict `ids_BN`, already shifted.
        ids_BN: the tokens; any valid id where the mask is off.
        mask_BN: bool, the policy's tokens. What the environment wrote between two of them is passed over.
        discount: gamma.
    """
    require_shape(ids_BN, mask=mask_BN, logits=logits_BNV[..., 0])
    mask_BN = mask_BN.bool()
    logits_BNV = logits_BNV.float()
    q_BN = logits_BNV.gather(-1, ids_BN[..., None])[..., 0]
    value_BN = logits_BNV.logsumexp(dim=-1)
    next_BN = _next_in_mask(mask_BN)
    after_BN = value_BN.gather(1, next_BN.clamp(max=mask_BN.shape[1] - 1))
    after_BN = after_BN.where(next_BN < mask_BN.shape[1], 0.0)
    return (q_BN - discount * after_BN).where(mask_BN, 0.0)


def soft_q_BN(
    logits_BNV: Tensor,
    ids_BN: Tensor,
    mask_BN: Tensor,
    *,
    penalty: float,
    discount: float = 1.0,
    cut_B: Tensor | None = None,
) -> Tensor:
    """(B, N) loss of each token, not reduced; with penalty 0 it is the negative log-likelihood.

    Args:
        logits_BNV: see `soft_rewards_BN`.
        ids_BN: see there.
        mask_BN: see there.
        penalty: lambda, about 0.1.
        discount: gamma.
        cut_B: bool, sequences that go on after their last token here: nothing is known of V' there, so that token gets
            no penalty.
    """
    rewards_BN = soft_rewards_BN(logits_BNV, ids_BN, mask_BN, discount)
    if cut_B is not None:
        last_BN = mask_BN.bool() & (_next_in_mask(mask_BN.bool()) >= mask_BN.shape[1])
        rewards_BN = rewards_BN.where(~(last_BN & cut_B[:, None]), 0.0)
    logp_BN = logits_BNV.float().log_softmax(dim=-1).gather(-1, ids_BN[..., None])[..., 0]
    return (penalty * rewards_BN.square() - logp_BN).where(mask_BN.bool(), 0.0)


def _next_in_mask(mask_BN: Tensor) -> Tensor:
    """(B, N) the place of the next token in the mask, strictly after this one; N where there is none."""
    length = mask_BN.shape[1]
    places_N = torch.arange(length, device=mask_BN.device)
    places_BN = torch.where(mask_BN, places_N, length)
    nearest_BN = places_BN.flip(1).cummin(dim=1).values.flip(1)
    return torch.cat([nearest_BN[:, 1:], nearest_BN.new_full((len(mask_BN), 1), length)], dim=1)
