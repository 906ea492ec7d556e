import numpy as np
import pytest
import torch

from agents.objectives.balance import balance_loss, expert_usage

TYPES_B, TYPES_E = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 1])


def test_by_numpy():
    usage = torch.rand(3, 4, dtype=torch.float64)
    own = TYPES_B.numpy()[:, None] == TYPES_E.numpy()[None]
    weighted = usage.numpy() * np.where(own, 0.8, 1.2)
    expected = weighted.var(ddof=1) / weighted.mean() ** 2
    assert float(balance_loss(usage, TYPES_B, TYPES_E, 0.2)) == pytest.approx(expected)


def test_its_least_point_gives_a_type_its_own_experts():
    """Descent on the loss alone: own experts end with (1 + delta) / (1 - delta) times the usage of the others."""
    logits = torch.zeros(3, 4)
    for _ in range(1000):
        logits.requires_grad_()
        loss = balance_loss(logits.softmax(-1), TYPES_B, TYPES_E, 0.3)
        logits = (logits - 2.0 * torch.autograd.grad(loss, logits)[0]).detach()
    usage = logits.softmax(-1)
    assert (usage[0, 0] / usage[0, 3]).item() == pytest.approx(1.3 / 0.7, rel=1e-2)
    assert (usage[1, 3] / usage[1, 0]).item() == pytest.approx(1.3 / 0.7, rel=1e-2)


def test_usage_leaves_padding_out():
    gates = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [torch.nan, torch.nan]]])
    assert expert_usage(gates, torch.tensor([[True, True, False]]))[0].tolist() == [0.75, 1.25]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="delta is 1"):
        balance_loss(torch.ones(3, 4), TYPES_B, TYPES_E, 1.0)
    with pytest.raises(ValueError, match="at least two"):
        balance_loss(torch.ones(1, 1), TYPES_B[:1], TYPES_E[:1], 0.0)
    with pytest.raises(ValueError, match="gates have shape"):
        expert_usage(torch.ones(1, 2, 3), torch.ones(1, 3))
