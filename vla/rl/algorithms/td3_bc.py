"""TD3+BC on chunks: follow the critic's gradient, but not far from the data.

    actor:  -q_weight * mean Q(s, pi(s)) / mean |Q|  +  bc_weight * imitation

Two critics and their minimum, a target actor, an actor that learns every second step. Departures: imitation is by
absolute error, as the policies of this repository are trained; the actor follows the mean of the critics and, with a
prefix critic, of all prefixes, not the first critic alone; the target chunk is smoothed by noise only at horizon 1.
Sources: Fujimoto et al. 2018 (TD3); Fujimoto and Gu 2021 (TD3+BC).
"""

import torch
from torch import Tensor

from vla.rl.actors.l1 import L1Actor
from vla.rl.actors.trunk import as_played
from vla.rl.backup import chunk_values, td_loss
from vla.rl.critics import polyak
from vla.rl.extraction import imitation, policy_value
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import make_critic, target_of
from vla.rl.problem import Problem


class TD3BC(ActorLearner[L1Actor]):
    """Deterministic actor, flat or prefix critic."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 1e-4,
        actor_every: int = 2,
        critic: str = "flat",
        critic_width: int = 512,
        critic_layers: int = 3,
        critic_rate: float = 3e-4,
        ensemble: int = 2,
        value_law: str = "squared",
        tau: float = 0.005,
        q_weight: float = 1.0,
        bc_weight: float = 1.0,
        smoothing: float = 0.2,
        smoothing_limit: float = 0.5,
    ) -> None:
        """Builds actor and critic by name and size.

        `smoothing` is the deviation of the noise on target actions, clipped at `smoothing_limit`; at horizon 1 alone.
        """
        super().__init__()
        self.problem, self.tau, self.actor_every = problem, tau, actor_every
        self.q_weight, self.bc_weight = q_weight, bc_weight
        self.smoothing = smoothing if problem.horizon == 1 else 0.0
        self.smoothing_limit = smoothing_limit
        self.actor = L1Actor(problem=problem, width=actor_width, layers=actor_layers)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_actor, self.target_critic = target_of(self.actor), target_of(self.critic)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        def value_of(states_ND: Tensor) -> Tensor:
            chunks_NHA = self.target_actor.mean(states_ND)
            if self.smoothing:
                noise_NHA = torch.randn(chunks_NHA.shape, generator=generator).to(chunks_NHA.device) * self.smoothing
                chunks_NHA = chunks_NHA + noise_NHA.clamp(-self.smoothing_limit, self.smoothing_limit)
            chunks_NHA = as_played(chunks_NHA.clamp(-1, 1), self.actor.binary_A)
            return chunk_values(self.target_critic, states_ND, chunks_NHA).amin(0)

        loss, _, _, metrics = td_loss(self.critic, batch, value_of, self.problem)
        minimise(self.critic_optimizer, loss)
        if self.steps % self.actor_every:
            return metrics
        actor_loss, actor_metrics = self.actor_loss(batch)
        minimise(self.actor_optimizer, actor_loss)
        polyak(self.target_critic, self.critic, self.tau)
        polyak(self.target_actor, self.actor, self.tau)
        return {**metrics, **actor_metrics}

    def actor_loss(self, batch: ChunkBatch) -> tuple[Tensor, dict[str, Tensor]]:
        features_BD = batch.features_BGD[:, 0]
        value, q_policy = policy_value(self.critic, features_BD, self.actor.mean(features_BD))
        bc_loss = imitation(self.actor, batch)
        loss = self.bc_weight * bc_loss - self.q_weight * value
        return loss, {"actor_loss": loss.detach(), "imitation_loss": bc_loss.detach(), "q_policy": q_policy}
