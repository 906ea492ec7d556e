"""Which tokens are trained and which a model may see: masks from lengths, entropy, names and trees; masked thought.

A mask is never read off the padding's id: several tokenizers pad with the end token, and a mask that drops it there
drops it everywhere, so that the model never learns to stop.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.objectives.reduce import require_shape


def target_mask(prompt_lengths_B: Tensor, lengths_B: Tensor, size: int) -> Tensor:
    """(B, size) bool, the places prompt_length <= n < length: what was answered, with its end token.

    Raises ValueError where a sequence has no target (its answer was cut away) or is longer than `size`.
    """
    if (lengths_B > size).any():
        raise ValueError(f"lengths has {int(lengths_B.max())}, expected at most size = {size}")
    empty_B = prompt_lengths_B >= lengths_B
    if empty_B.any():
        raise ValueError(
            f"sequence {int(empty_B.nonzero()[0])} has no target: all of its labels are masked away. Was it cut within "
            "its prompt?"
        )
    places_N = torch.arange(size, device=lengths_B.device)
    return (places_N >= prompt_lengths_B[:, None]) & (places_N < lengths_B[:, None])


def padding_mask(ids_BN: Tensor, pad_id: int, end_id: int) -> Tensor:
    """(B, N) bool, what is not padding; only for tokenizers that pad with an id of its own."""
    if pad_id == end_id:
        raise ValueError(
            f"pad_id and end_id are both {pad_id}: a mask made of the padding's id would take the end token out of the "
            "loss. Give lengths to `target_mask`, or pad with another id"
        )
    return ids_BN != pad_id


def top_entropy_mask(entropy_BN: Tensor, mask_BN: Tensor, share: float) -> Tensor:
    """(B, N) bool, the `share` of the tokens in the mask with the highest entropy, counted over the batch.

    Prefix-RFT (arXiv 2507.01679) keeps the gradient of these tokens of a demonstration alone.
    """
    require_shape(entropy_BN, mask=mask_BN)
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected 0 to 1")
    mask_BN = mask_BN.bool()
    count = round(share * int(mask_BN.sum()))
    kept = torch.zeros_like(mask_BN).flatten()
    kept[entropy_BN.where(mask_BN, -torch.inf).flatten().topk(count).indices] = True
    return kept.view_as(mask_BN)


def divergence_points(name: Sequence[int], others: Sequence[Sequence[int]]) -> list[int]:
    """The places in a tool's name that decide which tool it is: the first, and where it parts from each other name.

    Args:
        name: token ids of the tool that is called.
        others: token ids of the tools that could have been called.
    """
    if not name:
        raise ValueError("name has no token")
    points = {0}
    for other in others:
        shared = next((i for i, (a, b) in enumerate(zip(name, other)) if a != b), min(len(name), len(other)))
        if shared < len(name):
            points.add(shared)
    return sorted(points)


def corrupt_inputs(
    ids_BN: Tensor,
    answer_BN: Tensor,
    rate: float,
    *,
    mask_id: int | None = None,
    vocabulary: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Input ids for masked-thought tuning: a share of the answer is hidden from the model, the labels stay whole.

    Source: Chen et al. 2024, "Masked thought" (arXiv 2403.02178); the rate rises from 0 to 0.4 over the first two
    thirds of the steps. Attention and positions do not change.

    Args:
        ids_BN: input ids; not changed in place.
        answer_BN: bool, places that may be hidden; the question is not among them.
        rate: the probability that such a place is hidden.
        mask_id: what stands there instead; or, when None,
        vocabulary: the number of ids of which a random one stands there.
        generator: makes the draws repeatable.
    """
    require_shape(ids_BN, answer=answer_BN)
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate}, expected 0 to 1")
    if (mask_id is None) == (vocabulary is None):
        raise ValueError(f"mask_id is {mask_id} and vocabulary is {vocabulary}, expected exactly one of them")
    hidden_BN = answer_BN.bool() & (torch.rand(ids_BN.shape, generator=generator, device=ids_BN.device) < rate)
    if mask_id is not None:
        return ids_BN.masked_fill(hidden_BN, mask_id)
    drawn_BN = torch.randint(int(vocabulary or 0), ids_BN.shape, generator=generator, device=ids_BN.device)
    return torch.where(hidden_BN, drawn_BN, ids_BN)


def tree_layout(parent_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How attempts that share a beginning go through a model as one row, each shared token once.

    With the mask and the positions every token has the context that it has in its own attempt, and with the number of
    leaves as its weight in `nll` the gradient is that of all attempts one by one (KAT-Coder technical report, 2025).

    Args:
        parent_N: the place of the token before it, for each token; -1 for the first. Parents come before children.

    Returns:
        mask_NN, bool: row n may attend to itself and to the tokens before it in its attempt; positions (N,) int64;
        leaves (N,) int64, in how many attempts the token stands.
    """
    size = len(parent_N)
    if (parent_N >= torch.arange(size)).any() or (parent_N < -1).any():
        raise ValueError("parent has a token that does not come before its child")
    mask_NN = torch.eye(size, dtype=torch.bool)
    for n, parent in enumerate(parent_N.tolist()):
        if parent >= 0:
            mask_NN[n] |= mask_NN[parent]
    is_leaf_N = torch.ones(size, dtype=torch.bool)
    is_leaf_N[parent_N[parent_N >= 0]] = False
    return mask_NN, mask_NN.sum(dim=1) - 1, mask_NN[is_leaf_N].sum(dim=0)
