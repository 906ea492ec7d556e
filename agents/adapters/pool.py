"""L2M: a pool of LoRA adapters beside a frozen policy, of which each situation looks up its own by key.

The query is the mean of the embedded state tokens, before the transformer. It is compared with the pool's keys by
cosine, and the best key's adapter is used; the chosen key is pulled to the query, and that is all that moves keys. New
tasks take new keys, so that old tasks keep their adapters.

    index_B, pull = pool.choose(query_BD, spread=True)
    with use_adapters(layers, index_B):
        loss = action_loss(model(batch)) + 0.5 * pull

Source: Schmied et al. 2023, "Learning to modulate pre-trained models in RL" (arXiv 2306.14884): 30 adapters of rank 8,
on queries, values and the feed-forward block.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class KeyPool(nn.Module):
    """M keys and how often each was chosen."""

    usage_M: Tensor
    steps: Tensor

    def __init__(self, *, size: int, width: int) -> None:
        super().__init__()
        self.keys_MD = nn.Parameter(torch.empty(size, width).uniform_(-1, 1))
        self.register_buffer("usage_M", torch.zeros(size))  # mean share of a batch's rows, over all batches counted
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def choose(
        self, query_BD: Tensor, *, spread: bool = False, allowed_M: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The best key of each row, (B,) int64, and 1 - cosine(query, key), averaged, whose gradient moves the keys.

        Args:
            query_BD: pooled embeddings; used as constants.
            spread: prefer keys that were seldom chosen: cosine, moved to [0, 1], over usage. For training.
            allowed_M: bool, keys that may be chosen, e.g. the new task's own.
        """
        query_BD = query_BD.detach()
        cosine_BM = functional.normalize(query_BD, dim=-1) @ functional.normalize(self.keys_MD, dim=-1).T
        score_BM = (cosine_BM.detach() + 1) / 2
        if spread:
            score_BM = score_BM / (self.usage_M + 1e-6)
        if allowed_M is not None:
            if not allowed_M.any():
                raise ValueError("allowed has no key, expected at least one")
            score_BM = score_BM.where(allowed_M, -math.inf)
        index_B = score_BM.argmax(dim=-1)
        return index_B, (1 - cosine_BM.gather(1, index_B[:, None])).mean()

    @torch.no_grad()
    def count(self, index_B: Tensor) -> None:
        """Adds a batch's choices to the usage."""
        share_M = torch.bincount(index_B, minlength=len(self.usage_M)) / len(index_B)
        self.steps += 1
        self.usage_M += (share_M - self.usage_M) / self.steps


class PooledLoRALinear(nn.Module):
    """A frozen linear layer with M LoRA adapters: each row of a batch uses one, outside `use_adapters` none does."""

    index_B: Tensor | None

    def __init__(self, base: nn.Linear, *, size: int, rank: int = 8, alpha: float | None = None) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down_MRI = nn.Parameter(torch.empty(size, rank, base.in_features, **like))
        self.up_MOR = nn.Parameter(torch.zeros(size, base.out_features, rank, **like))
        bound = 1 / math.sqrt(base.in_features)  # as nn.Linear, which is Kaiming-uniform with a = sqrt(5)
        nn.init.uniform_(self.down_MRI, -bound, bound)
        self.scaling = (2 * rank if alpha is None else alpha) / rank
        self.index_B = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., I) to (B, ..., O)."""
        y = self.base(x)
        if self.index_B is None:
            return y
        if len(self.index_B) != len(x):
            raise ValueError(f"adapters were chosen for {len(self.index_B)} rows, but the input has {len(x)}")
        hidden = torch.einsum("b...i,bri->b...r", x, self.down_MRI[self.index_B])
        return y + self.scaling * torch.einsum("b...r,bor->b...o", hidden, self.up_MOR[self.index_B])


@contextmanager
def use_adapters(layers: Sequence[PooledLoRALinear], index_B: Tensor) -> Iterator[None]:
    """Within it the layers use adapter `index_B[b]` for row b."""
    for layer in layers:
        layer.index_B = index_B
    try:
        yield
    finally:
        for layer in layers:
            layer.index_B = None
