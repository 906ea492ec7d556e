"""L1 regression head: continuous axes by absolute error, binary axes (a gripper) as logits.

The network is OpenVLA-OFT's MLPResNet (pre-norm, one linear per residual block, ReLU after it) applied to each action
of the chunk. Binary axes get cross entropy by default, because the median that L1 learns ignores the 5 % of frames in
which a gripper opens; `gripper_loss="l1"` is the published loss.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.objectives.regression import absolute_error, binary_cross_entropy
from vla.core.errors import unknown_name
from vla.policies.interfaces import Features

GRIPPER_LOSSES = ("bce", "l1")


class L1Head(nn.Module):
    """Features (B, H, D) to actions (B, H, A)."""

    denoises = False
    binary_A: Tensor

    def __init__(
        self,
        *,
        width: int,
        binary: Sequence[bool],
        hidden: int | None = None,
        gripper_loss: str = "bce",
        gripper_weight: float = 0.1,
        blocks: int = 2,
    ) -> None:
        """Builds the head.

        Args:
            width: D, the width of the backbone's features.
            binary: for each action axis, whether it is binary.
            hidden: width of the residual blocks, D when None. OpenVLA-OFT's features are A tokens of the language model
                side by side, and its blocks are as wide as one.
            gripper_loss: "bce": cross entropy [nat] on binary axes; "l1": absolute error on all axes alike.
            gripper_weight: weight of the cross entropy beside the absolute error of the continuous axes.
            blocks: residual blocks.
        """
        super().__init__()
        if gripper_loss not in GRIPPER_LOSSES:
            raise unknown_name("gripper_loss", gripper_loss, GRIPPER_LOSSES)
        self.gripper_loss, self.gripper_weight = gripper_loss, gripper_weight
        self.register_buffer("binary_A", torch.tensor(list(binary)), persistent=False)
        hidden = hidden or width
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, len(binary)))

    def forward(self, features_BHD: Tensor) -> Tensor:
        """Raw outputs (B, H, A): normalised values, and logits on binary axes under "bce"."""
        x_BHD = self.project(features_BHD)
        for block in self.blocks:
            x_BHD = x_BHD + block(x_BHD)
        return self.out(x_BHD)

    def loss_BH(self, features: Features, actions_BHA: Tensor) -> Tensor:
        """The loss (B, H) of each action: mean absolute error, plus weight times mean cross entropy of binary axes."""
        outputs_BHA = self(features()).float()
        if self.gripper_loss == "l1" or not self.binary_A.any():
            return absolute_error(outputs_BHA, actions_BHA).mean(-1)
        grippers = binary_cross_entropy(outputs_BHA[..., self.binary_A], actions_BHA[..., self.binary_A]).mean(-1)
        if self.binary_A.all():
            return self.gripper_weight * grippers
        moves = absolute_error(outputs_BHA[..., ~self.binary_A], actions_BHA[..., ~self.binary_A]).mean(-1)
        return moves + self.gripper_weight * grippers

    def sample(self, features: Features, generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised actions (B, H, A), float32. Deterministic: it draws nothing from `generators` (one a row)."""
        outputs_BHA = self(features()).float()
        signs_BHA = torch.where(outputs_BHA > 0, 1.0, -1.0)
        # Comparing turns NaN into -1, a valid command: let it through as NaN, so that the caller can refuse it.
        signs_BHA = torch.where(outputs_BHA.isnan(), outputs_BHA, signs_BHA)
        return torch.where(self.binary_A, signs_BHA, outputs_BHA)
