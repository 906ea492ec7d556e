"""Preferences and best-of-K: pairs and the kept attempts by hand, the logit in closed form, and learning."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.vla.rl.bandit import BANDIT, SMALL, attempts_of, bandit_round, chance_of
from vla.rl.actors.laplace import LaplaceActor
from vla.rl.algorithms.preference import Pairs, Preference, pairs_of
from vla.rl.algorithms.raft import RAFT, best_of_group
from vla.rl.on_policy import Attempts
from vla.rl.problem import Problem

PROBLEM = Problem(features=2, horizon=3, binary=(False, False), discount=0.9, low=0.0, high=1.0)


def graded(returns: list[float], group: int) -> Attempts:
    count = len(returns)
    one = attempts_of(
        torch.rand(count, 2), torch.rand(count, 3, 2), torch.zeros(count, 3), torch.tensor(returns), group
    )
    return replace(one, success_E=torch.tensor(returns) > 0)


def test_the_best_is_paired_with_the_worst() -> None:
    pairs = pairs_of(graded([0.2, 0.9, 0.0, 0.5, 0.3, 0.3, 0.3, 0.3, 0.0, 0.4, 0.0, 0.0], 4))
    assert list(zip(pairs.chosen_P.tolist(), pairs.rejected_P.tolist(), strict=True)) == [(1, 2), (3, 0), (9, 11)]
    assert not len(pairs_of(graded([0.4, 0.4], 2)).chosen_P)


def test_the_logit_is_the_difference_of_absolute_errors_over_b() -> None:
    torch.manual_seed(0)
    learner = Preference(problem=PROBLEM, **SMALL)
    last = learner.actor.net[-1]
    assert isinstance(last, nn.Linear)
    last.weight.data[1::2] = 0  # one b for all
    reference = deepcopy(learner.actor)
    last.bias.data[0::2] += 0.3
    attempts = graded([0.9, 0.1], 2)
    attempts = replace(
        attempts,
        features_BD=attempts.features_BD[:1].expand(2, 2),
        played_BH=torch.tensor([[True, True, False], [True, True, True]]),
        logp_BH=reference.log_prob_BH(attempts.features_BD[:1].expand(2, 2), attempts.chunks_BHA).detach(),
    )
    [margin] = learner.margins(attempts, pairs_of(attempts)).tolist()
    assert isinstance(learner.actor, LaplaceActor)
    scale = float(learner.actor.law(attempts.features_BD)[1].detach().exp()[0, 0, 0])
    means = [each.mean(attempts.features_BD) for each in (learner.actor, reference)]
    (chosen, rejected), (ref_chosen, ref_rejected) = (
        [((attempts.chunks_BHA - mean).abs().sum(-1) * attempts.played_BH)[row].sum() for row in (0, 1)]
        for mean in means
    )
    expected = ((rejected - ref_rejected) - (chosen - ref_chosen)) / scale
    assert margin == pytest.approx(float(expected), rel=1e-4) and abs(margin) > 0.1
    everything = replace(attempts, played_BH=torch.ones(2, 3, dtype=torch.bool))
    assert float(learner.margins(everything, pairs_of(attempts))) != pytest.approx(margin, rel=1e-3), "the mask counts"


def test_one_round_prefers_what_was_chosen() -> None:
    torch.manual_seed(0)
    learner = Preference(problem=PROBLEM, **SMALL)
    attempts = graded([0.2, 0.9, 0.0, 0.5], 4)
    with torch.no_grad():
        logp_BH = learner.actor.log_prob_BH(attempts.features_BD, attempts.chunks_BHA)
    attempts = replace(attempts, logp_BH=logp_BH)
    told = learner.learn_from(attempts)
    pairs = pairs_of(attempts)
    assert told["pairs"] == 2 and (learner.margins(attempts, pairs) > 0).all()
    swapped = Pairs(chosen_P=pairs.rejected_P, rejected_P=pairs.chosen_P)
    assert (learner.margins(attempts, swapped) < 0).all()
    assert learner.learn_from(graded([0.4, 0.4], 2)) == {"pairs": 0.0}


def test_only_the_best_success_of_a_group_that_differs_is_kept() -> None:
    kept = best_of_group(graded([0.2, 0.9, 0.0, 0.0, 0.3, 0.3, 0.0, 0.0], 2))
    assert kept.tolist() == [False, True, False, False, False, False, False, False]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [Preference, RAFT])
def test_it_finds_the_best_action(kind: type, seed: int) -> None:
    torch.manual_seed(seed)
    learner = kind(problem=BANDIT, **SMALL)
    control, before = deepcopy(learner), chance_of(learner)
    for number in range(50):
        learner.learn_from(bandit_round(learner, number, graded=True))
        control.learn_from(bandit_round(control, number, graded=True, shuffled=True))
    gain, without = chance_of(learner) - before, chance_of(control) - before
    assert gain > 0.15 * (1 - before)
    assert without < 0.5 * gain, "returns that belong to other actions teach nothing"
