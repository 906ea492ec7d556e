"""Flow-matching head: predicts the velocity from data to noise, and follows it back in a few Euler steps.

Actions and noise are joined by straight lines, noisy = (1 - time) actions + time noise: time 0 is data, 1 is noise.
Training draws more of the noisy end, as pi0 does, because a well-known last stretch matters less than which way to
set out: time = 0.001 + 0.999 Beta(1.5, 1). Binary axes are noised like the others and snapped at the end.

Sources: Lipman et al. 2022 (conditional flow matching), straight paths as in Liu et al. 2022 (rectified flow); times of
Black et al. 2024 (pi0), appendix B, with our direction of time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.objectives.regression import squared_error
from vla.policies.heads.resnet import MLPResNet, noise_by_row, snap_binary
from vla.policies.interfaces import Features


class FlowHead(MLPResNet):
    """Features (B, H, D) of noisy actions to their velocity (B, H, A), noise minus data."""

    denoises = True
    binary_A: Tensor

    def __init__(
        self,
        *,
        width: int,
        horizon: int,
        binary: Sequence[bool],
        hidden: int | None = None,
        blocks: int = 2,
        steps: int = 10,
    ) -> None:
        """Builds the head.

        Args:
            width: D, the width of the backbone's features.
            horizon: H.
            binary: for each action axis, whether it is binary.
            hidden: see `MLPResNet`.
            blocks: residual blocks.
            steps: Euler steps of sampling; each costs one pass through the backbone.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}, expected at least 1")
        super().__init__(width=width, out=len(binary), hidden=hidden, blocks=blocks)
        self.horizon, self.steps = horizon, steps
        self.register_buffer("binary_A", torch.tensor(list(binary)), persistent=False)

    def loss_BH(self, features: Features, actions_BHA: Tensor) -> Tensor:
        """The mean squared error (B, H) of the velocity; one time a row, drawn from torch's own generator."""
        time_B = draw_times(len(actions_BHA), actions_BHA.device)
        noise_BHA = torch.randn_like(actions_BHA)
        noisy_BHA = actions_BHA.lerp(noise_BHA, time_B[:, None, None])
        velocity_BHA = self(features(noisy_BHA, time_B)).float()
        return squared_error(velocity_BHA, noise_BHA - actions_BHA).mean(-1)

    def sample(self, features: Features, generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised actions (B, H, A), float32. Noise i comes from generator i; the way back is deterministic."""
        noisy_BHA = noise_by_row(generators, self.horizon, len(self.binary_A), self.binary_A.device)
        for step in range(self.steps):
            time_B = noisy_BHA.new_full((len(generators),), 1 - step / self.steps)
            noisy_BHA = noisy_BHA - self(features(noisy_BHA, time_B)).float() / self.steps
        return snap_binary(noisy_BHA, self.binary_A)


def draw_times(count: int, device: torch.device) -> Tensor:
    """Times (count,) in [0.001, 1]: 0.001 + 0.999 Beta(1.5, 1), whose distribution function t^1.5 is inverted."""
    return 0.001 + 0.999 * torch.rand(count, device=device) ** (1 / 1.5)
