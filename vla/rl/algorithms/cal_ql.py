"""Cal-QL on chunks: soft actor-critic, conservative offline, with values that never sink below the demonstrator's.

    critic:  TD, backed up by the best of several chunks of the policy at the next state,
             + alpha * ( log sum exp(Q(s, other chunks) / density) - Q(s, data) )

Other chunks are the policy's at s and at the next state, both valued at s and floored at the Monte-Carlo return, and
outsiders: even ones, without a floor, up to 20 dimensions of a chunk; beyond, floored perturbed data, and no densities.
With horizon 1 that is the published one-step form. Departures: the law is a Laplace; alpha is fixed, without the
Lagrange variant.
Source: Nakamoto et al. 2023 (Cal-QL).
"""

import math

import torch
from torch import Tensor

from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.trunk import as_played
from vla.rl.backup import candidate_values, states_after, td_loss
from vla.rl.conservatism import EVEN_UP_TO, conservative_logsumexp, even_chunks, floored, perturbed_chunks
from vla.rl.critics import polyak
from vla.rl.extraction import imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.presets import make_critic, target_of
from vla.rl.problem import Problem
from vla.rl.soft_policy import Temperature, entropy_target, soft_policy_loss


class CalQL(ActorLearner[LaplaceActor]):
    """Laplace actor, flat or prefix critic."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 1e-4,
        critic: str = "flat",
        critic_width: int = 512,
        critic_layers: int = 3,
        critic_rate: float = 3e-4,
        ensemble: int = 2,
        value_law: str = "squared",
        tau: float = 0.005,
        alpha: float = 0.1,
        floor: bool = True,
        negatives: int = 10,
        backup_samples: int = 10,
        bc_weight: float = 1.0,
        temperature: float = 0.1,
        entropy_per_axis: float = -1.0,
    ) -> None:
        """Builds actor and critic by name and size.

        `negatives` of each kind of other chunk; `temperature` is where the price of entropy starts, and
        `entropy_per_axis` [nat] what it aims at for each continuous number of a chunk.
        """
        super().__init__()
        self.problem, self.tau, self.alpha, self.floor = problem, tau, alpha, floor
        self.negatives, self.backup_samples, self.bc_weight = negatives, backup_samples, bc_weight
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
            chunks_MNHA = self.drawn(states_ND, self.backup_samples, generator)
            values_EMN = candidate_values(self.target_critic, states_ND, chunks_MNHA)[..., -1]
            return values_EMN.amin(0).amax(0)

        loss, values_EBP, usable_BP, metrics = td_loss(self.critic, batch, value_of, self.problem)
        gap = self.conservative(batch, values_EBP, usable_BP, generator)
        minimise(self.critic_optimizer, loss + self.alpha * gap)
        polyak(self.target_critic, self.critic, self.tau)
        return {**metrics, "conservative_gap": gap.detach(), **self.improve(batch, generator)}

    def improve(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        price = self.temperature.log_value.exp()
        actor_loss, entropy_B, q_policy = soft_policy_loss(
            self.actor, self.critic, batch.features_BGD[:, 0], price, generator
        )
        if self.bc_weight > 0:
            actor_loss = actor_loss + self.bc_weight * imitation(self.actor, batch)
        minimise(self.actor_optimizer, actor_loss)
        minimise(self.temperature_optimizer, self.temperature.loss(entropy_B))
        metrics = {"actor_loss": actor_loss.detach(), "entropy": entropy_B.mean(), "q_policy": q_policy}
        return {**metrics, "temperature": price.detach()}

    def drawn(self, states_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
        return as_played(self.actor.sample(states_ND, count, generator), self.actor.binary_A)

    def conservative(
        self, batch: ChunkBatch, values_EBP: Tensor, usable_BP: Tensor, generator: torch.Generator
    ) -> Tensor:
        features_BD, binary_A, few = (
            batch.features_BGD[:, 0],
            self.actor.binary_A,
            self.problem.chunk_numbers <= EVEN_UP_TO,
        )
        with torch.no_grad():
            next_BD = states_after(batch)[:, -1]
            here_MBHA, there_MBHA = (
                self.actor.sample(states_BD, self.negatives, generator) for states_BD in (features_BD, next_BD)
            )
            make = even_chunks if few else perturbed_chunks
            outside_MBHA = make(batch.actions_BHA, self.negatives, generator, binary_A)
            densities_MB = torch.zeros(3 * self.negatives, len(batch), device=features_BD.device)
            if few:
                draws = ((features_BD, here_MBHA), (next_BD, there_MBHA))
                policies_MB = [self.log_density(states_BD, chunks_MBHA) for states_BD, chunks_MBHA in draws]
                even = -math.log(2) * self.problem.chunk_numbers
                densities_MB = torch.cat([*policies_MB, torch.full_like(policies_MB[0], even)])
            others_MBHA = as_played(torch.cat([here_MBHA, there_MBHA, outside_MBHA]), binary_A)
        others_EMBP = candidate_values(self.critic, features_BD, others_MBHA)
        if self.floor:
            held = 2 * self.negatives if few else 3 * self.negatives
            held_EMBP = floored(others_EMBP[:, :held], batch.return_mc_B)
            others_EMBP = torch.cat([held_EMBP, others_EMBP[:, held:]], dim=1)
        return conservative_logsumexp(others_EMBP, densities_MB, values_EBP, usable_BP)

    def log_density(self, states_BD: Tensor, chunks_MBHA: Tensor) -> Tensor:
        """(M, B) [nat] of whole chunks."""
        count = len(chunks_MBHA)
        log_prob_NH = self.actor.log_prob_BH(states_BD.repeat(count, 1), chunks_MBHA.flatten(0, 1))
        return log_prob_NH.sum(1).unflatten(0, (count, -1))
