"""L1 regression head: continuous axes by absolute error, binary axes (a gripper) as logits.

Binary axes get cross entropy by default, because the median that L1 learns ignores the 5 % of frames in which a gripper
opens; `gripper_loss="l1"` is the published loss of OpenVLA-OFT, whose network (resnet.py) this is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.objectives.regression import absolute_error, binary_cross_entropy
from vla.core.errors import unknown_name
from vla.policies.heads.resnet import MLPResNet, snap_binary
from vla.policies.interfaces import Features

GRIPPER_LOSSES = ("bce", "l1")


class L1Head(MLPResNet):
    """Features (B, H, D) to actions (B, H, A): normalised values, and logits on binary axes under "bce"."""

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
            hidden: see `MLPResNet`.
            gripper_loss: "bce": cross entropy [nat] on binary axes; "l1": absolute error on all axes alike.
            gripper_weight: weight of the cross entropy beside the absolute error of the continuous axes.
            blocks: residual blocks.

        Raises:
            UnknownNameError: a gripper loss that does not exist.
        """
        if gripper_loss not in GRIPPER_LOSSES:
            raise unknown_name("gripper_loss", gripper_loss, GRIPPER_LOSSES)
        super().__init__(width=width, out=len(binary), hidden=hidden, blocks=blocks)
        self.gripper_loss, self.gripper_weight = gripper_loss, gripper_weight
        self.register_buffer("binary_A", torch.tensor(list(binary)), persistent=False)

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
        return snap_binary(self(features()).float(), self.binary_A)
