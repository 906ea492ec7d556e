"""Implicit Q-learning on chunks: never asks a critic about a chunk that is not in the data.

    V(s) <- upper expectile of min target Q(s, the steps taken)
    Q_i(s, a_1..a_i) <- rewards of i steps + g^i V(s after i steps)
    actor: imitation weighed by min(exp(inverse_temperature * (min target Q - V)), cap)

With horizon 1 it is the published algorithm, but that the actor's own imitation loss takes the place of the negative
log-density; for a Laplace law of fixed scale these are the same up to scale and constant.
Source: Kostrikov et al. 2021 (IQL).
"""

import torch
from torch import Tensor

from agents.objectives.reduce import masked_mean
from vla.rl.backup import prefix_values, taken_values, td_loss
from vla.rl.critics import ValueNetwork, polyak
from vla.rl.extraction import exponential_weights, imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import AnyActor, make_actor, make_critic, target_of
from vla.rl.problem import Problem


class IQL(ActorLearner[AnyActor]):
    """Expectile value, critic on that value, actor by weighted imitation."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "l1",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 1e-4,
        critic: str = "prefix",
        critic_width: int = 256,
        critic_layers: int = 2,
        critic_rate: float = 3e-4,
        ensemble: int = 2,
        value_law: str = "squared",
        value_width: int = 256,
        value_layers: int = 2,
        tau: float = 0.005,
        expectile: float = 0.8,
        inverse_temperature: float = 10.0,
        weight_cap: float = 100.0,
    ) -> None:
        """Builds the networks by name and size; `expectile` in (0.5, 1): 0.5 values the behaviour, 1 its best."""
        super().__init__()
        if not 0 < expectile < 1:
            raise ValueError(f"expectile is {expectile}, expected a number in (0, 1)")
        self.problem, self.tau, self.expectile = problem, tau, expectile
        self.inverse_temperature, self.weight_cap = inverse_temperature, weight_cap
        self.actor = make_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_critic = target_of(self.critic)
        self.value = ValueNetwork(problem.features, width=value_width, layers=value_layers)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)
        self.value_optimizer = adam(self.value, critic_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        critic_loss, _, usable_BP, metrics = td_loss(self.critic, batch, self.value, self.problem)
        features_BD = batch.features_BGD[:, 0]
        with torch.no_grad():
            target_EBP = prefix_values(self.target_critic, features_BD, batch.actions_BHA)
            taken_EB, known_B = taken_values(target_EBP, usable_BP, batch.length_B)
        advantages_B = taken_EB.amin(0) - self.value(features_BD)
        value_loss = masked_mean(expectile_loss(advantages_B, self.expectile), known_B)
        weights_B = known_B * exponential_weights(
            advantages_B.detach(), inverse_temperature=self.inverse_temperature, cap=self.weight_cap
        )
        actor_loss = imitation(self.actor, batch, weights_B=weights_B)
        minimise(self.value_optimizer, value_loss)
        minimise(self.critic_optimizer, critic_loss)
        minimise(self.actor_optimizer, actor_loss)
        polyak(self.target_critic, self.critic, self.tau)
        return {
            **metrics,
            "value_loss": value_loss.detach(),
            "imitation_loss": actor_loss.detach(),
            "advantage_mean": masked_mean(advantages_B.detach(), known_B),
            "weight_mean": weights_B.mean(),
        }


def expectile_loss(differences: Tensor, expectile: float) -> Tensor:
    """|expectile - 1[difference < 0]| difference^2, where a difference is target minus prediction; same shape."""
    return torch.where(differences < 0, 1 - expectile, expectile) * differences.square()
