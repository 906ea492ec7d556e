import math

import pytest
import torch

from agents.objectives.reduce import masked_mean
from agents.objectives.regression import absolute_error, binary_cross_entropy, squared_error
from agents.objectives.tokens import token_cross_entropy


def test_absolute_error_is_elementwise():
    error = absolute_error(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 1.0]]))
    assert error.tolist() == [[0.5, 3.0]]


def test_squared_error_is_elementwise():
    error = squared_error(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 1.0]]))
    assert error.tolist() == [[0.25, 9.0]]


def test_token_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)], [1.0, 1.0]]])
    loss = token_cross_entropy(logits, torch.tensor([[1, 0]]))
    assert loss.shape == (1, 2)
    assert loss[0].tolist() == pytest.approx([math.log(4 / 3), math.log(2)], rel=1e-6)


def test_token_cross_entropy_is_minus_the_log_probability_in_single_precision():
    logits, ids = torch.randn(2, 3, 4, 50, dtype=torch.bfloat16), torch.randint(50, (2, 3, 4))
    loss = token_cross_entropy(logits, ids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -torch.distributions.Categorical(logits=logits.float()).log_prob(ids))


def test_binary_cross_entropy_by_hand():
    loss = binary_cross_entropy(torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 1.0, -1.0]))
    expected = [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))]
    assert loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_stays_finite_for_large_logits():
    logits = torch.tensor([500.0, -500.0], requires_grad=True)
    binary_cross_entropy(logits, torch.tensor([-1.0, 1.0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [1.0, -1.0]


def test_masked_mean_counts_valid_elements_alike_across_rows():
    losses = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert float(masked_mean(losses, mask)) == 4.0  # (1 + 2 + 3 + 10) / 4, not the mean of row means


def test_masked_mean_weighs():
    assert float(masked_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0]))) == 2.0


def test_parts_of_a_step_add_up_to_the_whole():
    losses, mask = torch.rand(6, 4), torch.rand(6, 4) < 0.5
    total = mask.sum()
    parts = [masked_mean(losses[rows], mask[rows], total=total) for rows in (slice(0, 2), slice(2, 6))]
    assert float(sum(parts)) == pytest.approx(float(masked_mean(losses, mask)), rel=1e-6)


def test_zero_weights_give_zero_loss_and_zero_gradient():
    losses = torch.rand(2, 3, requires_grad=True)
    loss = masked_mean(losses, torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert losses.grad is not None
    assert losses.grad.abs().max() == 0.0


def test_only_weighted_elements_get_gradient():
    losses = torch.rand(2, 2, requires_grad=True)
    masked_mean(losses, torch.tensor([[True, False], [False, True]])).backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0.5, 0.0], [0.0, 0.5]]
