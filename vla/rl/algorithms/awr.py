"""Advantage-weighted regression: imitate each chunk by exp(advantage), with a value fitted to Monte-Carlo returns.

The value is that of the behaviour, and rows whose return is unknown do not take part. Advantages are divided by their
deviation over the batch, so a temperature holds for every scale of reward. awac.py takes the advantages from a critic.
Source: Peng et al. 2019 (AWR).
"""

import torch
from torch import Tensor

from agents.objectives.reduce import masked_mean
from vla.rl.critics import ValueNetwork
from vla.rl.extraction import exponential_weights, imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import AnyActor, make_actor, make_law
from vla.rl.problem import Problem


class AWR(ActorLearner[AnyActor]):
    """Value on returns, actor by weighted imitation."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "l1",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 1e-4,
        value_width: int = 256,
        value_layers: int = 2,
        value_rate: float = 3e-4,
        value_law: str = "squared",
        inverse_temperature: float = 1.0,
        weight_cap: float = 20.0,
    ) -> None:
        """Builds actor and value by name and size; weights are exp(inverse_temperature * advantage), capped."""
        super().__init__()
        self.inverse_temperature, self.weight_cap = inverse_temperature, weight_cap
        self.actor = make_actor(actor, problem, width=actor_width, layers=actor_layers)
        law = make_law(value_law, problem)
        self.value = ValueNetwork(problem.features, width=value_width, layers=value_layers, law=law)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.value_optimizer = adam(self.value, value_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        known_B = ~batch.return_mc_B.isnan()
        returns_B = batch.return_mc_B.nan_to_num()
        outputs = self.value(batch.features_BGD[:, 0])
        value_loss = masked_mean(self.value.law.loss(outputs, returns_B), known_B)
        minimise(self.value_optimizer, value_loss)
        advantages_B = returns_B - self.value.value(outputs.detach())
        weights_B = self.weights(advantages_B, known_B)
        loss = imitation(self.actor, batch, weights_B=weights_B)
        minimise(self.actor_optimizer, loss)
        return {
            "value_loss": value_loss.detach(),
            "imitation_loss": loss.detach(),
            "weight_mean": weights_B.mean(),
            "weight_max": weights_B.max(),
        }

    def weights(self, advantages_B: Tensor, known_B: Tensor) -> Tensor:
        """Weights (B,) of known rows, by advantages in units of their deviation; 0 of the others."""
        deviation = advantages_B[known_B].std(correction=0).clamp(min=1e-6) if known_B.any() else 1.0
        weights_B = exponential_weights(
            advantages_B / deviation, inverse_temperature=self.inverse_temperature, cap=self.weight_cap
        )
        return weights_B * known_B
