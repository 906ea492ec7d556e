"""Chunk values of small MDPs against exact numbers, and the bugs that these numbers must catch."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vla.rl.chains import (
    DETERMINISTIC,
    DISCOUNT,
    Attempt,
    all_chunks,
    best,
    bootstrap_discounted_once,
    codes_of,
    distinct,
    fit_table,
    matching,
    random_walks,
    replay_of,
    states_of,
    undiscounted_inside,
)
from vla.rl.interfaces import ChunkBatch
from vla.rl.sampling import chunks
from vla.rl.targets import batch_targets

SLIPPERY = [0.4362, 0.4968, 0.5810, 0.6827, 0.8029, 0.9445]


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_t1_deterministic_chain(horizon: int) -> None:
    batch, chance_B = all_chunks(horizon)
    np.testing.assert_allclose(best(fit_table(batch, chance_B, batch_targets)[-1]), DETERMINISTIC, atol=1e-6)


@pytest.mark.parametrize(
    ("horizon", "bug", "values"),
    [
        (2, undiscounted_inside, [0.81, 0.81, 0.9, 0.9, 1, 1]),
        (3, undiscounted_inside, [0.9, 0.9, 0.9, 1, 1, 1]),
        (2, bootstrap_discounted_once, [0.729, 0.81, 0.81, 0.9, 0.9, 1]),
        (3, bootstrap_discounted_once, [0.81, 0.81, 0.9, 0.81, 0.9, 1]),
    ],
)
def test_t1_bugs_give_exactly_their_numbers(horizon: int, bug: Callable, values: list[float]) -> None:
    batch, chance_B = all_chunks(horizon)
    wrong = best(fit_table(batch, chance_B, bug)[-1])
    np.testing.assert_allclose(wrong, values, atol=1e-6)
    assert np.abs(np.array(wrong) - DETERMINISTIC).max() > 0.05


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_t2_slippery_chain(horizon: int) -> None:
    """Every outcome with its probability, so nothing is sampled."""
    batch, chance_B = all_chunks(horizon, slip=0.2)
    tables = fit_table(batch, chance_B, batch_targets)
    np.testing.assert_allclose(best(tables[-1]), SLIPPERY, atol=5e-5)
    if horizon == 3:
        assert tables[-1][4, 0b101] == pytest.approx(0.6616, abs=5e-5)
        assert tables[-1][3, 0b011] == pytest.approx(0.5628, abs=5e-5)


def test_t3_values_do_not_depend_on_what_was_planned_after_the_end() -> None:
    batch, chance_B = all_chunks(3)
    table = fit_table(batch, chance_B, batch_targets)[-1]
    assert table[4, 0b110] == table[4, 0b111] == pytest.approx(0.9, abs=1e-6)
    torch.testing.assert_close(table[5, 0b100:], torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_t3_edge_padding_never_teaches_that() -> None:
    batch, chance_B = all_chunks(3)
    table = fit_table(edge_padded(batch), chance_B, batch_targets)[-1]
    assert table[4, 0b111] == pytest.approx(0.9, abs=1e-6)
    assert table[4, 0b110].isnan()  # no chunk is left that could say so: a table that starts at 0 stays there


def test_t3b_truncation_bootstraps() -> None:
    replay = replay_of([Attempt(states=[4, 5], actions=[1], rewards=[0.0], terminated=False)])
    batch = chunks(replay, np.array([0]), horizon=3, version="env", discount=0.9, rng=np.random.default_rng(0))
    targets_BH, usable_BH = batch_targets(batch, torch.ones(1, 3), DISCOUNT)  # V(5) = 1
    assert usable_BH.tolist() == [[True, False, False]]
    assert targets_BH[0, 0] == pytest.approx(0.9)
    ended_BH, _ = batch_targets(replace(batch, terminated_B=torch.tensor([True])), torch.ones(1, 3), DISCOUNT)
    assert ended_BH[0, 0] == 0  # the bug: a time limit taken for an end


def test_t4_a_chunk_recorded_by_one_who_looks_is_valued_too_high() -> None:
    """And `one_look` says so instead of learning it."""
    truth = {1: DISCOUNT, 2: DISCOUNT / 2}  # of an expert who looks after each action; of two actions played blind

    def value(look: int, horizon: int, one_look: bool = True) -> float:
        replay, rng = matching(look), np.random.default_rng(0)
        batch = chunks(
            replay, replay.starts, horizon=horizon, version="env", discount=DISCOUNT, rng=rng, one_look=one_look
        )
        rows, counts = distinct(batch)
        return best(fit_table(rows, counts, batch_targets, states=3, sweeps=10)[-1])[0]

    assert value(look=1, horizon=1) == pytest.approx(truth[1])
    assert value(look=2, horizon=2) == pytest.approx(truth[2], abs=0.05)
    with pytest.raises(ValueError, match="at most 1 steps were played at one look"):
        value(look=1, horizon=2)
    assert value(look=1, horizon=2, one_look=False) == pytest.approx(2 * truth[2])


def test_t5_prefix_values_are_the_best_over_what_follows() -> None:
    batch, chance_B = all_chunks(3)
    tables = fit_table(batch, chance_B, batch_targets)
    for shorter, longer in pairwise(tables):
        torch.testing.assert_close(shorter, longer.view(6, -1, 2).amax(dim=2), atol=1e-6, rtol=0)


def test_t6_returns_of_a_success_at_the_tenth_step() -> None:
    def returns(extra: int) -> np.ndarray:
        steps = 10 + extra
        rewards = [0.0] * 9 + [1.0] * (extra + 1)
        attempt = Attempt(states=list(range(steps + 1)), actions=[1] * steps, rewards=rewards, terminated=True)
        return replay_of([attempt]).returns["env"].return_N

    np.testing.assert_allclose(returns(0)[[0, 4, 9]], [0.3874, 0.5905, 1.0], atol=5e-5)
    assert returns(5)[0] == pytest.approx(1.8153, abs=5e-5)  # five more frames of success: not the same task any more


def edge_padded(batch: ChunkBatch) -> ChunkBatch:
    last_B = batch.length_B - 1
    edge_BHA = batch.actions_BHA[torch.arange(len(batch)), last_B][:, None].expand_as(batch.actions_BHA)
    return replace(batch, actions_BHA=torch.where(batch.valid_BH[..., None], batch.actions_BHA, edge_BHA))


def survivors_only(batch: ChunkBatch, bootstrap_BH: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    targets_BH, usable_BH = batch_targets(batch, bootstrap_BH, discount)
    return targets_BH, usable_BH & batch.valid_BH


def whatever_the_clock_says(batch: ChunkBatch, bootstrap_BH: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    return batch_targets(replace(batch, rows_BH=torch.ones_like(batch.rows_BH)), bootstrap_BH, discount)


@pytest.fixture(scope="module")
def walks() -> ChunkBatch:
    """Horizon 3, slip 0.2, random behaviour, clock at 12: all chunks of 100 thousand episodes."""
    replay = random_walks(100_000, slip=0.2, clock=12, seed=0)
    rng = np.random.default_rng(0)
    return chunks(replay, replay.starts, horizon=3, version="env", discount=DISCOUNT, rng=rng)


def value_of_5(batch: ChunkBatch, targets: Callable = batch_targets) -> float:
    rows, counts = distinct(batch)
    return best(fit_table(rows, counts, targets)[-1])[5]


def test_t8_independent_padding_and_the_schedule_give_the_exact_value(walks: ChunkBatch) -> None:
    assert value_of_5(walks) == pytest.approx(0.9445, abs=0.003)


def test_t8_repeating_the_last_action_overestimates(walks: ChunkBatch) -> None:
    assert value_of_5(edge_padded(walks)) >= 0.98


def test_t8_dropping_chunks_that_end_early_underestimates(walks: ChunkBatch) -> None:
    assert value_of_5(walks, survivors_only) <= 0.70


def test_t8_the_realised_length_instead_of_the_schedule_overestimates(walks: ChunkBatch) -> None:
    assert value_of_5(walks, whatever_the_clock_says) > 0.9445 + 0.003


def test_the_table_knows_its_states(walks: ChunkBatch) -> None:
    """The helper itself: what it reads off a batch is what the batch holds."""
    rows, counts = distinct(walks)
    assert int(counts.sum()) == len(walks)
    assert int(states_of(rows)[:, 0].max()) == 5 and int(codes_of(rows)[:, -1].max()) == 7
