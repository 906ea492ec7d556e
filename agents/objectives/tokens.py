"""Losses of chosen tokens, element by element; `reduce.py` weighs and averages them."""

from torch import Tensor
from torch.nn import functional


def token_cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """-log softmax(logits)[id] [nat], the shape of `ids`: minus the log-probability of the token.

    Args:
        logits: (..., V); computed in float32 whatever their type.
        ids: (...) integers in [0, V).
    """
    flat = functional.cross_entropy(logits.float().flatten(0, -2), ids.flatten(), reduction="none")
    return flat.view(ids.shape)
