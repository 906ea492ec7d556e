"""Each axis of each action is one of `bins` tokens: exact probabilities, several modes, no order between bins.

Bins divide [-1, 1] evenly and mean their centres. Binary axes are Bernoulli on -1 and +1, by the difference of their
first two logits. The log-probability is that of the token, as policy gradients on tokens use it.
"""

import torch
from torch import Tensor

from agents.objectives.tokens import token_cross_entropy
from vla.rl.actors.trunk import ChunkNetwork, rows_of
from vla.rl.problem import Problem


class TokenActor(ChunkNetwork):
    """Features (B, D) to independent laws over the bins of each axis."""

    plays_draws = False

    def __init__(self, *, problem: Problem, width: int = 256, layers: int = 3, bins: int = 41) -> None:
        if bins < 2:
            raise ValueError(f"bins is {bins}, expected at least 2")
        super().__init__(
            inputs=problem.features,
            horizon=problem.horizon,
            binary=problem.binary,
            width=width,
            layers=layers,
            per_axis=bins,
        )
        self.bins = bins

    def logits(self, features_BD: Tensor) -> Tensor:
        """(B, H, A, V); on binary axes all but the first (-1) and the second (+1) are impossible."""
        logits_BHAV = self(features_BD)
        beyond_V = torch.arange(self.bins, device=logits_BHAV.device) >= 2
        return logits_BHAV.masked_fill(self.binary_A[:, None] & beyond_V, -1e9)

    def to_ids(self, actions_BHA: Tensor) -> Tensor:
        moves_BHA = ((actions_BHA + 1) / 2 * self.bins).long().clamp(0, self.bins - 1)
        return torch.where(self.binary_A, (actions_BHA > 0).long(), moves_BHA)

    def from_ids(self, ids_BHA: Tensor) -> Tensor:
        return torch.where(self.binary_A, 2.0 * ids_BHA - 1, (2.0 * ids_BHA + 1) / self.bins - 1)

    def mean(self, features_BD: Tensor) -> Tensor:
        """The likeliest bins; not differentiable."""
        return self.from_ids(self.logits(features_BD).argmax(-1))

    def sample(self, features_BD: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Chunks (M, B, H, A), by inverting the distribution function at one uniform number an axis."""
        below_BHAV = self.logits(features_BD).softmax(-1).double().cumsum(-1)
        uniform_BMHA = rows_of(torch.rand, generator, features_BD, count, self.horizon, len(self.binary_A)).double()
        # Relative to the last entry, which rounding leaves beside 1.
        threshold_BMHA1 = (uniform_BMHA * below_BHAV[:, None, ..., -1])[..., None]
        ids_BMHA = (below_BHAV[:, None] <= threshold_BMHA1).sum(-1)
        return self.from_ids(ids_BMHA.transpose(0, 1)).float()

    def loss_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Cross entropy [nat] of the tokens: mean over continuous axes, weighed mean over binary ones."""
        losses_BHA = token_cross_entropy(self.logits(features_BD), self.to_ids(actions_BHA))
        return (losses_BHA * self.weight_A).sum(-1)

    def log_prob_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Log-probability [nat] of each action's tokens, sum over axes."""
        return -token_cross_entropy(self.logits(features_BD), self.to_ids(actions_BHA)).sum(-1)
