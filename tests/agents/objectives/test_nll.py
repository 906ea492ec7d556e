"""Weights are checked against the losses whose gradient they stand for, differentiated by autograd."""

import math

import pytest
import torch

from agents.objectives.nll import (
    chord_weights,
    dft_weights,
    exponential_weights,
    key_token_weights,
    luffy_weights,
    nll,
)

MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def logp(seed: int = 0) -> torch.Tensor:
    values = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)[..., 0]
    return values.detach().requires_grad_()


def gradient(loss: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def mean_over_mask(values: torch.Tensor) -> torch.Tensor:
    return values[MASK].mean()


@pytest.mark.parametrize(
    ("weights", "objective"),
    [
        (lambda x: None, lambda p: p.log()),
        (dft_weights, lambda p: p),
        (chord_weights, lambda p: p - p.square() / 2),
        (lambda x: luffy_weights(x, 0.3), lambda p: p / (p + 0.3)),
    ],
    ids=["sft", "dft", "chord", "luffy"],
)
def test_gradient_is_that_of_the_objective_behind_the_weight(weights, objective):
    x = logp()
    given = weights(x)
    assert given is None or not given.requires_grad
    torch.testing.assert_close(gradient(nll(x, MASK, given), x), gradient(-mean_over_mask(objective(x.exp())), x))


def test_a_weight_with_gradient_would_be_another_loss():
    """The bug this guards against: differentiating p log p instead of p' log p."""
    x = logp()
    wrong = gradient(-mean_over_mask(x.exp() * x), x)
    right = gradient(nll(x, MASK, x.exp()), x)  # `nll` detaches by itself
    assert not torch.allclose(wrong, right)
    torch.testing.assert_close(right, gradient(-mean_over_mask(x.exp()), x))


def test_weights_by_hand():
    half = torch.tensor([[math.log(0.5)]])
    assert float(dft_weights(half)) == pytest.approx(0.5)
    assert float(chord_weights(half)) == pytest.approx(0.25)
    assert float(luffy_weights(half, 0.1)) == pytest.approx(0.1 * 0.5 / 0.36)
    assert float(nll(half, torch.ones(1, 1, dtype=torch.bool), torch.tensor([3.0]))) == pytest.approx(3 * math.log(2))


def test_zero_weight_gives_no_gradient():
    x = logp()
    grad = gradient(nll(x, MASK, torch.tensor([1.0, 0.0])), x)
    assert grad[1].abs().max() == 0
    assert grad[0].abs().max() > 0


def test_rise_weight_is_per_example():
    """RISE: the mean over each answer, times exp(r / tau), averaged over examples."""
    x, rewards = logp(), torch.tensor([0.0, 1.0])
    loss = nll(x, MASK, exponential_weights(rewards, 0.5, cap=100), how="sequence")
    by_hand = -(x[0, :3].mean() + math.exp(2) * x[1, :2].mean()) / 2
    torch.testing.assert_close(loss, by_hand)


def test_exponential_weights_are_capped_and_finite():
    advantages = torch.tensor([-1e9, 0.0, 1e9], requires_grad=True)
    weights = exponential_weights(advantages, 0.1)
    assert weights.tolist() == pytest.approx([0.0, 1.0, 20.0])
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="temperature is 0"):
        exponential_weights(advantages, 0)


def test_key_tokens_weigh_as_the_others_together():
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    key = torch.tensor([[True, False, False, False, False, False], [True, True, True, False, True, True]])
    weights = key_token_weights(key, mask)
    assert weights[0].tolist() == [5, 1, 1, 1, 1, 1]
    assert weights[1].tolist() == [1] * 6  # three keys are not the fewer, and keys off the mask do not count
    assert key_token_weights(key[:1], mask[:1], cap=3).max() == 3
    losses = torch.arange(1.0, 7.0)[None]
    loss = nll(-losses, mask[:1], weights[:1], total=weights[0].sum())
    assert float(loss) == pytest.approx((5 * 1 + 20) / (5 * 1 + 5))


def test_densities_are_refused_where_probabilities_are_needed():
    for weights in (dft_weights, chord_weights, luffy_weights):
        with pytest.raises(ValueError, match="not densities"):
            weights(torch.tensor([[0.7]]))
