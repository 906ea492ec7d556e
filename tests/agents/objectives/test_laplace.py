import pytest
import torch

from agents.objectives.laplace import laplace_log_prob_BH, laplace_scale
from agents.objectives.nll import nll
from agents.objectives.pair import pair_loss, pair_margin
from agents.objectives.reduce import masked_mean, sequence_sum
from agents.objectives.regression import absolute_error


def test_it_is_torch_s_laplace_law():
    actions, means, scale = torch.randn(3, 4, 2), torch.randn(3, 4, 2), torch.tensor([0.5, 2.0])
    expected = torch.distributions.Laplace(means, scale.expand_as(means)).log_prob(actions).sum(-1)
    torch.testing.assert_close(laplace_log_prob_BH(actions, means, scale), expected)


def test_its_density_has_mass_one():
    points = torch.linspace(-30, 30, 400_001, dtype=torch.float64)[None, :, None]
    density = laplace_log_prob_BH(points, torch.full_like(points, 0.3), torch.tensor(0.8)).exp()
    assert float(torch.trapezoid(density[0], points[0, :, 0])) == pytest.approx(1.0, abs=1e-6)


def test_likelihood_of_chunks_has_the_gradient_of_l1_over_b():
    actions, valid = torch.randn(3, 4, 2), torch.rand(3, 4) < 0.7
    means = torch.randn(3, 4, 2, requires_grad=True)
    likelihood = nll(laplace_log_prob_BH(actions, means, torch.tensor(0.25)), valid)
    l1 = masked_mean(absolute_error(means, actions).sum(-1), valid)
    left, right = (torch.autograd.grad(loss, means)[0] for loss in (likelihood, l1))
    torch.testing.assert_close(left, right / 0.25)


def test_preferences_between_chunks_by_the_closed_form():
    """DPO on chunks is beta / b times differences of L1 distances."""
    chosen, rejected, mean, ref = (torch.randn(2, 4, 3) for _ in range(4))
    valid = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    b, beta = torch.tensor(0.5), 0.3
    logp = [
        sequence_sum(laplace_log_prob_BH(chunk, mu, b), valid)
        for chunk, mu in ((chosen, mean), (rejected, mean), (chosen, ref), (rejected, ref))
    ]

    def distance(chunk: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        return ((chunk - mu).abs().sum(-1) * valid).sum(-1)

    s = beta / b * (distance(rejected, mean) - distance(rejected, ref) - distance(chosen, mean) + distance(chosen, ref))
    torch.testing.assert_close(pair_loss(pair_margin(*logp), beta), -s.sigmoid().log())


def test_scale_has_the_highest_likelihood():
    residuals = torch.randn(20, 5, 2) * torch.tensor([1.0, 3.0])
    valid = torch.rand(20, 5) < 0.8
    best = laplace_scale(residuals, valid)

    def total(scale: torch.Tensor) -> float:
        return float(nll(laplace_log_prob_BH(residuals, torch.zeros_like(residuals), scale), valid))

    assert total(best) < min(total(best * 0.97), total(best * 1.03))
    assert laplace_scale(torch.zeros(1, 1, 1), torch.ones(1, 1)).tolist() == pytest.approx([1e-3])


def test_errors_name_what_is_wrong():
    chunk = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="scale has 0"):
        laplace_log_prob_BH(chunk, chunk, torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"means has shape \(1, 2, 2\)"):
        laplace_log_prob_BH(chunk, chunk[..., :2], torch.tensor(1.0))
    with pytest.raises(ValueError, match="valid has no step"):
        laplace_scale(chunk, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="valid has shape"):
        laplace_scale(chunk, torch.zeros(1, 3))
