"""Groups of attempts: every number is that of what was really played, and of the law that drew it."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from sim.slow_reach import SLOW_REACH, SlowReachEnv
from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.tokens import TokenActor
from vla.rl.actors.trunk import as_played
from vla.rl.features import StateFeatures
from vla.rl.gather import Row, physical
from vla.rl.on_policy import Attempts, DensityActor, by_attempt, informative_groups, play_group
from vla.rl.player import problem_of
from vla.rl.presets import make_actor

FEATURES = StateFeatures(spec=SLOW_REACH, instructions=["move to the goal and stay there"])
PROBLEM = problem_of(FEATURES, horizon=3, discount=0.9, tasks=1)
ROW = Row(task="reach", init_state=60, seed=4)


def actor_of(name: str) -> DensityActor:
    torch.manual_seed(0)
    actor = make_actor(name, PROBLEM, width=16, layers=1)
    assert isinstance(actor, LaplaceActor | TokenActor)
    return actor


def group(name: str = "laplace", attempts: int = 4, seed: int = 0, *, branch: bool = False) -> Attempts:
    env = SlowReachEnv(horizon=14)
    return play_group(env, ROW, FEATURES, actor_of(name), attempts=attempts, discount=0.9, seed=seed, branch=branch)


@pytest.mark.parametrize("name", ["laplace", "tokens"])
def test_what_is_stored_is_what_was_drawn_and_played(name: str) -> None:
    found, actor, env = group(name), actor_of(name), SlowReachEnv(horizon=14)
    assert len(found) == 4 and found.steps_E.tolist() == [14] * 4 and found.played_BH.sum() == 4 * 14
    torch.testing.assert_close(actor.log_prob_BH(found.features_BD, found.chunks_BHA), found.logp_BH)
    env.reset(ROW.task, ROW.init_state, ROW.seed)
    for row in torch.nonzero(found.attempt_B == 0)[:, 0].tolist():  # by hand, with the env alone
        np.testing.assert_array_equal(FEATURES(env.observe(())), found.features_BD[row])
        chunk_HA = as_played(found.chunks_BHA[row], actor.binary_A).numpy()
        for action_A in physical(chunk_HA, FEATURES)[: int(found.played_BH[row].sum())]:
            env.step(action_A)
    assert by_attempt(found, torch.ones(len(found.turn_B))).tolist() == [[1.0] * 5] * 4


def test_an_attempt_is_a_function_of_row_seed_and_number() -> None:
    one, more, other = group(attempts=2), group(attempts=3), group(attempts=2, seed=1)
    kept_B = more.attempt_B < 2
    torch.testing.assert_close(more.chunks_BHA[kept_B], one.chunks_BHA, rtol=0, atol=0)
    assert not torch.equal(other.chunks_BHA, one.chunks_BHA)
    assert not torch.equal(one.chunks_BHA[one.attempt_B == 0], one.chunks_BHA[one.attempt_B == 1])


def test_branches_differ_by_one_chunk_from_the_same_place() -> None:
    found = group(attempts=5, branch=True)
    assert found.attempt_B.tolist() == [0, 1, 2, 3, 4] and found.turn_B.tolist() == [0] * 5
    assert (found.features_BD == found.features_BD[0]).all() and found.chunks_BHA.unique(dim=0).shape[0] == 5
    starts = {tuple(group(attempts=1, seed=seed, branch=True).features_BD[0].tolist()) for seed in range(6)}
    assert len(starts) > 1, "the place is drawn"


def test_returns_are_discounted_steps() -> None:
    """Of an actor that does reach the goal; and joined groups keep their chunks."""
    rows = [Row(task="reach", init_state=state, seed=0) for state in range(60, 66)]
    env, actor = SlowReachEnv(), _seeker()
    found = [play_group(env, row, FEATURES, actor, attempts=3, discount=0.9, seed=0) for row in rows]
    joined = Attempts.join(found)
    assert joined.success_E.any() and joined.group_E.tolist() == [number for number in range(6) for _ in range(3)]
    won_E = joined.success_E
    torch.testing.assert_close(joined.return_E[won_E], 0.9 ** (joined.steps_E[won_E] - 1).float())
    assert (joined.return_E[~won_E] == 0).all()
    first_D = found[2].features_BD[0]
    torch.testing.assert_close(joined.features_BD[joined.group_E[joined.attempt_B] == 2][0], first_D)


def test_groups_that_all_end_alike_are_drawn_again() -> None:
    def play(row: Row) -> Attempts:
        one = group(attempts=2)
        returns = [0.5, 0.7] if row.init_state % 3 == 0 else [0.0, 0.0]
        values = {each.name: getattr(one, each.name) for each in fields(one)}
        return Attempts(**{**values, "return_E": torch.tensor(returns)})

    rows = [Row(task="reach", init_state=number, seed=0) for number in range(1, 20)]
    found, played = informative_groups(play, rows, wanted=2, limit=10)
    assert found is not None and len(found) == 4 and played == 6
    found, played = informative_groups(play, rows, wanted=5, limit=4)
    assert found is not None and len(found) == 2 and played == 4, "fewer than wanted are taken"
    assert informative_groups(play, rows[:2], wanted=1, limit=5) == (None, 2)


def _seeker() -> DensityActor:
    """A Laplace actor without hidden layers, whose mean leads to the goal (features 2 and 3 are what is left)."""
    actor = make_actor("laplace", PROBLEM, width=1, layers=0)
    assert isinstance(actor, LaplaceActor | TokenActor)
    last = actor.net[-1]
    assert isinstance(last, nn.Linear)
    last.weight.data.zero_()
    last.bias.data[0::2] = 0
    for output in range(0, 12, 2):  # mu and log b alternate
        last.weight.data[output, 2 + output // 2 % 2] = 6.0
    return actor.requires_grad_(False)
