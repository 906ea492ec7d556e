"""Advantage-weighted regression with a critic: the advantage is that over the policy's own chunks, not the data's.

    advantage = min Q(s, the steps taken) - min Q(s, pi(s))
    actor: imitation weighed by min(exp(inverse_temperature * advantage), cap)

The advantage of a chunk cut short is that of the prefix really taken, so padding has no say.
Source: Nair et al. 2020 (AWAC).
"""

import torch
from torch import Tensor

from vla.rl.backup import chunk_values, taken_values, td_loss
from vla.rl.critics import polyak
from vla.rl.extraction import exponential_weights, imitation, play
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import AnyActor, make_actor, make_critic, target_of
from vla.rl.problem import Problem


class AWAC(ActorLearner[AnyActor]):
    """Critic by temporal differences, actor by weighted imitation."""

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
        tau: float = 0.005,
        inverse_temperature: float = 10.0,
        weight_cap: float = 100.0,
    ) -> None:
        """Builds both networks by name and size; `tau` moves the target critic, the rest shapes the weights."""
        super().__init__()
        self.problem, self.tau = problem, tau
        self.inverse_temperature, self.weight_cap = inverse_temperature, weight_cap
        self.actor = make_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_critic = target_of(self.critic)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        def value_of(states_ND: Tensor) -> Tensor:
            chunks_NHA = play(self.actor, states_ND, generator)
            return chunk_values(self.target_critic, states_ND, chunks_NHA).amin(0)

        loss, values_EBP, usable_BP, metrics = td_loss(self.critic, batch, value_of, self.problem)
        with torch.no_grad():
            taken_EB, known_B = taken_values(values_EBP, usable_BP, batch.length_B)
            features_BD = batch.features_BGD[:, 0]
            own_B = chunk_values(self.critic, features_BD, play(self.actor, features_BD, generator)).amin(0)
            advantages_B = taken_EB.amin(0) - own_B
            weights_B = known_B * exponential_weights(
                advantages_B, inverse_temperature=self.inverse_temperature, cap=self.weight_cap
            )
        actor_loss = imitation(self.actor, batch, weights_B=weights_B)
        minimise(self.critic_optimizer, loss)
        minimise(self.actor_optimizer, actor_loss)
        polyak(self.target_critic, self.critic, self.tau)
        extra = {"imitation_loss": actor_loss.detach(), "weight_mean": weights_B.mean(), "q_policy": own_B.mean()}
        return {**metrics, **extra}
