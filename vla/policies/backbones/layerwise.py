"""A reader of every layer of a language model: one cross-attention block per layer, as in VLA-Adapter.

What decides a motion is not all in the last layer of a small language model: early layers still know where things are,
late ones what is meant. So block i of this reader attends to layer i. Its H rows, one per action of the chunk, attend
in one softmax to themselves, to the action slots and the proprioception, and to the vision tokens of that layer; the
vision logits are scaled by a learnt gate.

What differs from the published "Pro" head (github.com/OpenHelix-Team/VLA-Adapter), and why:
- Rows start from a learnt embedding per time step, which the slots' keys and values get too, in place of zeros told
  apart by rotary positions: in the published base head all rows are the same.
- Gates start at 1, not 0. A gate multiplies logits, so at 0 vision is averaged blindly; the published schedule has a
  hundred thousand steps to open it, a laptop a thousand.
- Blocks are ordinary pre-norm residual ones; the published feed-forward has no skip around it.
- The reader has its own width, less than the language model's.
Source: Wang et al. 2025, "VLA-Adapter" (arXiv 2509.09372).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerwiseReader(nn.Module):
    """Hidden states of all layers to one feature vector per action of the chunk."""

    def __init__(self, *, language_width: int, layers: int, horizon: int, width: int = 256, heads: int = 4) -> None:
        """Builds the reader.

        Args:
            language_width: D, of the hidden states.
            layers: L, of the language model; the reader has as many blocks.
            horizon: H, rows; also the number of action slots.
            width: of the rows and of the features.
            heads: of the attention.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}, expected a multiple of heads ({heads})")
        self.width, self.horizon = width, horizon
        self.steps_HR = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.slot_steps_HD = nn.Parameter(0.02 * torch.randn(horizon, language_width))
        self.blocks = nn.ModuleList(
            ReaderBlock(width=width, language_width=language_width, heads=heads) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, slots: Sequence[Tensor], seen: Sequence[Tensor], proprio_BD: Tensor | None) -> Tensor:
        """Features (B, H, width).

        Args:
            slots: for each layer the states (B, H, D) at the action slots.
            seen: for each layer the states (B, N, D) at the vision tokens.
            proprio_BD: the proprioception token as it went into the language model, if it has one.

        Raises:
            ValueError: not as many layers as blocks, or not as many slots as rows.
        """
        if not len(slots) == len(seen) == len(self.blocks):
            raise ValueError(f"{len(slots)} and {len(seen)} layers of states, expected {len(self.blocks)} of both")
        if slots[0].shape[1] != self.horizon:
            raise ValueError(f"{slots[0].shape[1]} slots, expected {self.horizon}: one per action")
        own = [] if proprio_BD is None else [proprio_BD[:, None]]
        x_BHR = self.steps_HR.expand(len(slots[0]), -1, -1)
        for block, slots_BHD, seen_BND in zip(self.blocks, slots, seen, strict=True):
            told_BMD = torch.cat([slots_BHD, *own], dim=1)
            x_BHR = block(x_BHR, told_BMD, self.slot_steps_HD, seen_BND)
        return self.norm(x_BHR)


class ReaderBlock(nn.Module):
    """Pre-norm: one softmax over [own rows | slots and proprioception | gated vision], then an MLP."""

    def __init__(self, *, width: int, language_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.gate = nn.Parameter(torch.ones(()))
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.told_norm, self.seen_norm = nn.LayerNorm(language_width), nn.LayerNorm(language_width)
        self.own = nn.Linear(width, 3 * width)  # query, key and value of the rows
        self.told = nn.Linear(language_width, 2 * width)  # key and value of slots and proprioception
        self.seen = nn.Linear(language_width, 2 * width)  # key and value of vision
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BHR: Tensor, told_BMD: Tensor, slot_steps_HD: Tensor, seen_BND: Tensor) -> Tensor:
        query, own_key, own_value = self.own(self.norm(x_BHR)).chunk(3, dim=-1)
        placed_BMD = self.told_norm(told_BMD)
        placed_BMD = placed_BMD + functional.pad(slot_steps_HD, (0, 0, 0, told_BMD.shape[1] - len(slot_steps_HD)))
        told_key, told_value = self.told(placed_BMD).chunk(2, dim=-1)
        seen_key, seen_value = self.seen(self.seen_norm(seen_BND)).chunk(2, dim=-1)
        # A factor on the keys is a factor on the logits.
        key = torch.cat([own_key, told_key, seen_key * self.gate.tanh()], dim=1)
        value = torch.cat([own_value, told_value, seen_value], dim=1)
        x_BHR = x_BHR + self.out(self._attend(query, key, value))
        return x_BHR + self.mlp(self.mlp_norm(x_BHR))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
