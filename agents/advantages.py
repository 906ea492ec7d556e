"""Advantages: how much better an attempt was than was to be expected, for `objectives/policy_gradient.py`.

Groups are attempts at the same task (from the same start). Letters: B attempt, K turn of an attempt, N token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.objectives.reduce import require_finite, require_shape


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupAdvantages:
    """What a group says of its attempts.

    advantages_B   (B,) float, exactly zero in a group whose rewards are all alike
    informative_B  (B,) bool, the group's rewards differ. Dynamic sampling (DAPO) keeps these rows and draws others
                   until the batch is full; a group of one is never informative
    """

    advantages_B: Tensor
    informative_B: Tensor


def group_advantages(
    rewards_B: Tensor, groups_B: Tensor, *, scale: bool = True, epsilon: float = 1e-4
) -> GroupAdvantages:
    """Reward minus the group's mean, over its standard deviation where `scale` (GRPO); without, Dr. GRPO.

    Args:
        rewards_B: one for each attempt.
        groups_B: integers; equal where attempts are of one group, in any order.
        scale: divide by the sample standard deviation (n - 1) plus epsilon.
        epsilon: keeps near-equal rewards from large advantages.
    """
    group = _statistics(rewards_B, groups_B)
    advantages_B = rewards_B - group.mean_B
    if scale:
        advantages_B = advantages_B / (group.std_B + epsilon)
    return GroupAdvantages(advantages_B=advantages_B.where(group.informative_B, 0.0), informative_B=group.informative_B)


def leave_one_out_advantages(rewards_B: Tensor, groups_B: Tensor) -> GroupAdvantages:
    """Reward minus the mean of the group's other attempts (RLOO, arXiv 2402.14740): a baseline without bias."""
    group = _statistics(rewards_B, groups_B)
    if (group.count_B < 2).any():
        alone = int(groups_B[group.count_B < 2][0])
        raise ValueError(f"group {alone} has one attempt, expected at least two: nothing is left to compare with")
    advantages_B = (rewards_B - group.mean_B) * group.count_B / (group.count_B - 1)
    return GroupAdvantages(advantages_B=advantages_B.where(group.informative_B, 0.0), informative_B=group.informative_B)


def prefix_advantages(
    rewards_B: Tensor, groups_B: Tensor, prefixes_B: Tensor, prefix_BN: Tensor, *, epsilon: float = 1e-4
) -> Tensor:
    """(B, N) advantages where some attempts continue a demonstration's beginning (Prefix-RFT, arXiv 2507.01679).

    The policy's own attempts are compared among themselves, as in GRPO. Tokens of the demonstration get reward minus
    the mean of the group's own attempts, divided by the number of attempts that continue that prefix. The continuation
    is compared with the other attempts from the same prefix; where there is none, with the mean of the own attempts
    (the released code compares it with nothing there, so that it can never be negative).

    Args:
        rewards_B: one for each attempt.
        groups_B: the task of each attempt.
        prefixes_B: equal where attempts continue the same prefix of a task; not read where there is none.
        prefix_BN: bool, the tokens that are the demonstration's.
        epsilon: see `group_advantages`.
    """
    hybrid_B = prefix_BN.bool().any(dim=1)
    labels_B = torch.where(hybrid_B, prefixes_B, torch.zeros_like(prefixes_B))
    key_B3 = torch.stack([groups_B, hybrid_B.to(groups_B), labels_B], dim=1)
    group = _statistics(rewards_B, key_B3.unique(dim=0, return_inverse=True)[1])
    compared_B = ((rewards_B - group.mean_B) / (group.std_B + epsilon)).where(group.informative_B, 0.0)

    same_BB = (groups_B[:, None] == groups_B[None, :]) & ~hybrid_B[None, :]
    own_B = same_BB.sum(dim=1)
    if (hybrid_B & (own_B == 0)).any():
        lonely = int(groups_B[hybrid_B & (own_B == 0)][0])
        raise ValueError(f"group {lonely} has no attempt of the policy's own: a prefix has nothing to be compared with")
    above_own_B = rewards_B - (same_BB.to(rewards_B) @ rewards_B) / own_B.clamp(min=1)
    continued_B = torch.where(hybrid_B & (group.count_B == 1), above_own_B, compared_B)
    return torch.where(prefix_BN.bool(), (above_own_B / group.count_B)[:, None], continued_B[:, None])


def turn_advantages(
    rewards_BK: Tensor,
    values_BK: Tensor,
    valid_BK: Tensor,
    *,
    after_B: Tensor | None = None,
    discount: float = 1.0,
    smoothing: float = 0.95,
) -> Tensor:
    """(B, K) generalised advantages (GAE) where a step is a whole turn, or a whole action chunk; zero where not valid.

    delta_k = r_k + gamma V_{k+1} - V_k and A_k = delta_k + gamma lambda A_{k+1}. All tokens of a turn share its
    advantage (`spread_turns`): a discount for each token would make long answers worth less.

    Args:
        rewards_BK: of each turn.
        values_BK: at the start of each turn, the value of what was known then.
        valid_BK: bool, turns that took place: the first so many of each row.
        after_B: value after the last turn where the attempt was cut; zeros (it ended) when None.
        discount: gamma, per turn.
        smoothing: lambda; 1 is the return minus the value, 0 the one-step error.
    """
    require_shape(rewards_BK, values=values_BK, valid=valid_BK)
    valid_BK = valid_BK.bool()
    if (valid_BK[:, 1:] & ~valid_BK[:, :-1]).any():
        raise ValueError("valid has a turn after one that did not take place, expected the first so many of each row")
    next_value_B = torch.zeros_like(values_BK[:, 0]) if after_B is None else after_B
    running_B = torch.zeros_like(next_value_B)
    columns = []
    for k in reversed(range(rewards_BK.shape[1])):
        valid_B = valid_BK[:, k]
        delta_B = rewards_BK[:, k] + discount * next_value_B - values_BK[:, k]
        running_B = torch.where(valid_B, delta_B + discount * smoothing * running_B, running_B)
        next_value_B = torch.where(valid_B, values_BK[:, k], next_value_B)
        columns.append(running_B.where(valid_B, 0.0))
    return torch.stack(columns[::-1], dim=1)


def spread_turns(values_BK: Tensor, turn_BN: Tensor) -> Tensor:
    """(B, N) for each token the number of its turn; zero where `turn_BN` is -1, which the environment wrote."""
    if (turn_BN >= values_BK.shape[1]).any():
        raise ValueError(f"turn has {int(turn_BN.max())}, expected less than the {values_BK.shape[1]} turns given")
    return values_BK.gather(1, turn_BN.clamp(min=0)).where(turn_BN >= 0, 0.0)


def duration_weights(durations_B: Tensor) -> Tensor:
    """Duration over its mean, the weight of an attempt whose action took that long (any unit, more than 0).

    Actors that do not wait for each other finish quick actions more often, by 1 / duration: without the weight a
    policy learns to be quick rather than good.

    Source: "Reinforcement learning for machine learning engineering agents", 2025.
    """
    require_finite("durations", durations_B)
    if (durations_B <= 0).any():
        raise ValueError(f"durations has {durations_B.min().item():.3g}, expected more than 0")
    return durations_B / durations_B.mean()


def soft_overlong(lengths_B: Tensor, limit: int, buffer: int) -> Tensor:
    """(B,) what DAPO adds to the reward: 0 up to limit - buffer tokens, falling to -1 at the limit and beyond it."""
    if not 0 < buffer <= limit:
        raise ValueError(f"buffer is {buffer}, expected more than 0 and at most limit = {limit}")
    return ((limit - buffer - lengths_B) / buffer).clamp(-1.0, 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    count_B: Tensor
    mean_B: Tensor
    std_B: Tensor
    informative_B: Tensor


def _statistics(rewards_B: Tensor, groups_B: Tensor) -> _Group:
    """Of each attempt's group; the sum runs over an equality matrix, which is small next to any model."""
    require_shape(rewards_B, groups=groups_B)
    require_finite("rewards", rewards_B)
    same_BB = groups_B[:, None] == groups_B[None, :]
    count_B = same_BB.sum(dim=1)
    mean_B = (same_BB.to(rewards_B) @ rewards_B) / count_B
    deviations_BB = (rewards_B[None, :] - mean_B[:, None]).where(same_BB, 0.0)
    std_B = (deviations_BB.square().sum(dim=1) / (count_B - 1).clamp(min=1)).sqrt()
    informative_B = (same_BB & (rewards_B[None, :] != rewards_B[:, None])).any(dim=1)
    return _Group(count_B=count_B, mean_B=mean_B, std_B=std_B, informative_B=informative_B)
