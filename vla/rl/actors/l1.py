"""One chunk for one observation, learnt by absolute error: the shape of OpenVLA-OFT's head, on a feature vector."""

import torch
from torch import Tensor

from vla.rl.actors.trunk import ChunkNetwork, as_played, l1_loss_BH, squash
from vla.rl.problem import Problem


class L1Actor(ChunkNetwork):
    """Features (B, D) to a chunk (B, H, A), without chance."""

    plays_draws = False

    def __init__(self, *, problem: Problem, width: int = 256, layers: int = 3) -> None:
        super().__init__(
            inputs=problem.features, horizon=problem.horizon, binary=problem.binary, width=width, layers=layers
        )

    def mean(self, features_BD: Tensor) -> Tensor:
        return squash(self(features_BD), self.binary_A)

    def sample(self, features_BD: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The same chunk `count` times; draws nothing."""
        return as_played(self.mean(features_BD), self.binary_A).expand(count, -1, -1, -1)

    def loss_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        return l1_loss_BH(self, self(features_BD), actions_BHA)

    def log_prob_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        raise NotImplementedError("an L1 actor has no density; actor=laplace has")
