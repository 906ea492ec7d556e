from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from vla.policies.heads.flow import FlowHead, draw_times


class Exact(FlowHead):
    """Takes what `features` says for the velocity, so that sampling can be tested with perfect predictions."""

    def forward(self, features_BHD: Tensor) -> Tensor:
        return features_BHD


def exact(horizon: int = 1, binary: tuple[bool, ...] = (False,), **changes) -> Exact:
    return Exact(width=4, horizon=horizon, binary=binary, **changes)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def toward(clean: Tensor | float, noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
    """The velocity of a path that ends in `clean` at time 0."""
    return (noisy_BHA - clean) / time_B[:, None, None]


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_perfect_velocities_recover_the_data(steps: int):
    """Paths are straight, so any number of steps is exact."""
    clean_BHA = torch.rand(5, 3, 2) * 2 - 1
    actions_BHA = exact(3, (False, False), steps=steps).sample(partial(toward, clean_BHA), generators(5))
    torch.testing.assert_close(actions_BHA, clean_BHA, rtol=0, atol=1e-5)


def test_starts_at_noise_and_goes_down_in_even_steps():
    seen = []

    def watch(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        seen.append((noisy_BHA.clone(), time_B.tolist()))
        return torch.ones_like(noisy_BHA)

    actions_BHA = exact(3, steps=4).sample(watch, generators(2))
    start_BHA = torch.stack([torch.randn(3, 1, generator=each) for each in generators(2)])
    assert [time_B for _, time_B in seen] == [[1.0] * 2, [0.75] * 2, [0.5] * 2, [0.25] * 2]
    torch.testing.assert_close(seen[0][0], start_BHA)
    torch.testing.assert_close(actions_BHA, start_BHA - 1)


def test_a_mixture_is_sampled_as_it_is():
    """The velocity that is exact for two Gaussians of unequal weight: samples keep their places, widths and shares."""
    places, width, shares = torch.tensor([-0.5, 0.4]), 0.08, torch.tensor([0.3, 0.7])

    def true_velocity(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        t = time_B[:, None, None, None]
        variance = (1 - t) ** 2 * width**2 + t**2
        centred = noisy_BHA[..., None] - (1 - t) * places  # one for each Gaussian
        share = (shares.log() - centred**2 / (2 * variance)).softmax(-1)
        # E[noise - data] given the noisy value, by the law of joint Gaussians
        each = t * centred / variance - places - (1 - t) * width**2 * centred / variance
        return (share * each).sum(-1)

    samples_N = exact(horizon=2000, steps=100).sample(true_velocity, generators(1)).flatten()
    upper_N = samples_N > 0
    assert upper_N.float().mean() == pytest.approx(0.7, abs=0.03)
    for part, place in ((~upper_N, -0.5), (upper_N, 0.4)):
        assert samples_N[part].mean() == pytest.approx(place, abs=0.01)
        assert samples_N[part].std() == pytest.approx(width, rel=0.15)


def test_training_asks_for_noise_minus_data():
    """Perfect answers cost nothing; silence costs the variance of the noise plus the square of the data."""
    clean_BHA, head = torch.full((2000, 1, 1), 0.5), exact()
    torch.manual_seed(0)
    assert head.loss_BH(partial(toward, clean_BHA), clean_BHA).max() < 1e-3
    silence_BH = head.loss_BH(lambda noisy_BHA, time_B: torch.zeros_like(noisy_BHA), clean_BHA)
    assert silence_BH.shape == (2000, 1)
    assert silence_BH.mean() == pytest.approx(1 + 0.25, abs=0.1)  # E[(noise - 0.5)^2]


def test_times_follow_their_law():
    """0.001 + 0.999 Beta(1.5, 1): distribution function x^1.5, mean 0.6; numpy draws the same."""
    torch.manual_seed(0)
    times_N = draw_times(20000, torch.device("cpu"))
    assert times_N.min() >= 0.001 and times_N.max() <= 1
    numpys_N = 0.001 + 0.999 * np.random.default_rng(0).beta(1.5, 1, 20000)
    for quantile in (0.1, 0.5, 0.9):
        assert times_N.quantile(quantile) == pytest.approx(0.001 + 0.999 * quantile ** (1 / 1.5), abs=0.01)
        assert times_N.quantile(quantile) == pytest.approx(np.quantile(numpys_N, quantile), abs=0.02)


def test_binary_axes_are_snapped_at_the_end():
    for clean in (0.2, -0.2):
        actions_BHA = exact(1, (False, True)).sample(partial(toward, clean), generators(1))
        assert actions_BHA[0, 0].tolist() == [pytest.approx(clean, abs=1e-5), np.sign(clean)]


def test_no_steps():
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        exact(steps=0)
