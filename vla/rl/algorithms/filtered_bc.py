"""Behaviour cloning of what worked: chunks of successful episodes and, if asked, only the best share of them.

The best are those of the highest Monte-Carlo return among a task's successes, which are the quickest where time costs.
Demonstrations that succeeded get no other treatment than successes of the policy's own.
"""

import torch
from torch import Tensor

from vla.rl.extraction import imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import AnyActor, make_actor
from vla.rl.problem import Problem
from vla.rl.task_quantiles import TaskQuantiles


class FilteredBC(ActorLearner[AnyActor]):
    """Any actor; weights 0 or 1."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "l1",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        share: float = 1.0,
    ) -> None:
        """As BC; `share` of a task's successful chunks, by return, is imitated; 1: all, with known return or not."""
        super().__init__()
        self.actor = make_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.quantiles = TaskQuantiles(problem.tasks, share=share)
        self.actor_optimizer = adam(self.actor, actor_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        known_B = batch.success_B & ~batch.return_mc_B.isnan()
        self.quantiles.observe(batch.return_mc_B[known_B], batch.task_B[known_B])
        kept_B = batch.success_B & self.quantiles.above(batch.return_mc_B, batch.task_B)
        loss = imitation(self.actor, batch, weights_B=kept_B.float())
        minimise(self.actor_optimizer, loss)
        return {"imitation_loss": loss.detach(), "kept_share": kept_B.float().mean()}
