"""Balance of a mixture of LoRA experts: all are used, and each group of experts rather for its own type of data.

Q_be is what expert e got of sequence b (its gate, summed over tokens), I_be is 1 - delta where the expert's group is
the sequence's type and 1 + delta elsewhere. The loss is Var(Q I) / mean(Q I)^2 over the batch, least where Q is
proportional to 1 / I: a type's own experts then get (1 + delta) / (1 - delta) times what the others get.

Source: Dou et al. 2023, "LoRAMoE" (arXiv 2312.09979). Our sign of delta is the opposite of the paper's and the released
code's: with theirs the least loss gives a type's own experts less, so the groups part as well but swap their names.
"""

import torch
from torch import Tensor


def expert_usage(gates_BNE: Tensor, mask_BN: Tensor) -> Tensor:
    """(B, E) gates summed over the tokens in the mask."""
    if gates_BNE.shape[:2] != mask_BN.shape:
        raise ValueError(f"gates have shape {tuple(gates_BNE.shape)}, expected {tuple(mask_BN.shape)} and the experts")
    return gates_BNE.where(mask_BN.bool()[..., None], 0.0).sum(dim=1)


def balance_loss(usage_BE: Tensor, type_B: Tensor, type_E: Tensor, delta: float) -> Tensor:
    """The squared coefficient of variation of the weighted usage; a scalar, zero for even usage and delta = 0.

    It sees one batch: with one sequence it evens that sequence's experts and nothing else.

    Args:
        usage_BE: of `expert_usage`; sequences of different lengths are better divided by their lengths first.
        type_B: the type of each sequence, e.g. 0 for questions about pictures and 1 for robot data.
        type_E: the type that each expert is for.
        delta: in [0, 1), how far the groups part; 0 only balances.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}, expected 0 <= delta < 1")
    if usage_BE.numel() < 2:
        raise ValueError(f"usage has {usage_BE.numel()} number(s), expected at least two: one has no variance")
    own_BE = type_B[:, None] == type_E[None, :]
    weighted_BE = usage_BE * torch.where(own_BE, 1 - delta, 1 + delta).to(usage_BE)
    return weighted_BE.var() / weighted_BE.mean().square()
