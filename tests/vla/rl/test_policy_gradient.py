"""Policy gradients on chunks: closed forms on a bandit of one step, finite differences, and learning with seeds."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.vla.rl.bandit import BANDIT, SMALL, attempts_of, bandit_round, chance_of
from vla.core.errors import UnknownNameError
from vla.rl.algorithms.policy_gradient import PolicyGradient, chunk_rewards
from vla.rl.on_policy import Attempts
from vla.rl.problem import Problem


def last_bias(learner: PolicyGradient) -> Tensor:
    last = learner.actor.net[-1]
    assert isinstance(last, nn.Linear)
    return last.bias


def reinforce_slope(
    learner: PolicyGradient, attempts: Attempts, advantages_B: Tensor, weight: Tensor, size: float
) -> float:
    """Central difference of -mean(A log p) in one weight."""
    values = []
    for step in (size, -size):
        with torch.no_grad():
            weight += step
            logp_B = learner.actor.log_prob_BH(attempts.features_BD, attempts.chunks_BHA)[:, 0]
            values.append(float((-advantages_B * logp_B).mean()))
            weight -= step
    return (values[0] - values[1]) / (2 * size)


@pytest.mark.parametrize(("actor", "size"), [("laplace", 1e-6), ("tokens", 1e-2)])  # float32 within tokens
def test_its_first_gradient_is_reinforces(actor: str, size: float) -> None:
    torch.manual_seed(0)
    learner = PolicyGradient(problem=BANDIT, actor=actor, **SMALL)
    round_ = bandit_round(learner, 0)
    learner.actor.double()
    attempts = replace(round_, features_BD=round_.features_BD.double(), chunks_BHA=round_.chunks_BHA.double())
    with torch.no_grad():
        attempts = replace(attempts, logp_BH=learner.actor.log_prob_BH(attempts.features_BD, attempts.chunks_BHA))
    advantages_B, _ = learner._advantages(attempts)
    bias = last_bias(learner)
    [slope_K] = torch.autograd.grad(learner.loss(attempts, advantages_B), bias)
    index = int(slope_K.abs().argmax())
    expected = reinforce_slope(learner, attempts, advantages_B, bias[index : index + 1], size)
    assert float(slope_K[index]) == pytest.approx(expected, abs=1e-4) and abs(expected) > 1e-3
    stale = replace(attempts, logp_BH=attempts.logp_BH + math.log(1.2))  # the bug: another law's density
    [wrong_K] = torch.autograd.grad(learner.loss(stale, advantages_B), bias)
    assert float((wrong_K - slope_K).abs().max()) > 0.1 * float(slope_K.abs().max())


@pytest.mark.parametrize(("wider", "expected"), [(1.0, 1.0), (5.0, 5.0)])
def test_one_width_for_draws_and_density(wider: float, expected: float) -> None:
    """For the return a the slope in mu of E[a] is 1; drawn five times as wide as computed, the estimate says 5."""
    torch.manual_seed(0)
    learner = PolicyGradient(problem=BANDIT, advantage="leave_one_out", **SMALL)
    features_BD = torch.ones(20_000, 1)
    with torch.no_grad():
        mean_BHA = learner.actor.mean(features_BD)
        drawn_BHA = learner.actor.sample(features_BD, 1, torch.Generator().manual_seed(0))[0]
    chunks_BHA = mean_BHA + wider * (drawn_BHA - mean_BHA)
    logp_BH = learner.actor.log_prob_BH(features_BD, chunks_BHA)
    attempts = attempts_of(features_BD, chunks_BHA, logp_BH.detach(), chunks_BHA[:, 0, 0], 20_000)
    advantages_B = attempts.return_E - attempts.return_E.mean()
    bias = last_bias(learner)
    slope = -float(torch.autograd.grad(learner.loss(attempts, advantages_B), bias)[0][0])
    assert slope / (1 - float(mean_BHA[0]) ** 2) == pytest.approx(expected, rel=0.06)  # mu = tanh(output)


def test_steps_that_were_not_played_do_not_count() -> None:
    torch.manual_seed(0)
    problem = Problem(features=2, horizon=3, binary=(False, True), discount=0.9, low=0.0, high=1.0)
    learner = PolicyGradient(problem=problem, **SMALL)
    features_BD, chunks_BHA = torch.rand(4, 2), torch.rand(4, 3, 2).sign()
    attempts = attempts_of(features_BD, chunks_BHA, torch.zeros(4, 3), torch.tensor([0.1, 0.5, 0.2, 0.9]), 2)
    attempts = replace(attempts, played_BH=torch.tensor([[True, True, False]]).expand(4, 3))
    advantages_B, _ = learner._advantages(attempts)
    other_BHA = chunks_BHA.clone()
    other_BHA[:, 2] = 0.3
    same, moved = (learner.loss(replace(attempts, chunks_BHA=each), advantages_B) for each in (chunks_BHA, other_BHA))
    assert float(same.detach()) == float(moved.detach())
    everything = replace(attempts, played_BH=torch.ones(4, 3, dtype=torch.bool), chunks_BHA=other_BHA)
    assert float(learner.loss(everything, advantages_B).detach()) != float(same.detach())


def test_a_chunk_is_one_step_of_discount_to_the_power_of_the_horizon() -> None:
    """With a value of zero and lambda 1, the first advantage is the return: 0.9 ** 6 after 3 + 3 + 1 steps."""
    torch.manual_seed(0)
    problem = replace(BANDIT, horizon=3)
    learner = PolicyGradient(problem=problem, advantage="gae", smoothing=1.0, **SMALL)
    for weight in learner.value.parameters():
        weight.data.zero_()
    one = attempts_of(torch.rand(4, 1), torch.zeros(4, 3, 1), torch.zeros(4, 3), torch.ones(4), 4)
    attempts = replace(
        one,
        attempt_B=torch.tensor([0, 0, 0, 1]),
        turn_B=torch.tensor([0, 1, 2, 0]),
        played_BH=torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool(),
        **{"return_E": torch.tensor([0.9**6, 0.0]), "success_E": torch.tensor([True, False])},
        group_E=torch.zeros(2, dtype=torch.int64),
        steps_E=torch.tensor([7, 3]),
    )
    torch.testing.assert_close(chunk_rewards(attempts, 0.9), torch.tensor([0.0, 0.0, 1.0, 0.0]))
    advantages_B, targets_B = learner._generalised(attempts)
    torch.testing.assert_close(advantages_B, torch.tensor([0.9**6, 0.9**3, 1.0, 0.0]))
    torch.testing.assert_close(targets_B, advantages_B)
    learner.chunk_discount = 0.9  # the bug: a chunk discounted as one step
    assert float(learner._generalised(attempts)[0][0]) == pytest.approx(0.9**2)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("actor", ["laplace", "tokens"])
@pytest.mark.parametrize("advantage", ["group", "leave_one_out", "gae"])
def test_it_finds_the_best_action(advantage: str, actor: str, seed: int) -> None:
    torch.manual_seed(seed)
    learner = PolicyGradient(problem=BANDIT, actor=actor, advantage=advantage, **SMALL)  # pyright: ignore[reportArgumentType]
    control, before = deepcopy(learner), chance_of(learner)
    for number in range(50):
        learner.learn_from(bandit_round(learner, number))
        control.learn_from(bandit_round(control, number, shuffled=True))
    gain, without = chance_of(learner) - before, chance_of(control) - before
    assert gain > 0.15 * (1 - before)
    assert without < 0.5 * gain, "returns that belong to other actions teach nothing"


def test_names_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'leave_one_out'"):
        PolicyGradient(problem=BANDIT, advantage="leave_one")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="laplace, tokens"):
        PolicyGradient(problem=BANDIT, actor="l1")
