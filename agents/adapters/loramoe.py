"""LoRAMoE: a frozen linear layer with several LoRA experts, mixed token by token by a softmax router.

y = W x + sum_e g_e(x) (alpha / r) B_e A_e x with g = softmax(W_g x) over all experts; there is no top-k. For the layers
of the feed-forward block. `agents/objectives/balance.py` keeps the experts in use and parts them by type of data.

Source: Dou et al. 2023 (arXiv 2312.09979); 6 to 8 experts of rank 4, alpha 32.
"""

import math

import torch
from torch import Tensor, nn


class LoRAMoELinear(nn.Module):
    """A linear layer with experts; at the start it computes what `base` does.

    `gates_BNE` are those of the last forward pass, with their graph, for the balance loss.
    """

    gates_BNE: Tensor | None

    def __init__(self, base: nn.Linear, *, experts: int = 6, rank: int = 4, alpha: float = 32.0) -> None:
        super().__init__()
        if experts < 1 or rank < 1:
            raise ValueError(f"experts is {experts} and rank is {rank}, expected at least 1 each")
        self.base = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.router = nn.Linear(base.in_features, experts, bias=False, **like)
        self.down_ERI = nn.Parameter(torch.empty(experts, rank, base.in_features, **like))
        self.up_EOR = nn.Parameter(torch.zeros(experts, base.out_features, rank, **like))
        bound = 1 / math.sqrt(base.in_features)  # as nn.Linear, which is Kaiming-uniform with a = sqrt(5)
        nn.init.uniform_(self.down_ERI, -bound, bound)
        self.scaling = alpha / rank
        self.gates_BNE = None

    def forward(self, x_BNI: Tensor) -> Tensor:
        """(B, N, I) to (B, N, O)."""
        gates_BNE = self.router(x_BNI).float().softmax(dim=-1)
        self.gates_BNE = gates_BNE
        hidden_BNER = torch.einsum("bni,eri->bner", x_BNI, self.down_ERI)
        hidden_BNER = hidden_BNER * (self.scaling * gates_BNE.to(x_BNI.dtype))[..., None]
        return self.base(x_BNI) + torch.einsum("bner,eor->bno", hidden_BNER, self.up_EOR)


def add_experts(model: nn.Module, names: list[str], **options: float) -> list[LoRAMoELinear]:
    """Freezes `model` and replaces its linear layers `names`, in place; returns the new layers, all that is trained.

    Args:
        model: e.g. a transformer.
        names: full names of nn.Linear layers, e.g. those that end in gate_proj, up_proj and down_proj.
        options: experts, rank and alpha of `LoRAMoELinear`.
    """
    model.requires_grad_(False)
    layers = []
    for name in names:
        base = model.get_submodule(name)
        if not isinstance(base, nn.Linear):
            raise ValueError(f"{name} is a {type(base).__name__}, expected nn.Linear")
        parent, _, last = name.rpartition(".")
        layer = LoRAMoELinear(base, **options)  # type: ignore[arg-type]
        setattr(model.get_submodule(parent), last, layer)
        layers.append(layer)
    return layers
