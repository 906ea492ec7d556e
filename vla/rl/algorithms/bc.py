"""Behaviour cloning: imitate every valid action. What all else has to beat."""

import torch
from torch import Tensor

from vla.rl.extraction import imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import AnyActor, make_actor
from vla.rl.problem import Problem


class BC(ActorLearner[AnyActor]):
    """Any actor, its own imitation loss."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "l1",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
    ) -> None:
        """Builds the actor by name (l1, laplace, flow, tokens, residual), its sizes and learning rate."""
        super().__init__()
        self.actor = make_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.actor_optimizer = adam(self.actor, actor_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        loss = imitation(self.actor, batch)
        minimise(self.actor_optimizer, loss)
        return {"imitation_loss": loss.detach()}
