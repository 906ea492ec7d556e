"""Q-chunking with a student: one pass instead of many, drawn to the critic and held to the cloned flow.

    student:  distil_weight * |student(s, noise) - flow(s, noise)|^2  -  mean Q(s, student(s, noise))

The student backs up and plays; the flow alone is cloned. The balance of the two terms depends on the scale of returns:
tune `distil_weight`. Binary axes of the student are tanh outputs, held to the flow's unsnapped ones.
Sources: Li et al. 2025 (QC-FQL); Park et al. 2025 (FQL).
"""

import torch
from torch import Tensor

from agents.objectives.regression import squared_error
from vla.rl.actors.flow import FlowActor, OneStepActor
from vla.rl.actors.trunk import as_played
from vla.rl.backup import chunk_values, prefix_values, td_loss
from vla.rl.critics import polyak
from vla.rl.extraction import imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.learner import Learner, adam, minimise
from vla.rl.presets import make_critic, target_of
from vla.rl.problem import Problem


class DistilledQChunking(Learner):
    """Flow actor by imitation, its one-step student by the critic."""

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
        distil_weight: float = 100.0,
    ) -> None:
        """Builds flow, student (of the same size) and critic; `distil_weight` of the distance to the flow."""
        super().__init__()
        self.problem, self.tau, self.distil_weight = problem, tau, distil_weight
        self.flow = FlowActor(problem=problem, width=actor_width, layers=actor_layers, euler_steps=euler_steps)
        self.student = OneStepActor(problem=problem, width=actor_width, layers=actor_layers)
        self.critic = make_critic(
            critic, problem, width=critic_width, layers=critic_layers, ensemble=ensemble, law=value_law
        )
        self.target_critic = target_of(self.critic)
        self.flow_optimizer = adam(self.flow, actor_rate)
        self.student_optimizer = adam(self.student, actor_rate)
        self.critic_optimizer = adam(self.critic, critic_rate)

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        def value_of(states_ND: Tensor) -> Tensor:
            return chunk_values(self.target_critic, states_ND, self.choose(states_ND, generator)).amin(0)

        loss, _, _, metrics = td_loss(self.critic, batch, value_of, self.problem)
        minimise(self.critic_optimizer, loss)
        polyak(self.target_critic, self.critic, self.tau)
        bc_loss = imitation(self.flow, batch)
        minimise(self.flow_optimizer, bc_loss)
        features_BD = batch.features_BGD[:, 0]
        noise_BHA = self.student.noise(features_BD, generator)
        with torch.no_grad():
            flow_BHA = self.flow.follow(features_BD, noise_BHA).clamp(-1, 1)
        student_BHA = self.student.play(features_BD, noise_BHA)
        distance = squared_error(student_BHA, flow_BHA).mean()
        q_policy = prefix_values(self.critic, features_BD, student_BHA).mean()
        minimise(self.student_optimizer, self.distil_weight * distance - q_policy)
        extra = {"imitation_loss": bc_loss.detach(), "distil_loss": distance.detach(), "q_policy": q_policy.detach()}
        return {**metrics, **extra}

    @torch.no_grad()
    def choose(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        noise_BHA = self.student.noise(features_BD, generator)
        return as_played(self.student.play(features_BD, noise_BHA), self.student.binary_A)
