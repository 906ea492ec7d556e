"""Advantage conditioning, RECAP made small: the policy is told which chunks beat expectation, and asked for them.

    V(s) by regression on Monte-Carlo returns; advantage = discounted rewards of the chunk + g^len V(after it) - V(s)
    positive: the best share of the advantages of a task, and what a person demonstrated or corrected
    actor: imitation of everything with one more feature: 1 where positive (but for a drop-out) and at play, else 0

Only supervised learning, so it works with any actor and cannot diverge. Departures: one number beside the features in
place of a line of text, look-ahead of one chunk in place of ten steps, no classifier-free guidance beyond scale 1.
Source: Physical Intelligence 2025, arXiv 2511.14759 (pi*0.6).
"""

from dataclasses import replace

import torch
from torch import Tensor

from agents.objectives.reduce import masked_mean
from vla.rl.backup import states_after
from vla.rl.critics import ValueNetwork
from vla.rl.extraction import imitation, play
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import Learner, adam, minimise
from vla.rl.presets import make_actor, make_law
from vla.rl.problem import Problem
from vla.rl.targets import chunk_targets
from vla.rl.task_quantiles import TaskQuantiles


class AdvantageConditioned(Learner):
    """Value on returns, actor on features and one bit."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "l1",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        value_width: int = 256,
        value_layers: int = 2,
        value_rate: float = 3e-4,
        value_law: str = "hl_gauss",
        share: float = 0.3,
        drop_out: float = 0.1,
        demos_positive: bool = True,
    ) -> None:
        """Builds actor and value by name and size.

        `share` of each task's chunks is positive, `drop_out` of the positive ones lose their mark. Where demonstrations
        are the only data, `demos_positive` makes this behaviour cloning: turn it off to let them compete.
        """
        super().__init__()
        self.problem, self.drop_out, self.demos_positive = problem, drop_out, demos_positive
        told = replace(problem, features=problem.features + 1)
        self.actor = make_actor(actor, told, width=actor_width, layers=actor_layers)
        law = make_law(value_law, problem)
        self.value = ValueNetwork(problem.features, width=value_width, layers=value_layers, law=law)
        self.quantiles = TaskQuantiles(problem.tasks, share=share)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.value_optimizer = adam(self.value, value_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        features_BD = batch.features_BGD[:, 0]
        losses_B = self.value.law.loss(self.value(features_BD), batch.return_mc_B.nan_to_num())
        value_loss = masked_mean(losses_B, ~batch.return_mc_B.isnan())
        minimise(self.value_optimizer, value_loss)
        positive_B = self.positive(batch)
        kept_B = torch.rand(len(batch), generator=generator).to(features_BD.device) >= self.drop_out
        loss = imitation(self.actor, batch, features_BD=told(features_BD, positive_B & kept_B))
        minimise(self.actor_optimizer, loss)
        shares = {"positive_share": positive_B.float().mean()}
        return {"value_loss": value_loss.detach(), "imitation_loss": loss.detach(), **shares}

    @torch.no_grad()
    def positive(self, batch: ChunkBatch) -> Tensor:
        """(B,) bool; moves the thresholds too. A chunk whose outcome was not recorded is not positive by advantage."""
        advantages_B = self.advantages(batch)
        known_B = batch.known_B | batch.terminated_B
        self.quantiles.observe(advantages_B[known_B], batch.task_B[known_B])
        best_B = known_B & self.quantiles.above(advantages_B, batch.task_B)
        return best_B | batch.demo_B if self.demos_positive else best_B

    @torch.no_grad()
    def advantages(self, batch: ChunkBatch) -> Tensor:
        """(B,) of the steps really taken over the value's expectation."""
        following_BH = self.value.value(self.value(states_after(batch)))
        targets_BH, _ = chunk_targets(
            batch.rewards_BH, batch.valid_BH, batch.terminated_B, following_BH, self.problem.discount
        )
        return targets_BH[:, -1] - self.value.value(self.value(batch.features_BGD[:, 0]))

    @torch.no_grad()
    def choose(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        asked_BD = told(features_BD, torch.ones(len(features_BD), dtype=torch.bool, device=features_BD.device))
        return play(self.actor, asked_BD, generator)


def told(features_BD: Tensor, positive_B: Tensor) -> Tensor:
    """(B, D + 1): the features and the bit."""
    return torch.cat([features_BD, positive_B[:, None].to(features_BD.dtype)], dim=1)
