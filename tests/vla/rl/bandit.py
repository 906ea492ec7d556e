"""A bandit of one step, as a round of attempts: what policy gradients, preferences and best-of-K are tried on."""

import torch
from torch import Tensor

from vla.rl.on_policy import Attempts
from vla.rl.problem import Problem

BANDIT = Problem(features=1, horizon=1, binary=(False,), discount=0.9, low=0.0, high=1.0)
SMALL = {"actor_width": 16, "actor_layers": 1, "actor_rate": 3e-3}


def attempts_of(features_BD: Tensor, chunks_BHA: Tensor, logp_BH: Tensor, return_B: Tensor, group: int) -> Attempts:
    """Attempts of one chunk each, in groups of `group`, all of it played."""
    count, horizon = logp_BH.shape
    return Attempts(
        features_BD=features_BD,
        chunks_BHA=chunks_BHA,
        played_BH=torch.ones(count, horizon, dtype=torch.bool),
        logp_BH=logp_BH,
        attempt_B=torch.arange(count),
        turn_B=torch.zeros(count, dtype=torch.int64),
        group_E=torch.arange(count) // group,
        return_E=return_B,
        success_E=return_B > 0,
        steps_E=torch.full((count,), horizon),
    )


@torch.no_grad()
def bandit_round(learner, seed: int, count: int = 128, *, shuffled: bool = False, graded: bool = False) -> Attempts:
    """One action, which succeeds with probability `chance`; `graded`, the return is that chance itself."""
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.ones(count, 1)
    chunks_BHA = learner.actor.sample(features_BD, 1, generator)[0]
    returns_B = (torch.rand(count, generator=generator) < chance(chunks_BHA)).float()
    if graded:
        returns_B = chance(chunks_BHA)
    if shuffled:
        returns_B = returns_B[torch.randperm(count, generator=generator)]
    return attempts_of(features_BD, chunks_BHA, learner.actor.log_prob_BH(features_BD, chunks_BHA), returns_B, 8)


def chance(chunks_BHA: Tensor) -> Tensor:
    """(B,) best at 0.6."""
    return torch.exp(-2 * (chunks_BHA[:, 0, 0] - 0.6).abs())


@torch.no_grad()
def chance_of(learner) -> float:
    """Of what the learner would draw now."""
    return float(chance(learner.actor.sample(torch.ones(500, 1), 1, torch.Generator().manual_seed(9))[0]).mean())
