"""Diffusion head: predicts the noise in noisy actions, and takes it out again step by step (DDIM).

What differs from the textbook is what OpenVLA-OFT publishes: 50 steps in training, the capped cosine schedule, the
estimate of the clean actions clipped to [-1, 1] at each step of sampling, and a network (resnet.py) that sees the noisy
actions and their time only through the backbone's features. Binary axes are noised like the others and snapped at the
end. Time, as the backbone is told, is step / training steps.

Sources: Song et al. 2020 (DDIM), equation 12 with eta = 0; Nichol and Dhariwal 2021, equation 17; Kim et al. 2025
(OpenVLA-OFT). The same as diffusers' DDIMScheduler with beta_schedule="squaredcos_cap_v2", else with its defaults.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agents.objectives.regression import squared_error
from vla.policies.heads.resnet import MLPResNet, code_binary, noise_by_row, snap_binary
from vla.policies.interfaces import Features

MAX_BETA = 0.999  # caps the last step, where the cosine schedule would leave nothing of the data


class DiffusionHead(MLPResNet):
    """Features (B, H, D) of noisy actions to the noise (B, H, A) in them."""

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
        train_steps: int = 50,
        steps: int = 50,
        binary_codes: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        """Builds the head.

        Args:
            width: D, the width of the backbone's features.
            horizon: H.
            binary: for each action axis, whether it is binary.
            hidden: see `MLPResNet`.
            blocks: residual blocks.
            train_steps: levels of noise in training.
            steps: of them, evenly spaced from the cleanest on, those that sampling visits; each costs one pass through
                the backbone.
            binary_codes: what the network says for -1 and +1 of binary axes; (1, 0) in OpenVLA's weights, which open
                a gripper at 1 and close it at 0.
        """
        if not 1 <= steps <= train_steps:
            raise ValueError(f"steps is {steps}, expected 1 to train_steps = {train_steps}")
        super().__init__(width=width, out=len(binary), hidden=hidden, blocks=blocks)
        self.horizon, self.train_steps, self.steps = horizon, train_steps, steps
        self.binary_codes = binary_codes
        self.alpha_bar = cosine_alpha_bar(train_steps)
        self.register_buffer("binary_A", torch.tensor(list(binary)), persistent=False)

    def loss_BH(self, features: Features, actions_BHA: Tensor) -> Tensor:
        """The mean squared error (B, H) of the predicted noise; one level a row, drawn from torch's own generator."""
        clean_BHA = code_binary(actions_BHA, self.binary_A, self.binary_codes)
        step_B = torch.randint(self.train_steps, (len(actions_BHA),), device=actions_BHA.device)
        noise_BHA = torch.randn_like(actions_BHA)
        kept_B11 = torch.tensor(self.alpha_bar, device=actions_BHA.device)[step_B, None, None]
        noisy_BHA = kept_B11.sqrt() * clean_BHA + (1 - kept_B11).sqrt() * noise_BHA
        predicted_BHA = self(features(noisy_BHA, step_B / self.train_steps)).float()
        return squared_error(predicted_BHA, noise_BHA).mean(-1)

    def sample(self, features: Features, generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised actions (B, H, A), float32, within [-1, 1]. Noise i comes from generator i; DDIM adds no more."""
        stride = self.train_steps // self.steps
        noisy_BHA = noise_by_row(generators, self.horizon, len(self.binary_A), self.binary_A.device)
        for step in reversed(range(0, stride * self.steps, stride)):
            time_B = noisy_BHA.new_full((len(generators),), step / self.train_steps)
            noise_BHA = self(features(noisy_BHA, time_B)).float()
            kept, kept_next = self.alpha_bar[step], self.alpha_bar[step - stride] if step else 1.0
            noisy_BHA = ddim_step(noisy_BHA, noise_BHA, kept, kept_next)
        return snap_binary(noisy_BHA, self.binary_A, self.binary_codes)


def cosine_alpha_bar(steps: int) -> tuple[float, ...]:
    """For each step, the share of the data's variance that is left: the running product of 1 - beta.

    Where no beta is capped this is f((step + 1) / steps) / f(0) with f(t) = cos(pi / 2 (t + 0.008) / 1.008) ^ 2.
    """

    def left(t: float) -> float:
        return math.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2

    betas = [min(1 - left((step + 1) / steps) / left(step / steps), MAX_BETA) for step in range(steps)]
    return tuple(math.prod(1 - beta for beta in betas[: step + 1]) for step in range(steps))


def ddim_step(noisy_BHA: Tensor, noise_BHA: Tensor, kept: float, kept_next: float) -> Tensor:
    """Noisy actions (B, H, A) one step cleaner.

    Args:
        noisy_BHA: at the level `kept`.
        noise_BHA: predicted to be in them.
        kept: alpha bar of their level.
        kept_next: alpha bar of the level to go to; 1 gives the clean actions.
    """
    clean_BHA = (noisy_BHA - math.sqrt(1 - kept) * noise_BHA) / math.sqrt(kept)
    return math.sqrt(kept_next) * clean_BHA.clamp(-1, 1) + math.sqrt(1 - kept_next) * noise_BHA
