"""Flow matching on a feature vector: the law of the data, several modes and all, without a density.

The law and its conventions are those of vla/policies/heads/flow.py: straight paths from data (time 0) to noise (time
1), velocity noise minus data. The network sees the whole noisy chunk at once. `OneStepActor` is the student that goes
the same way in one pass (Park et al. 2025, FQL): a chunk as a function of the noise, so it can follow a critic too.
"""

import torch
from torch import Tensor

from agents.objectives.regression import squared_error
from vla.policies.heads.flow import draw_times
from vla.rl.actors.trunk import ChunkNetwork, as_played, rows_of
from vla.rl.problem import Problem


class FlowActor(ChunkNetwork):
    """Features (B, D), a noisy chunk and its time to the velocity (B, H, A)."""

    plays_draws = True

    def __init__(self, *, problem: Problem, width: int = 256, layers: int = 3, euler_steps: int = 10) -> None:
        if euler_steps < 1:
            raise ValueError(f"euler_steps is {euler_steps}, expected at least 1")
        super().__init__(
            inputs=problem.features + problem.chunk_numbers + 1,
            horizon=problem.horizon,
            binary=problem.binary,
            width=width,
            layers=layers,
        )
        self.euler_steps = euler_steps

    def velocity(self, features_BD: Tensor, noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        return self(torch.cat([features_BD, noisy_BHA.flatten(1), time_B[:, None]], dim=1))

    def follow(self, features_BD: Tensor, noise_BHA: Tensor) -> Tensor:
        """The chunks (B, H, A) at the other end of the paths from the noise, not clipped."""
        chunk_BHA = noise_BHA
        for step in range(self.euler_steps):
            time_B = chunk_BHA.new_full((len(chunk_BHA),), 1 - step / self.euler_steps)
            chunk_BHA = chunk_BHA - self.velocity(features_BD, chunk_BHA, time_B) / self.euler_steps
        return chunk_BHA

    def mean(self, features_BD: Tensor) -> Tensor:
        """The chunk at the end of the path from zero noise: a likely one, not the average of the law."""
        zeros_BHA = features_BD.new_zeros(len(features_BD), self.horizon, len(self.binary_A))
        return self.follow(features_BD, zeros_BHA).clamp(-1, 1)

    def sample(self, features_BD: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Chunks (M, B, H, A) as played."""
        noise_BMHA = rows_of(torch.randn, generator, features_BD, count, self.horizon, len(self.binary_A))
        chunks_NHA = self.follow(features_BD.repeat_interleave(count, 0), noise_BMHA.flatten(0, 1))
        return as_played(chunks_NHA, self.binary_A).unflatten(0, (-1, count)).transpose(0, 1)

    def loss_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Squared error of the velocity, mean over axes; one time a row, drawn from torch's own generator."""
        time_B = draw_times(len(actions_BHA), features_BD.device)
        noise_BHA = torch.randn_like(actions_BHA)
        noisy_BHA = actions_BHA.lerp(noise_BHA, time_B[:, None, None])
        return squared_error(self.velocity(features_BD, noisy_BHA, time_B), noise_BHA - actions_BHA).mean(-1)

    def log_prob_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        raise NotImplementedError("a flow actor has no density that is cheap; actor=laplace and actor=tokens have")


class OneStepActor(ChunkNetwork):
    """Features (B, D) and noise (B, H, A) to a chunk (B, H, A), in one pass."""

    def __init__(self, *, problem: Problem, width: int = 256, layers: int = 3) -> None:
        super().__init__(
            inputs=problem.features + problem.chunk_numbers,
            horizon=problem.horizon,
            binary=problem.binary,
            width=width,
            layers=layers,
        )

    def play(self, features_BD: Tensor, noise_BHA: Tensor) -> Tensor:
        """Chunks in (-1, 1), differentiable, binary axes not snapped."""
        return torch.tanh(self(torch.cat([features_BD, noise_BHA.flatten(1)], dim=1)))

    def noise(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        """(B, H, A) standard normal, a row's own."""
        return rows_of(torch.randn, generator, features_BD, self.horizon, len(self.binary_A))
