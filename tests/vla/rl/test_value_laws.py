"""Value laws against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch.nn import functional

from vla.rl.value_laws import Bernoulli, HLGauss, Squared


def test_squared_is_the_square() -> None:
    outputs, targets = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    assert Squared().loss(outputs, targets).tolist() == [0.25, 9.0]
    assert Squared().value(outputs) is outputs


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-100.0, 0.0)])
def test_the_mean_of_a_projected_target_is_the_target_at_the_ends_too(low: float, high: float) -> None:
    law = HLGauss(low=low, high=high)
    targets = torch.linspace(low, high, 57, dtype=torch.float64)
    means = law.value(law.histogram(targets).log())
    np.testing.assert_allclose(means, targets, atol=2e-5 * (high - low))


def test_a_histogram_that_stops_at_the_range_would_not_do_that() -> None:
    """The published layout, by scipy: the mean of a target at the end lies half a bin inside."""
    edges, width = np.linspace(0, 1, 102), 1 / 101
    mass = np.diff(norm.cdf(edges, loc=1.0, scale=0.75 * width))
    assert 1.0 - (mass / mass.sum()) @ ((edges[1:] + edges[:-1]) / 2) > 0.5 * width


def test_projection_agrees_with_scipy() -> None:
    law = HLGauss(low=-1.0, high=2.0, bins=31)
    width = 3 / 25
    edges = np.linspace(-1 - 3 * width, 2 + 3 * width, 32)
    mass = np.diff(norm.cdf(edges, loc=0.3, scale=0.75 * width))
    projected = law.histogram(torch.tensor(0.3, dtype=torch.float64))
    np.testing.assert_allclose(projected, mass / mass.sum(), atol=1e-12)


def test_hl_gauss_loss_is_a_cross_entropy_least_at_the_histogram() -> None:
    law = HLGauss(low=0.0, high=1.0, bins=21)
    target = torch.tensor([0.4], dtype=torch.float64)
    logits = law.histogram(target).clamp(min=1e-300).log().requires_grad_()
    loss = law.loss(logits, target)
    entropy = -(law.histogram(target) * logits.detach()).sum()
    assert loss.shape == (1,) and loss.item() == pytest.approx(entropy.item(), abs=1e-12)
    [gradient] = torch.autograd.grad(loss.sum(), logits)
    assert gradient.abs().max() < 1e-12


def test_hl_gauss_keeps_other_axes() -> None:
    law = HLGauss(low=0.0, high=1.0)
    outputs, targets = torch.randn(2, 5, 3, 101), torch.rand(2, 5, 3)
    assert law.outputs == 101
    assert law.value(outputs).shape == law.loss(outputs, targets).shape == (2, 5, 3)
    assert law.value(torch.zeros(101)) == pytest.approx(0.5)


def test_hl_gauss_clips_targets_to_the_range() -> None:
    law = HLGauss(low=0.0, high=1.0)
    torch.testing.assert_close(law.histogram(torch.tensor(7.0)), law.histogram(torch.tensor(1.0)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_bernoulli_is_least_at_the_expected_return(share: float) -> None:
    law = Bernoulli(low=-10.0, high=0.0)
    logits = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    losses = law.loss(logits, torch.full_like(logits, -10 + 10 * share))
    assert float(law.value(logits[losses.argmin()])) == pytest.approx(-10 + 10 * share, abs=0.02)


def test_bernoulli_agrees_with_the_formula() -> None:
    law, logit, target = Bernoulli(low=0.0, high=2.0), torch.tensor(0.7), torch.tensor(0.5)
    p = 1 / (1 + np.exp(-0.7))
    assert float(law.value(logit)) == pytest.approx(2 * p)
    assert float(law.loss(logit, target)) == pytest.approx(-(0.25 * np.log(p) + 0.75 * np.log(1 - p)), abs=1e-6)
    assert law.loss(logit, torch.tensor(9.0)) == functional.softplus(-logit)


@pytest.mark.parametrize("law", [HLGauss, Bernoulli])
def test_an_empty_range_is_refused(law: type) -> None:
    with pytest.raises(ValueError, match="low < high"):
        law(low=1.0, high=1.0)


def test_too_few_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="bins is 6"):
        HLGauss(low=0.0, high=1.0, bins=6)
