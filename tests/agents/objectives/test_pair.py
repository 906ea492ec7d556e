import math

import pytest
import torch

from agents.objectives.pair import pair_loss, pair_margin


def test_margin_by_hand():
    margin = pair_margin(torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([-4.0]), torch.tensor([-3.0]))
    assert margin.tolist() == [2.0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("logistic", [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1.5))]),
        ("hinge", [0.0, 2.5]),
        ("ipo", [(2 - 1) ** 2, (-3 - 1) ** 2]),
    ],
)
def test_losses_by_hand(kind, expected):
    assert pair_loss(torch.tensor([2.0, -3.0]), 0.5, kind).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["logistic", "hinge", "ipo"])
def test_only_the_policy_has_gradient_and_it_is_finite(kind):
    chosen, rejected, ref_chosen, ref_rejected = (torch.randn(4) * 1e4 for _ in range(4))
    for leaf in (chosen, rejected, ref_chosen, ref_rejected):
        leaf.requires_grad_()
    pair_loss(pair_margin(chosen, rejected, ref_chosen, ref_rejected), 0.1, kind).sum().backward()
    assert ref_chosen.grad is None
    assert ref_rejected.grad is None
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert torch.isfinite(chosen.grad).all()
    torch.testing.assert_close(chosen.grad, -rejected.grad)


def test_one_margin_may_be_wrong_where_a_sign_is():
    """DPO with the reference on the wrong side is another number."""
    a, b, c, d = torch.tensor([[-1.0], [-2.0], [-4.0], [-3.0]])
    assert pair_margin(a, b, c, d).tolist() != pair_margin(a, b, -c, -d).tolist()


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"ref_chosen has shape \(3,\).*same tokenizer"):
        pair_margin(torch.zeros(2), torch.zeros(2), torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="beta is 0"):
        pair_loss(torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match="kind is 'dpo', expected one of logistic, hinge, ipo"):
        pair_loss(torch.zeros(2), 0.1, "dpo")  # type: ignore[arg-type]
