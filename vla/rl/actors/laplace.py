"""A Laplace law around an L1 actor's chunk: what policy gradients need and imitation by absolute error implies.

Log-density of a continuous axis: -|a - mu| / b - log 2b. One scale b serves both drawing and density (RIPT-VLA draws
five times as wide as it computes). The chunk mu is learnt by absolute error as in l1.py, and b by maximum likelihood
around that mu, so a narrow b cannot blow up the gradient of mu. Binary axes are Bernoulli on -1 and +1.

Draws are reparameterised (Kingma and Welling 2014): differentiable in mu and b; on binary axes straight through
tanh(logit / 2). They are not clipped, else the density would not be theirs: whoever plays them clips.

log b is bounded by a tanh: a hard clamp has no gradient beyond it, and an entropy bonus would drive b there for good.

Source: Tan et al. 2025 (RIPT-VLA), the scale head, whose start (log b = -3, small gain) is kept.
"""

import math

import torch
from torch import Tensor, nn

from agents.objectives.regression import absolute_error, binary_cross_entropy
from vla.rl.actors.trunk import ChunkNetwork, rows_of, squash
from vla.rl.problem import Problem

LOG_SCALE_START = -3.0
LOG_SCALE_RANGE = (-5.0, 0.0)


class LaplaceActor(ChunkNetwork):
    """Features (B, D) to a law over chunks (B, H, A), independent from axis to axis."""

    plays_draws = False

    def __init__(self, *, problem: Problem, width: int = 256, layers: int = 3) -> None:
        super().__init__(
            inputs=problem.features,
            horizon=problem.horizon,
            binary=problem.binary,
            width=width,
            layers=layers,
            per_axis=2,
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():  # every second output is a log scale
            last.weight[1::2] *= 0.01
            last.bias[1::2] = raw_scale(LOG_SCALE_START)

    def law(self, features_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(outputs, log_scale), each (B, H, A): tanh(output) is a continuous axis' mu, output a binary axis' logit."""
        outputs_BHA, raw_BHA = self(features_BD).unbind(-1)
        low, high = LOG_SCALE_RANGE
        return outputs_BHA, (low + high) / 2 + (high - low) / 2 * torch.tanh(raw_BHA)

    def mean(self, features_BD: Tensor) -> Tensor:
        return squash(self.law(features_BD)[0], self.binary_A)

    def sample(self, features_BD: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Chunks (M, B, H, A) of the very law of `log_prob_BH`, differentiable; continuous axes may exceed 1."""
        outputs_BHA, log_scale_BHA = self.law(features_BD)
        mean_BHA = squash(outputs_BHA, self.binary_A)
        uniform_BMHA = rows_of(torch.rand, generator, features_BD, count, *outputs_BHA.shape[1:])
        uniform_MBHA = uniform_BMHA.transpose(0, 1)
        centred_MBHA = (uniform_MBHA - 0.5).clamp(-0.5 + 1e-7, 0.5 - 1e-7)
        noise_MBHA = -centred_MBHA.sign() * torch.log1p(-2 * centred_MBHA.abs())
        moves_MBHA = mean_BHA + log_scale_BHA.exp() * noise_MBHA
        signs_MBHA = torch.where(uniform_MBHA < outputs_BHA.sigmoid(), 1.0, -1.0)
        return torch.where(self.binary_A, mean_BHA + (signs_MBHA - mean_BHA).detach(), moves_MBHA)

    def loss_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Absolute error of mu plus the negative log-density in b alone, mean over continuous axes; binary: l1.py's."""
        outputs_BHA, log_scale_BHA = self.law(features_BD)
        errors_BHA = absolute_error(torch.tanh(outputs_BHA), actions_BHA)
        fit_BHA = errors_BHA.detach() * torch.exp(-log_scale_BHA) + log_scale_BHA + math.log(2)
        return self.imitation_BH(outputs_BHA, errors_BHA + fit_BHA, actions_BHA)

    def log_prob_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Log-density of each action [nat], sum over axes."""
        outputs_BHA, log_scale_BHA = self.law(features_BD)
        errors_BHA = absolute_error(torch.tanh(outputs_BHA), actions_BHA)
        moves_BHA = -errors_BHA * torch.exp(-log_scale_BHA) - log_scale_BHA - math.log(2)
        grippers_BHA = -binary_cross_entropy(outputs_BHA, actions_BHA)
        return torch.where(self.binary_A, grippers_BHA, moves_BHA).sum(-1)


def raw_scale(log_scale: float) -> float:
    """What the network must say for `log_scale`."""
    low, high = LOG_SCALE_RANGE
    return math.atanh((2 * log_scale - low - high) / (high - low))
