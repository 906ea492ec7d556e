"""A decoder-only transformer of 0.1 to 3 million parameters, small enough to be trained by reinforcement on a CPU.

Pre-norm blocks, learned positions, tied output. Padding may stand on either side: positions count real tokens, and no
token attends to padding, so a row's numbers do not depend on how far it was padded. Sampling keeps keys and values.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from agents.objectives.tokens import token_cross_entropy
from agents.policies.vocabulary import END, PAD


@dataclass(kw_only=True, eq=False)
class Cache:
    """What is kept between calls while sampling: keys and values of each layer, and which tokens are real."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    real_BM: Tensor | None = None


class Block(nn.Module):
    """Attention and a two-layer network, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BND: Tensor, mask_B1NM: Tensor, cache: Cache | None, layer: int) -> Tensor:
        """`mask_B1NM`: bool, what each new token may attend to among the old and new ones."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x_BND)).chunk(3, dim=-1)
        )
        if cache is not None:
            if layer < len(cache.keys):
                k, v = torch.cat([cache.keys[layer], k], dim=2), torch.cat([cache.values[layer], v], dim=2)
                cache.keys[layer], cache.values[layer] = k, v
            else:
                cache.keys.append(k)
                cache.values.append(v)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1NM)
        x_BND = x_BND + self.out(seen.transpose(1, 2).flatten(2))
        return x_BND + self.mlp(self.mlp_norm(x_BND))


class Decoder(nn.Module):
    """Logits of the next token."""

    def __init__(self, *, vocabulary: int, width: int = 64, layers: int = 2, heads: int = 4, context: int = 64) -> None:
        """Args:
        vocabulary: number of ids.
        width: of the residual stream, a multiple of `heads`.
        layers: number of blocks.
        heads: of attention.
        context: tokens of the longest row.
        """
        super().__init__()
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids_BN: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, N, V) logits after each of `ids_BN`; with a cache, they follow what it holds, and are added to it."""
        real_BM = ids_BN != PAD
        if cache is not None:
            real_BM = real_BM if cache.real_BM is None else torch.cat([cache.real_BM, real_BM], dim=1)
            cache.real_BM = real_BM
        new, total = ids_BN.shape[1], real_BM.shape[1]
        position_BN = (real_BM.cumsum(dim=1) - 1).clamp(min=0)[:, total - new :]
        if int(position_BN.max()) >= self.context:
            raise ValueError(f"ids has {int(position_BN.max()) + 1} tokens in a row, expected at most {self.context}")
        place_N, place_M = torch.arange(total - new, total), torch.arange(total)
        causal_NM = place_M[None, :] <= place_N[:, None]
        # padding sees itself: a row of attention with nothing to see would be NaN, and NaN spreads in the gradient
        itself_NM = place_M[None, :] == place_N[:, None]
        mask_B1NM = ((causal_NM & real_BM[:, None, :]) | itself_NM)[:, None]
        x_BND = self.tokens(ids_BN) + self.positions(position_BN)
        for layer, block in enumerate(self.blocks):
            x_BND = block(x_BND, mask_B1NM, cache, layer)
        return self.norm(x_BND) @ self.tokens.weight.T


def token_logp(policy: nn.Module, inputs_BN: Tensor, targets_BN: Tensor) -> Tensor:
    """(B, N) log-probability [nat] of each target, which is the token after the input at its place."""
    return -token_cross_entropy(policy(inputs_BN), targets_BN)


def frozen_copy(policy: nn.Module) -> nn.Module:
    """The policy as it is now, for a reference or an opponent."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


@torch.no_grad()
def sample(
    policy: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """An answer's ids for each prompt, the end among them unless `limit` tokens came first.

    Args:
        policy: takes ids and a `Cache`.
        prompts: ids, any lengths.
        limit: tokens of an answer, at most.
        temperature: 0 takes the likeliest token.
        generator: makes the draws repeatable.
    """
    flipped = [torch.tensor(list(prompt)[::-1]) for prompt in prompts]
    ids_BN = pad_sequence(flipped, batch_first=True, padding_value=PAD).flip(1)
    cache, columns = Cache(), []
    done_B = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(limit):
        logits_BV = policy(ids_BN, cache)[:, -1]
        logits_BV[:, PAD] = -torch.inf
        if temperature:
            law_BV = (logits_BV / temperature).softmax(dim=-1)
            drawn_B = torch.multinomial(law_BV, 1, generator=generator)[:, 0]
        else:
            drawn_B = logits_BV.argmax(dim=-1)
        drawn_B = drawn_B.where(~done_B, PAD)
        columns.append(drawn_B)
        done_B = done_B | (drawn_B == END)
        if done_B.all():
            break
        ids_BN = drawn_B[:, None]
    drawn_BN = torch.stack(columns, dim=1)
    return [[each for each in row if each != PAD] for row in drawn_BN.tolist()]
