"""Preferences: chosen against rejected, both against a reference.

With log-probabilities of whole sequences, and s = beta * margin:

    logistic   -log sigmoid(s)             DPO, arXiv 2305.18290; SPIN, arXiv 2401.01335, with demonstrations as chosen,
                                           the last iterate's samples as rejected and that iterate as the reference
    hinge      max(0, 1 - s)               SLiC, SPIN's other loss
    ipo        (margin - 1 / (2 beta))^2   IPO, arXiv 2310.12036; with per-token means for the log-probabilities, so
                                           that beta means the same for any length

The reference's log-probabilities may be those stored when the pair was sampled (Agent Q, arXiv 2408.07199): no second
model is then in memory. Action chunks come in through `laplace.py`: a pair is two chunks from the same snapshot.
"""

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from agents.objectives.reduce import SAME_TOKENS, require_shape

PairKind = Literal["logistic", "hinge", "ipo"]


def pair_margin(chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor) -> Tensor:
    """(B,) how much further than the reference the policy prefers the chosen sequence [nat].

    Args:
        chosen_B: log-probability of each chosen sequence (`reduce.sequence_sum`).
        rejected_B: of the rejected one.
        ref_chosen_B: of the chosen one under the reference; a constant.
        ref_rejected_B: of the rejected one under the reference; a constant.
    """
    require_shape(chosen_B, hint=SAME_TOKENS, rejected=rejected_B, ref_chosen=ref_chosen_B, ref_rejected=ref_rejected_B)
    return (chosen_B - ref_chosen_B.detach()) - (rejected_B - ref_rejected_B.detach())


def pair_loss(margin_B: Tensor, beta: float, kind: PairKind = "logistic") -> Tensor:
    """(B,) loss of each pair; `reduce.masked_mean` weighs and averages.

    Args:
        margin_B: of `pair_margin`.
        beta: how strongly the reference holds; more than 0.
        kind: see the module.
    """
    if beta <= 0:
        raise ValueError(f"beta is {beta}, expected more than 0")
    if kind == "logistic":
        return -functional.logsigmoid(beta * margin_B)
    if kind == "hinge":
        return (1 - beta * margin_B).relu()
    if kind == "ipo":
        return (margin_B - 1 / (2 * beta)).square()
    raise ValueError(f"kind is {kind!r}, expected one of {', '.join(get_args(PairKind))}")
