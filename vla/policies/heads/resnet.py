"""What heads share: OpenVLA-OFT's MLPResNet, noise that belongs to its row, and binary axes put at -1 or +1.

The network is applied to each action of the chunk by itself: norm, linear, ReLU; residual blocks (pre-norm, one linear,
ReLU after it); norm, linear. A head inherits from it, so the weights of all heads carry the same names.
Source: Kim et al. 2025 (OpenVLA-OFT), the action head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLPResNet(nn.Module):
    """Features (B, H, D) to outputs (B, H, A)."""

    def __init__(self, *, width: int, out: int, hidden: int | None = None, blocks: int = 2) -> None:
        """Builds the network.

        Args:
            width: D, the width of the backbone's features.
            out: A.
            hidden: width of the residual blocks, D when None. OpenVLA-OFT's features are A tokens of the language model
                side by side, and its blocks are as wide as one.
            blocks: residual blocks.
        """
        super().__init__()
        hidden = hidden or width
        self.project = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, out))

    def forward(self, features_BHD: Tensor) -> Tensor:
        x_BHD = self.project(features_BHD)
        for block in self.blocks:
            x_BHD = x_BHD + block(x_BHD)
        return self.out(x_BHD)


def noise_by_row(generators: Sequence[torch.Generator], horizon: int, action_dim: int, device: torch.device) -> Tensor:
    """Standard normal (B, H, A) float32 on `device`; row i is drawn from generator i, on that generator's device."""
    rows = [torch.randn(horizon, action_dim, generator=each, device=each.device) for each in generators]
    return torch.stack(rows).to(device)


def code_binary(actions_BHA: Tensor, binary_A: Tensor, codes: tuple[float, float]) -> Tensor:
    """The actions with -1 and +1 of binary axes written as `codes`; a published network may have learnt others."""
    low, high = codes
    return torch.where(binary_A, low + (high - low) * (actions_BHA + 1) / 2, actions_BHA)


def snap_binary(actions_BHA: Tensor, binary_A: Tensor, codes: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    """The actions with binary axes at +1 where they are nearer to the second of `codes`, at -1 elsewhere."""
    low, high = codes
    signs_BHA = torch.where((actions_BHA - (low + high) / 2) * (high - low) > 0, 1.0, -1.0)
    # Comparing turns NaN into -1, a valid command: let it through as NaN, so that the caller can refuse it.
    signs_BHA = torch.where(actions_BHA.isnan(), actions_BHA, signs_BHA)
    return torch.where(binary_A, signs_BHA, actions_BHA)
