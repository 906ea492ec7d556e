"""Q-chunking: the best of several chunks of a policy cloned by flow matching, by a critic of chunks.

The clone keeps every candidate among what was demonstrated, so the critic needs no conservatism. Backup and play choose
alike, but the backup with fewer candidates: it is their number times the batch that costs. The chunk that the learning
critic likes best, by lower confidence bound, is valued by the target critic. q_chunking_distilled.py has the student.
Departures: candidates of the backup (published: as many as are played), the bound (published: the mean).
Source: Li et al. 2025 (Q-chunking, QC).
"""

import torch
from torch import Tensor

from vla.rl.actors.flow import FlowActor
from vla.rl.backup import chunk_values, td_loss
from vla.rl.critics import polyak
from vla.rl.extraction import best_of, imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import Learner, adam, minimise
from vla.rl.presets import make_critic, target_of
from vla.rl.problem import Problem


class QChunking(Learner):
    """Flow actor by imitation alone, flat or prefix critic."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        euler_steps: int = 10,
        critic: str = "flat",
        critic_width: int = 512,
        critic_layers: int = 3,
        critic_rate: float = 3e-4,
        ensemble: int = 2,
        value_law: str = "squared",
        tau: float = 0.005,
        candidates: int = 32,
        backup_candidates: int = 8,
        caution: float = 1.0,
    ) -> None:
        """Builds actor and critic by name and size.

        `candidates` are drawn to play and `backup_candidates` to back up; `caution` is the number of deviations over
        critics by which a candidate's value is lowered.
        """
        super().__init__()
        self.problem, self.tau = problem, tau
        self.candidates, self.backup_candidates, self.caution = candidates, backup_candidates, caution
        self.actor = FlowActor(problem=problem, width=actor_width, layers=actor_layers, euler_steps=euler_steps)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_critic = target_of(self.critic)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        def value_of(states_ND: Tensor) -> Tensor:
            chunks_MNHA = self.actor.sample(states_ND, self.backup_candidates, generator)
            best_NHA, _ = best_of(self.critic, states_ND, chunks_MNHA, caution=self.caution)
            return chunk_values(self.target_critic, states_ND, best_NHA).amin(0)

        loss, _, _, metrics = td_loss(self.critic, batch, value_of, self.problem)
        minimise(self.critic_optimizer, loss)
        polyak(self.target_critic, self.critic, self.tau)
        bc_loss = imitation(self.actor, batch)
        minimise(self.actor_optimizer, bc_loss)
        return {**metrics, "imitation_loss": bc_loss.detach()}

    @torch.no_grad()
    def choose(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        chunks_MBHA = self.actor.sample(features_BD, self.candidates, generator)
        return best_of(self.critic, features_BD, chunks_MBHA, caution=self.caution)[0]
