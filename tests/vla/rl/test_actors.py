"""Actors: densities against scipy's and against their own draws, rows apart, binary axes, the residual's start."""

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from vla.rl.actors.flow import FlowActor, OneStepActor
from vla.rl.actors.l1 import L1Actor
from vla.rl.actors.laplace import LaplaceActor, raw_scale
from vla.rl.actors.residual import ResidualActor
from vla.rl.actors.tokens import TokenActor
from vla.rl.actors.trunk import as_played, clip_through, squash
from vla.rl.extraction import play
from vla.rl.learner import adam, minimise
from vla.rl.presets import ACTORS, make_actor
from vla.rl.problem import Problem

H, BINARY = 3, (False, False, True)
CHUNK = H * len(BINARY)
PROBLEM = Problem(features=4 + CHUNK, horizon=H, binary=BINARY, discount=0.9, low=0.0, high=1.0, base_chunk=4)


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def features(rows: int) -> Tensor:
    """Observations whose last part is a base policy's chunk, grippers at -1 or +1."""
    features_BD = torch.rand(rows, PROBLEM.features, generator=seeded(1)) * 2 - 1
    base_BHA = features_BD[:, 4:].unflatten(1, (H, -1))
    base_BHA[..., 2] = base_BHA[..., 2].sign()
    return features_BD


def actor_of(name: str):
    torch.manual_seed(0)
    return make_actor(name, PROBLEM, width=32, layers=2)


def laplace_with(outputs: Tensor, log_scales: Tensor) -> LaplaceActor:
    """An actor whose law does not depend on what it sees."""
    actor = LaplaceActor(problem=PROBLEM, width=8, layers=1)
    with torch.no_grad():
        actor.net[-1].weight.zero_()
        raw = log_scales.clone().apply_(raw_scale)
        actor.net[-1].bias.copy_(torch.stack([outputs, raw], -1).flatten())
    return actor


OUTPUTS = torch.linspace(-1.5, 1.5, CHUNK).view(H, -1)
LOG_SCALES = torch.linspace(-3, -0.5, CHUNK).view(H, -1)


def test_laplace_density_is_scipys() -> None:
    actor = laplace_with(OUTPUTS, LOG_SCALES)
    actions_BHA = as_played(torch.randn(5, H, 3, generator=seeded()), actor.binary_A)
    moves = stats.laplace.logpdf(actions_BHA[..., :2], OUTPUTS.tanh()[..., :2], LOG_SCALES.exp()[..., :2]).sum(-1)
    grippers = stats.bernoulli.logpmf(actions_BHA[..., 2] > 0, OUTPUTS[..., 2].sigmoid())
    found = actor.log_prob_BH(features(5), actions_BHA)
    torch.testing.assert_close(found.detach(), torch.as_tensor(moves + grippers).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widening", [1.0, 5.0])
def test_laplace_draws_are_of_the_density(widening: float) -> None:
    """The scale of drawing is that of the density; five times as wide (RIPT-VLA's factor) would be found out."""
    actor = laplace_with(OUTPUTS, LOG_SCALES)
    draws_MHA = actor.sample(features(1), 4000, seeded())[:, 0].detach()
    fits = [
        stats.kstest(
            draws_MHA[:, i, a], stats.laplace(OUTPUTS[i, a].tanh(), LOG_SCALES[i, a].exp() / widening).cdf
        ).pvalue
        for i in range(H)
        for a in range(2)
    ]
    assert (min(fits) > 1e-3) == (widening == 1.0)
    share_H = (draws_MHA[..., 2] > 0).float().mean(0)
    torch.testing.assert_close(share_H, OUTPUTS[:, 2].sigmoid(), atol=0.03, rtol=0)
    assert set(draws_MHA[..., 2].unique().tolist()) == {-1.0, 1.0}


def test_laplace_draws_carry_gradients_to_mean_scale_and_gripper() -> None:
    actor = laplace_with(OUTPUTS, LOG_SCALES)
    actor.sample(features(2), 3, seeded()).sum().backward()
    gradient = actor.net[-1].bias.grad.view(H, 3, 2)
    assert (gradient[..., 0] != 0).all(), "mean and logit"
    assert (gradient[:, :2, 1] != 0).all(), "scale"


def test_a_price_on_entropy_never_leaves_the_scale_stuck() -> None:
    """Pushed to its widest and then back: with a hard clamp nothing would come back."""
    torch.manual_seed(0)
    actor, features_BD = LaplaceActor(problem=PROBLEM, width=8, layers=1), features(4)
    optimizer, scales = adam(actor, 3e-2), []
    for sign, steps in ((-1, 200), (1, 400)):
        for _ in range(steps):
            minimise(optimizer, sign * actor.law(features_BD)[1].mean())
        scales.append(actor.law(features_BD)[1].mean().item())
    assert scales[0] > -0.2 and scales[1] < -4


def test_a_policy_gradient_sees_the_mean_of_the_law_that_cross_entropy_fits() -> None:
    logits = torch.linspace(-4, 4, 9)
    mean = 2 * logits.sigmoid() - 1
    torch.testing.assert_close(squash(logits[:, None], torch.tensor([True])).squeeze(-1), mean)


def test_token_probabilities_sum_to_one_and_draws_follow_them() -> None:
    problem = replace(PROBLEM, horizon=1, binary=(False, True), base_chunk=None)
    torch.manual_seed(1)
    actor = TokenActor(problem=problem, width=16, layers=1, bins=5)
    one_BD = features(1)
    centres = (torch.arange(5) * 2 + 1) / 5 - 1
    grid = torch.stack(torch.meshgrid(centres, torch.tensor([-1.0, 1.0]), indexing="ij"), -1).view(-1, 1, 2)
    probability = actor.log_prob_BH(one_BD.expand(10, -1), grid).squeeze(1).exp().detach()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0))
    draws = actor.sample(one_BD, 20000, seeded())[:, 0]
    found = torch.stack([torch.isclose(draws, cell).all(-1).all(-1).float().mean() for cell in grid])
    torch.testing.assert_close(found, probability, atol=0.01, rtol=0)


def test_tokens_are_the_nearest_bin() -> None:
    actor = actor_of("tokens")
    actions_BHA = as_played(torch.rand(50, H, 3, generator=seeded()) * 2.1 - 1.05, actor.binary_A)
    error_BHA = (actor.from_ids(actor.to_ids(actions_BHA)) - actions_BHA.clamp(-1, 1)).abs()
    assert error_BHA[..., :2].max() <= 1 / actor.bins + 1e-6
    assert (error_BHA[..., 2] == 0).all()


def test_a_residual_begins_exactly_as_its_base() -> None:
    actor, features_BD = actor_of("residual"), features(6)
    base_BHA = features_BD[:, 4:].unflatten(1, (H, -1))
    assert torch.equal(play(actor, features_BD, seeded()), base_BHA)
    target_BHA = base_BHA.flip(-1).clamp(-0.9, 0.9)
    optimizer = adam(actor, 1e-2)
    for _ in range(100):
        minimise(optimizer, -(actor.mean(features_BD) * target_BHA.sign()).sum())
    moved_BHA = actor.mean(features_BD) - base_BHA
    assert 0.25 < moved_BHA[..., :2].abs().max() <= actor.reach + 1e-6, "it reaches as far as it may, and no further"


def test_clipping_keeps_the_gradient() -> None:
    chunks = torch.tensor([0.5, 3.0, -2.0], requires_grad=True)
    clipped = clip_through(chunks)
    assert clipped.tolist() == pytest.approx([0.5, 1.05, -1.05])
    clipped.sum().backward()
    assert chunks.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ACTORS)
def test_a_row_is_a_function_of_itself_and_the_generator(name: str) -> None:
    """Neither the other rows nor their number change what is drawn or played for row 0 and row 1."""
    actor, features_BD = actor_of(name), features(5)
    other_BD = torch.cat([features_BD[:2], torch.zeros(1, PROBLEM.features)])
    for answer in (lambda f: actor.sample(f, 4, seeded(3))[:, :2], lambda f: play(actor, f, seeded(3))[:2]):
        torch.testing.assert_close(answer(features_BD), answer(other_BD), atol=1e-5, rtol=0)
        assert torch.equal(answer(features_BD), answer(features_BD))


@pytest.mark.parametrize("name", ACTORS)
def test_imitation_overfits_and_reaches_every_weight(name: str) -> None:
    actor, features_BD = actor_of(name), features(4)
    actions_BHA = as_played(torch.rand(4, H, 3, generator=seeded(2)) * 1.8 - 0.9, actor.binary_A)
    if name == "residual":  # it cannot leave its base by more than its reach
        actions_BHA = (features_BD[:, 4:].unflatten(1, (H, -1)) + 0.2 * actions_BHA).clamp(-1, 1)
        actions_BHA[..., 2] = actions_BHA[..., 2].sign()
    optimizer, losses = adam(actor, 1e-2), []
    for _ in range(400 if name == "flow" else 150):
        torch.manual_seed(len(losses))
        loss_BH = actor.loss_BH(features_BD.repeat(16, 1), actions_BHA.repeat(16, 1, 1))  # a flow draws a time a row
        assert loss_BH.shape == (64, H)
        losses.append(loss_BH.mean())
        minimise(optimizer, losses[-1])
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])
    played_BHA = play(actor, features_BD, seeded())
    error_BHA = (played_BHA - actions_BHA).abs()
    assert error_BHA[..., :2].mean() < (0.2 if name == "flow" else 0.1)
    assert (error_BHA[..., 2] == 0).all(), "grippers are played as demonstrated"
    gradients = torch.autograd.grad(actor.loss_BH(features_BD, actions_BHA).sum(), list(actor.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_a_flow_keeps_two_modes_that_absolute_error_blurs() -> None:
    problem = Problem(features=1, horizon=1, binary=(False,), discount=0.9, low=0.0, high=1.0)
    torch.manual_seed(0)
    flow = FlowActor(problem=problem, width=32, layers=2)
    ones_BD = torch.ones(64, 1)
    modes_BHA = torch.tensor([-0.6, 0.6]).repeat(32)[:, None, None]
    optimizer = adam(flow, 5e-3)
    for _ in range(300):
        minimise(optimizer, flow.loss_BH(ones_BD, modes_BHA).mean())
    draws = flow.sample(torch.ones(1, 1), 200, seeded()).detach().flatten()
    assert ((draws.abs() - 0.6).abs() < 0.25).float().mean() > 0.85
    assert 0.3 < (draws > 0).float().mean() < 0.7


def test_one_step_student_is_a_function_of_its_noise() -> None:
    torch.manual_seed(0)
    student, features_BD = OneStepActor(problem=PROBLEM, width=16, layers=1), features(3)
    noise_BHA = student.noise(features_BD, seeded())
    assert torch.equal(student.noise(features_BD[:2], seeded()), noise_BHA[:2])
    assert not torch.allclose(student.play(features_BD, noise_BHA), student.play(features_BD, noise_BHA + 1))


@pytest.mark.parametrize("name", ["l1", "flow", "residual"])
def test_actors_without_a_density_say_so(name: str) -> None:
    with pytest.raises(NotImplementedError, match="laplace"):
        actor_of(name).log_prob_BH(features(1), torch.zeros(1, H, 3))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'laplace'"):
        make_actor("laplas", PROBLEM, width=8, layers=1)
    with pytest.raises(ValueError, match="base_chunk"):
        ResidualActor(problem=replace(PROBLEM, base_chunk=None))
    with pytest.raises(ValueError, match="base_chunk"):
        replace(PROBLEM, base_chunk=5)
    with pytest.raises(ValueError, match="low"):
        replace(PROBLEM, low=2.0)
    assert L1Actor(problem=PROBLEM, width=8, layers=1).mean(features(2)).abs().max() < 1
