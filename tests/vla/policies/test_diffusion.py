import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from vla.policies.heads.diffusion import DiffusionHead, cosine_alpha_bar, ddim_step


class Exact(DiffusionHead):
    """Takes what `features` says for the noise, so that sampling can be tested with perfect predictions."""

    def forward(self, features_BHD: Tensor) -> Tensor:
        return features_BHD


def exact(horizon: int = 1, binary: tuple[bool, ...] = (False,), **changes) -> Exact:
    return Exact(width=4, horizon=horizon, binary=binary, **changes)


def kept(time_B: Tensor) -> Tensor:
    """Alpha bar (B, 1, 1), from the time that the backbone is told."""
    return torch.tensor(cosine_alpha_bar(50))[(time_B * 50).round().long(), None, None]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_alpha_bar_has_a_closed_form(steps: int):
    """The product telescopes to the cosine, but for the last step, whose beta is capped at 0.999."""

    def cosine(t: float) -> float:
        return math.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2

    expected = [cosine((step + 1) / steps) for step in range(steps - 1)] + [cosine(1 - 1 / steps) * 1e-3]
    assert cosine_alpha_bar(steps) == pytest.approx(expected, rel=1e-9)


def test_alpha_bar_as_published():
    """Of diffusers' squaredcos_cap_v2 at 50 steps, worked out from its definition with 30 digits."""
    alpha_bar = cosine_alpha_bar(50)
    assert [alpha_bar[i] for i in (0, 24, 48, 49)] == pytest.approx(
        [0.998252486466, 0.493843590441, 0.000971193029871, 9.71193029871e-7], rel=1e-9
    )


@pytest.mark.parametrize("steps", [50, 25, 7, 1])
def test_perfect_predictions_recover_the_data(steps: int):
    clean_BHA = torch.rand(5, 3, 2) * 2 - 1

    def true_noise(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        return (noisy_BHA - kept(time_B).sqrt() * clean_BHA) / (1 - kept(time_B)).sqrt()

    actions_BHA = exact(3, (False, False), steps=steps).sample(true_noise, generators(5))
    torch.testing.assert_close(actions_BHA, clean_BHA, rtol=0, atol=1e-3)


def test_one_step_stays_on_the_path():
    """With the noise that was really added, a step lands where that noise and the next level would have put it."""
    clean, noise = torch.rand(4, 2, 3) * 2 - 1, torch.randn(4, 2, 3)
    noisy, cleaner = (math.sqrt(a) * clean + math.sqrt(1 - a) * noise for a in (0.3, 0.8))
    torch.testing.assert_close(ddim_step(noisy, noise, 0.3, 0.8), cleaner)
    torch.testing.assert_close(ddim_step(noisy, noise, 0.3, 1.0), clean)


def test_the_estimate_of_the_actions_is_clipped_and_its_noise_is_not():
    noisy, noise = torch.tensor([5.0, -5.0]), torch.tensor([1.0, -1.0])
    expected = math.sqrt(0.8) * torch.tensor([1.0, -1.0]) + math.sqrt(0.2) * noise
    torch.testing.assert_close(ddim_step(noisy, noise, 0.3, 0.8), expected)


@pytest.mark.parametrize(("steps", "visited"), [(5, [40, 30, 20, 10, 0]), (50, list(range(49, -1, -1)))])
def test_levels_visited(steps: int, visited: list[int]):
    """Evenly spaced, the cleanest always among them; told to the backbone as step / 50."""
    seen = []

    def watch(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        seen.append(time_B.tolist())
        return noisy_BHA

    exact(steps=steps).sample(watch, generators(2))
    assert seen == [[pytest.approx(step / 50)] * 2 for step in visited]


def test_a_mixture_is_sampled_as_it_is():
    """The noise that is exact for two Gaussians of unequal weight: samples keep their places, widths and shares."""
    places, width, shares = torch.tensor([-0.5, 0.4]), 0.08, torch.tensor([0.3, 0.7])

    def true_noise(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        a = kept(time_B)
        variance = a * width**2 + 1 - a
        centred = noisy_BHA[..., None] - a.sqrt()[..., None] * places  # one for each Gaussian
        share = (shares.log() - centred**2 / (2 * variance[..., None])).softmax(-1)
        return (1 - a).sqrt() * (share * centred).sum(-1) / variance

    samples_N = exact(horizon=2000).sample(true_noise, generators(1)).flatten()
    upper_N = samples_N > 0
    assert upper_N.float().mean() == pytest.approx(0.7, abs=0.03)
    for part, place in ((~upper_N, -0.5), (upper_N, 0.4)):
        assert samples_N[part].mean() == pytest.approx(place, abs=0.01)
        assert samples_N[part].std() == pytest.approx(width, rel=0.15)


def test_training_asks_for_the_noise_it_added():
    """Perfect answers cost nothing, silence costs the noise's variance; every level occurs."""
    clean_BHA, head, seen = torch.rand(500, 2, 3) * 2 - 1, exact(2, (False,) * 3), []

    def true_noise(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        seen.extend((time_B * 50).round().int().tolist())
        return (noisy_BHA - kept(time_B).sqrt() * clean_BHA) / (1 - kept(time_B)).sqrt()

    torch.manual_seed(0)
    assert head.loss_BH(true_noise, clean_BHA).max() < 1e-6
    assert set(seen) == set(range(50))
    silence = head.loss_BH(lambda noisy_BHA, time_B: torch.zeros_like(noisy_BHA), clean_BHA)
    assert silence.shape == (500, 2)
    assert silence.mean() == pytest.approx(1.0, abs=0.05)


def test_binary_axes_are_snapped_at_the_end_alone():
    def toward(clean: float, noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        assert set(noisy_BHA[..., 1].unique().tolist()) - {-1.0, 1.0}
        return (noisy_BHA - kept(time_B).sqrt() * clean) / (1 - kept(time_B)).sqrt()

    for clean in (0.2, -0.2):
        actions_BHA = exact(1, (False, True)).sample(partial(toward, clean), generators(1))
        assert actions_BHA[0, 0].tolist() == [pytest.approx(clean, abs=1e-4), np.sign(clean)]


def test_binary_axes_with_published_values():
    """A network that knows open (our -1) as 1 and closed (our +1) as 0."""
    head = exact(2, (True,), binary_codes=(1.0, 0.0))
    coded_BHA, actions_BHA = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[-1.0], [1.0]]])

    def true_noise(noisy_BHA: Tensor, time_B: Tensor) -> Tensor:
        return (noisy_BHA - kept(time_B).sqrt() * coded_BHA) / (1 - kept(time_B)).sqrt()

    assert torch.equal(head.sample(true_noise, generators(1)), actions_BHA)
    assert head.loss_BH(true_noise, actions_BHA).max() < 1e-6


@pytest.mark.parametrize("steps", [0, 51])
def test_steps_out_of_range(steps: int):
    with pytest.raises(ValueError, match=f"steps is {steps}, expected 1 to train_steps = 50"):
        exact(steps=steps)
