"""Attempts as ids with what training knows of each token, and many of them as one batch.

Letters: B sequence, N token; inputs and targets are already shifted against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.policies.vocabulary import END, PAD


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One sequence.

    ids        of the whole sequence
    loss       whether each is trained; the first never is, nothing predicts it
    weight     of the sequence in the likelihood
    advantage  of the sequence, or of each of its ids
    expert     a demonstration wrote it, not the policy
    """

    ids: tuple[int, ...]
    loss: tuple[bool, ...]
    weight: float = 1.0
    advantage: float | tuple[float, ...] = 0.0
    expert: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.loss):
            raise ValueError(f"loss has {len(self.loss)} values, expected {len(self.ids)}, one for each id")


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """inputs_BN, targets_BN int64; mask_BN bool, trained targets; weights_BN, advantages_BN float; expert_B bool."""

    inputs_BN: Tensor
    targets_BN: Tensor
    mask_BN: Tensor
    weights_BN: Tensor
    advantages_BN: Tensor
    expert_B: Tensor

    def __len__(self) -> int:
        return len(self.inputs_BN)

    def rows(self, chosen: slice | Tensor) -> "TokenBatch":
        """The batch of some rows."""
        return replace(self, **{name: value[chosen] for name, value in vars(self).items()})


def answered(
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    weight: float = 1.0,
    advantage: float | tuple[float, ...] = 0.0,
    expert: bool = False,
) -> Example:
    """A prompt without loss and a completion with it; `completion` has its end where the policy is to stop."""
    loss = (False,) * len(prompt) + (True,) * len(completion)
    return Example(ids=(*prompt, *completion), loss=loss, weight=weight, advantage=advantage, expert=expert)


def ended(ids: Sequence[int]) -> list[int]:
    """With the end after it."""
    return [*ids, END]


def pack(examples: Sequence[Example]) -> TokenBatch:
    """One batch, padded on the right. Raises ValueError where there is nothing to pack."""
    if not examples:
        raise ValueError("examples is empty, expected at least one")

    def rows(values: list[list[float]], kind: torch.dtype) -> Tensor:
        return pad_sequence([torch.tensor(row, dtype=kind) for row in values], batch_first=True, padding_value=PAD)

    def spread(value: float | tuple[float, ...], size: int) -> list[float]:
        return list(value) if isinstance(value, tuple) else [value] * size

    ids_BM = rows([list(each.ids) for each in examples], torch.int64)
    return TokenBatch(
        inputs_BN=ids_BM[:, :-1],
        targets_BN=ids_BM[:, 1:],
        mask_BN=rows([list(each.loss) for each in examples], torch.bool)[:, 1:],
        weights_BN=rows([[each.weight] * len(each.ids) for each in examples], torch.float32)[:, 1:],
        advantages_BN=rows([spread(each.advantage, len(each.ids)) for each in examples], torch.float32)[:, 1:],
        expert_B=torch.tensor([each.expert for each in examples]),
    )
