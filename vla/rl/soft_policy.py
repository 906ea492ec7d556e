"""The actor's half of soft actor-critic for chunks: value minus entropy's price, and the price that keeps the entropy.

Backups carry no entropy here: the attainable range of returns, to which targets are clipped, knows of none.
Source: Haarnoja et al. 2018 (SAC, with a learnt temperature).
"""

import math

import torch
from torch import Tensor, nn

from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.trunk import clip_through
from vla.rl.backup import prefix_values
from vla.rl.critics import EnsembleCritic


class Temperature(nn.Module):
    """The price of entropy [value / nat], learnt so that a chunk's entropy stays at `target`."""

    def __init__(self, start: float, *, target: float) -> None:
        super().__init__()
        self.log_value = nn.Parameter(torch.tensor(math.log(start)))
        self.target = target

    def loss(self, entropy_B: Tensor) -> Tensor:
        return self.log_value.exp() * (entropy_B.detach() - self.target).mean()


def entropy_target(binary_A: Tensor, horizon: int, per_axis: float) -> float:
    """[nat] of a whole chunk; binary axes are left free."""
    return per_axis * horizon * int((~binary_A).sum())


def soft_policy_loss(
    actor: LaplaceActor,
    critic: EnsembleCritic,
    features_BD: Tensor,
    temperature: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, entropy_B, mean value) from one draw a row; the critic sees it as played, clipped straight through."""
    chunks_BHA = actor.sample(features_BD, 1, generator)[0]
    entropy_B = -actor.log_prob_BH(features_BD, chunks_BHA).sum(1)
    values_EBP = prefix_values(critic, features_BD, clip_through(chunks_BHA))
    loss = -(values_EBP.mean((0, 2)) + temperature.detach() * entropy_B).mean()
    return loss, entropy_B.detach(), values_EBP.detach().mean()
