"""RLPD on chunks: soft actor-critic with ten critics, fit for many updates a step, on old and fresh data alike.

Targets take the minimum over two critics drawn anew each time; the actor follows the mean of all. Half of each batch
from demonstrations, half from the robot is the caller's doing. Online the actor explores by its own draws (`explore`).
Departures: a Laplace law, chunks, no entropy in the backup (soft_policy.py).
Source: Ball et al. 2023 (RLPD); critics' subset as in Chen et al. 2021 (REDQ).
"""

import torch
from torch import Tensor

from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.trunk import as_played
from vla.rl.backup import chunk_values, pessimistic, td_loss
from vla.rl.critics import polyak
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import make_critic, target_of
from vla.rl.problem import Problem
from vla.rl.soft_policy import Temperature, entropy_target, soft_policy_loss


class RLPD(ActorLearner[LaplaceActor]):
    """Laplace actor, many critics."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        actor_every: int = 1,
        critic: str = "flat",
        critic_width: int = 256,
        critic_layers: int = 3,
        critic_rate: float = 3e-4,
        ensemble: int = 10,
        subset: int = 2,
        value_law: str = "squared",
        tau: float = 0.005,
        temperature: float = 0.1,
        entropy_per_axis: float = -1.0,
    ) -> None:
        """Builds actor and critics by name and size.

        `actor_every` updates of the critics the actor learns once: set it to the updates a step. `subset` of the
        `ensemble` makes a target. `temperature` is where the price of entropy starts, `entropy_per_axis` [nat] what it
        aims at.
        """
        super().__init__()
        if not 1 <= subset <= ensemble:
            raise ValueError(f"subset is {subset}, expected 1 to ensemble = {ensemble}")
        self.problem, self.tau, self.actor_every, self.subset = problem, tau, actor_every, subset
        self.actor = LaplaceActor(problem=problem, width=actor_width, layers=actor_layers)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_critic = target_of(self.critic)
        target = entropy_target(self.actor.binary_A, problem.horizon, entropy_per_axis)
        self.temperature = Temperature(temperature, target=target)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)
        self.temperature_optimizer = adam(self.temperature, actor_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        def value_of(states_ND: Tensor) -> Tensor:
            values_EN = chunk_values(self.target_critic, states_ND, self.explore(states_ND, generator))
            return pessimistic(values_EN, self.subset, generator)

        loss, _, _, metrics = td_loss(self.critic, batch, value_of, self.problem)
        minimise(self.critic_optimizer, loss)
        polyak(self.target_critic, self.critic, self.tau)
        if self.steps % self.actor_every:
            return metrics
        price = self.temperature.log_value.exp()
        actor_loss, entropy_B, q_policy = soft_policy_loss(
            self.actor, self.critic, batch.features_BGD[:, 0], price, generator
        )
        minimise(self.actor_optimizer, actor_loss)
        minimise(self.temperature_optimizer, self.temperature.loss(entropy_B))
        extra = {"actor_loss": actor_loss.detach(), "entropy": entropy_B.mean(), "q_policy": q_policy}
        return {**metrics, **extra, "temperature": price.detach()}

    @torch.no_grad()
    def explore(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        """The chunk (B, H, A) to play while collecting: one draw, clipped."""
        return as_played(self.actor.sample(features_BD, 1, generator)[0], self.actor.binary_A)
