"""Handing out rows: each is finished once or given up by name, whoever dies and whenever."""

import random

import pytest

from vla.core.errors import GrasplineError
from vla.rollout.runner import EpisodePlan, EpisodeResult
from vla.rollout.shards import MAX_DEATHS_IN_A_ROW, Shards

PLAN = [EpisodePlan(task, state, 7 * state) for task in ("push", "pull") for state in range(40)]


def result_of(row: EpisodePlan) -> EpisodeResult:
    return EpisodeResult(
        task=row.task, init_state=row.init_state, seed=row.seed, success=True, steps=1, terminated=True,
        truncated=False, error=None, wall_s=1.0, physics_s=0.0, render_s=0.0, policy_s=0.0,
    )  # fmt: skip


def test_shards_are_neighbours_and_shrink_to_one() -> None:
    shards, sizes, order = Shards(PLAN, players=2, largest=8), [], []
    while shards.left:
        for player in range(2):
            shard = shards.take(player)
            sizes.append(len(shard))
            order += shard
            for row in shard:
                shards.finish(player, result_of(row))
    assert order == PLAN
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 8
    assert [size for size in sizes if size][-3:] == [1, 1, 1], "at the end nobody waits for another's long shard"


def test_a_dead_players_rows_are_played_again_alone_and_finished_ones_are_not() -> None:
    shards = Shards(PLAN, players=2, largest=4)
    shard = shards.take(0)
    assert shard == PLAN[:4] and shards.holds(0) and shards.left == 80
    shards.finish(0, result_of(shard[1]))
    assert shards.lose(0, "SIGKILL") == [] and shards.left == 79 and not shards.holds(0)
    assert [shards.take(player) for player in range(4)] == [[shard[0]], [shard[2]], [shard[3]], PLAN[4:8]]


def test_the_row_that_kills_is_given_up_by_name() -> None:
    """Whatever kills, in whatever order players come: killers become errors, all the others are finished once."""
    killers = {PLAN[3], PLAN[4], PLAN[50], PLAN[79]}
    for seed in range(20):
        rng, shards = random.Random(seed), Shards(PLAN, players=3, largest=6)
        finished: list[EpisodeResult] = []
        while shards.left:
            player = rng.randrange(3)
            for row in rng.sample(shard := shards.take(player), len(shard)):
                if row in killers:
                    finished += shards.lose(player, "SIGKILL")
                    break
                shards.finish(player, result_of(row))
                finished.append(result_of(row))
        outcomes = {EpisodePlan(each.task, each.init_state, each.seed): each.error for each in finished}
        assert len(finished) == len(PLAN) and outcomes.keys() == set(PLAN)
        assert {row for row, error in outcomes.items() if error} == killers
        assert outcomes[PLAN[50]] == "task 'pull', init state 10: SIGKILL, as all 3 times"


def test_when_everything_dies_it_is_given_up() -> None:
    shards = Shards(PLAN, players=2, largest=1)
    for _ in range(MAX_DEATHS_IN_A_ROW * 3):
        shards.take(0)
        shards.lose(0, "SIGKILL")
    with pytest.raises(GrasplineError, match="no episode finished: SIGKILL; giving up"):
        shards.lose(0, "SIGKILL")


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="players 0"):
        Shards(PLAN, players=0, largest=4)
    shards = Shards(PLAN, players=1, largest=4)
    shards.take(0)
    with pytest.raises(ValueError, match="still holds"):
        shards.take(0)
    with pytest.raises(ValueError):
        shards.finish(0, result_of(PLAN[60]))
