import math

import pytest
import torch

from agents.adapters.guidance import contrast_scores, guide, novelty


def test_guided_tokens_are_the_base_times_the_reward_to_the_w():
    """tuned ~ base exp(r); guided by w is base exp(w r), for every w."""
    base, reward = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    tuned = base + reward + 3.0
    for w in (-0.5, 0.3, 1.0, 2.5):
        torch.testing.assert_close(guide(base, tuned, w).softmax(-1), (base + w * reward).softmax(-1))


def velocity(x: torch.Tensor, time: float, mean: float, deviation: float) -> torch.Tensor:
    """Of the straight path from N(0, 1) at time 0 to N(mean, deviation^2) at time 1: E[data - noise | x]."""
    variance = (1 - time) ** 2 + (time * deviation) ** 2
    return mean + (time * deviation**2 - (1 - time)) / variance * (x - time * mean)


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 2.0])
def test_guided_flow_of_gaussians_has_the_closed_form(w):
    """Base N(0.2, 0.5^2), tuned N(1, 0.5^2): the guided flow ends in N(0.2 + 0.8 w, 0.5^2)."""
    start = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(2001, dtype=torch.float64) + 0.5) / 2001)
    x, steps = start.clone(), 400
    for step in range(steps):
        time = (step + 0.5) / steps
        x = x + guide(velocity(x, time, 0.2, 0.5), velocity(x, time, 1.0, 0.5), w) / steps
    assert x.mean().item() == pytest.approx(0.2 + 0.8 * w, abs=2e-3)
    assert (x.std() / start.std()).item() == pytest.approx(0.5, abs=5e-3)


def test_contrast_by_hand():
    tuned, base = torch.tensor([0.5, 0.46, 0.04]).log(), torch.tensor([0.8, 0.19999, 0.00001]).log()
    scores = contrast_scores(tuned, base, plausible=0.1)
    assert scores[:2].tolist() == pytest.approx([math.log(0.5 / 0.8), math.log(0.46 / 0.19999)])
    assert scores[2] == -math.inf  # without the limit, the one that both find absurd would win
    assert contrast_scores(tuned, base, plausible=1e-6).argmax() == 2
    assert torch.isfinite(scores.softmax(-1)).all()


def test_novelty_is_a_mean_over_tokens():
    tuned, base = torch.tensor([[-1.0, -1.0, 9.0]]), torch.tensor([[-2.0, -4.0, 0.0]])
    assert novelty(tuned, base, torch.tensor([[True, True, False]])).tolist() == [2.0]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="tuned has shape"):
        guide(torch.zeros(2), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="plausible is 0"):
        contrast_scores(torch.zeros(2), torch.zeros(2), plausible=0)
