"""A small correction on a frozen base policy's chunk, which is a part of the features; it starts as no correction.

Continuous axes move by at most `reach`, through tanh; binary axes add to a logit of `base_logit` in the base's
direction, so a gripper can be turned round where the evidence is strong. The last layer starts at zero: what is played
is then exactly the base's chunk.

Sources: Johannink et al. 2018 (residual reinforcement learning); Xiao et al. 2025 (PLD), with a VLA as the base.
"""

import torch
from torch import Tensor, nn

from agents.objectives.regression import absolute_error
from vla.rl.actors.trunk import ChunkNetwork, as_played, clip_through
from vla.rl.problem import Problem


class ResidualActor(ChunkNetwork):
    """Features (B, D), of which the base chunk is a slice, to a chunk (B, H, A), without chance."""

    plays_draws = False

    def __init__(
        self,
        *,
        problem: Problem,
        width: int = 256,
        layers: int = 3,
        reach: float = 0.3,
        base_logit: float = 4.0,
    ) -> None:
        if problem.base_chunk is None:
            raise ValueError("base_chunk is None: a residual actor needs features that hold a base policy's chunk")
        super().__init__(
            inputs=problem.features, horizon=problem.horizon, binary=problem.binary, width=width, layers=layers
        )
        self.base = slice(problem.base_chunk, problem.base_chunk + problem.chunk_numbers)
        self.reach, self.base_logit = reach, base_logit
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def parts(self, features_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(moves, logits), each (B, H, A), of continuous and of binary axes."""
        base_BHA = features_BD[:, self.base].unflatten(1, (self.horizon, -1))
        outputs_BHA = self(features_BD)
        moves_BHA = clip_through(base_BHA + self.reach * torch.tanh(outputs_BHA))
        return moves_BHA, self.base_logit * base_BHA.sign() + outputs_BHA

    def mean(self, features_BD: Tensor) -> Tensor:
        moves_BHA, logits_BHA = self.parts(features_BD)
        return torch.where(self.binary_A, torch.tanh(logits_BHA / 2), moves_BHA)

    def sample(self, features_BD: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The same chunk `count` times; draws nothing."""
        return as_played(self.mean(features_BD), self.binary_A).expand(count, -1, -1, -1)

    def loss_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        moves_BHA, logits_BHA = self.parts(features_BD)
        return self.imitation_BH(logits_BHA, absolute_error(moves_BHA, actions_BHA), actions_BHA)

    def log_prob_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        raise NotImplementedError("a residual actor has no density; actor=laplace has")
