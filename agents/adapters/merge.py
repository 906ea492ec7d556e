"""Merging of models that were tuned from the same base, on state dicts of any layout.

A task vector is tuned minus base. Task arithmetic adds them, TIES drops small entries and entries whose sign loses the
vote, Breadcrumbs drops the largest entries (outliers) and the smallest. Integers and the statistics of BatchNorm are
left as the base has them: they count examples, so they are no direction to add.

Sources: Ilharco et al. 2023 (task arithmetic, arXiv 2212.04089), Yadav et al. 2023 (TIES, arXiv 2306.01708), Davari and
Belilovsky 2024 (Breadcrumbs, arXiv 2312.06795).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]
Scope = Literal["tensor", "row"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def task_vector(tuned: StateDict, base: StateDict) -> dict[str, Tensor]:
    """Tuned minus base, float32, of every tensor that is a direction."""
    if tuned.keys() != base.keys():
        differing = sorted(tuned.keys() ^ base.keys())
        raise ValueError(f"the tuned model and the base differ in {len(differing)} name(s): {', '.join(differing[:5])}")
    vector = {}
    for name, start in base.items():
        if tuned[name].shape != start.shape:
            raise ValueError(f"{name} has shape {tuple(tuned[name].shape)}, expected {tuple(start.shape)} as the base")
        if start.is_floating_point() and name.rpartition(".")[2] not in _STATISTICS:
            vector[name] = tuned[name].float() - start.float()
    return vector


def task_arithmetic(base: StateDict, tuned: Sequence[StateDict], scale: float) -> dict[str, Tensor]:
    """Base + scale * sum of task vectors."""
    return _merge(base, tuned, scale, lambda stack: stack.sum(dim=0))


def breadcrumbs(
    base: StateDict,
    tuned: Sequence[StateDict],
    scale: float,
    *,
    keep: float,
    remove: float,
    scope: Scope = "row",
) -> dict[str, Tensor]:
    """Task arithmetic on masked task vectors; keep=1, remove=0 is task arithmetic itself.

    Args:
        base: state dict.
        tuned: state dicts of the models to merge.
        scale: about 0.2 to 0.4.
        keep: share of all entries that stays, 0.05 to 0.2: the largest of those not removed; rounded up, so that no
            small tensor (a norm, a bias) vanishes.
        remove: share that is removed from the top first, 0.001 to 0.01; rounded down, so that small tensors lose none.
        scope: what the shares are of; the last axis as in the authors' code, or the whole tensor.
    """
    _require_share("keep", keep)
    _require_share("remove", remove)
    return _merge(
        base, tuned, scale, lambda stack: torch.stack([_middle(v, keep, remove, scope) for v in stack]).sum(0)
    )


def ties(base: StateDict, tuned: Sequence[StateDict], scale: float, *, keep: float = 0.2) -> dict[str, Tensor]:
    """Trim each task vector to its `keep` largest entries a tensor, elect a sign for each entry by the sum, and average
    the entries that have it.
    """
    _require_share("keep", keep)

    def combine(stack: Tensor) -> Tensor:
        trimmed = torch.stack([_middle(vector, keep, 0.0, "tensor") for vector in stack])
        agree = (trimmed.sign() == trimmed.sum(dim=0).sign()) & (trimmed != 0)
        return trimmed.where(agree, 0.0).sum(dim=0) / agree.sum(dim=0).clamp(min=1)

    return _merge(base, tuned, scale, combine)


def _merge(
    base: StateDict, tuned: Sequence[StateDict], scale: float, combine: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    if not tuned:
        raise ValueError("tuned is empty, expected at least one model")
    vectors = [task_vector(state, base) for state in tuned]
    merged = {name: tensor.clone() for name, tensor in base.items()}
    for name in vectors[0]:
        total = combine(torch.stack([vector[name] for vector in vectors]))
        merged[name] = (base[name].float() + scale * total).to(base[name].dtype)
    return merged


def _middle(vector: Tensor, keep: float, remove: float, scope: Scope) -> Tensor:
    """`vector` with the share `remove` of largest magnitude at zero, and of what follows all but the share `keep`."""
    rows = vector.reshape(1, -1) if scope == "tensor" or vector.dim() < 2 else vector.reshape(-1, vector.shape[-1])
    size = rows.shape[-1]
    first = int(remove * size)
    last = min(first + math.ceil(keep * size), size)
    order = rows.abs().argsort(dim=-1, descending=True, stable=True)[:, first:last]
    return torch.zeros_like(rows).scatter(-1, order, rows.gather(-1, order)).view_as(vector)


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected 0 to 1")
