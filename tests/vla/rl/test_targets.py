"""Targets against a loop over steps, and what each mask lets through."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vla.rl.chains import DISCOUNT, Attempt, replay_of
from vla.core.errors import UnknownNameError
from vla.rl.interfaces import ChunkBatch
from vla.rl.sampling import chunks
from vla.rl.targets import attainable, batch_targets, chunk_targets, usable_rows


def by_hand(rewards: list[float], length: int, ended: bool, bootstrap: list[float], discount: float) -> list[float]:
    targets = []
    for i in range(1, len(rewards) + 1):
        total = 0.0
        for j in range(min(i, length)):
            total += discount**j * rewards[j]
        if not (ended and i >= length):
            total += discount ** min(i, length) * bootstrap[i - 1]
        targets.append(total)
    return targets


@given(
    length=st.integers(1, 5),
    ended=st.booleans(),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 99),
)
def test_every_row_is_the_sum_it_should_be(length: int, ended: bool, discount: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, bootstrap = rng.standard_normal((2, 5))
    valid = np.arange(5) < length
    tensors = [torch.from_numpy(array) for array in (rewards[None], valid[None], np.array([ended]), bootstrap[None])]
    targets_BH, usable_BH = chunk_targets(tensors[0], tensors[1], tensors[2], tensors[3], discount)
    np.testing.assert_allclose(targets_BH[0], by_hand(list(rewards), length, ended, list(bootstrap), discount))
    assert usable_BH[0].tolist() == [ended or bool(step) for step in valid]


def test_nothing_is_read_where_nothing_follows() -> None:
    """A bootstrap of NaN behind a termination does not reach the target, as a product with zero would."""
    nan = torch.tensor([[0.5, torch.nan, torch.nan]])
    valid, ended = torch.tensor([[True, True, False]]), torch.tensor([True])
    targets_BH, _ = chunk_targets(torch.tensor([[0.0, 1.0, 0.0]]), valid, ended, nan, DISCOUNT)
    torch.testing.assert_close(targets_BH, torch.tensor([[0.45, 0.9, 0.9]]))


def batch_of(*attempts: Attempt, horizon: int = 4) -> ChunkBatch:
    replay = replay_of(attempts)
    return chunks(
        replay, replay.begin_E, horizon=horizon, version="env", discount=DISCOUNT, rng=np.random.default_rng(0)
    )


def walk(steps: int, **ending) -> Attempt:
    rewards = [0.0] * (steps - 1) + [1.0]
    return Attempt(states=list(range(steps + 1)), actions=[1] * steps, rewards=rewards, **ending)


def test_usable_rows_of_every_ending() -> None:
    batch = batch_of(
        walk(2, terminated=True),
        walk(2, terminated=True, clock_limit=3),
        walk(2, terminated=False),
        walk(2, terminated=False, final_known=False),
        walk(2, terminated=True, final_known=False),
        walk(6, terminated=False, final_known=False),
    )
    expected = [
        [True, True, True, True],
        [True, True, True, False],  # the clock would have cut it after three, so no chunk of four was ever possible
        [True, True, False, False],
        [True, False, False, False],  # the first bootstraps from what was recorded, the second cannot
        [True, True, True, True],  # nothing follows, so nothing is missing
        [True, True, True, True],
    ]
    assert usable_rows(batch).tolist() == expected


def test_shared_gives_every_prefix_the_longest_target() -> None:
    batch = batch_of(walk(6, terminated=False), walk(3, terminated=False), walk(2, terminated=True))
    bootstrap_BH = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(3, 4)
    targets_BH, usable_BH = batch_targets(batch, bootstrap_BH, DISCOUNT, prefix_bootstrap="shared")
    own_BH, _ = batch_targets(batch, bootstrap_BH, DISCOUNT)
    assert usable_BH.tolist() == [[True] * 4, [True, True, True, False], [True] * 4]
    torch.testing.assert_close(targets_BH[0], own_BH[0, 3].expand(4))
    torch.testing.assert_close(targets_BH[1], own_BH[1, 2].expand(4))
    torch.testing.assert_close(targets_BH[2], torch.full((4,), 0.9))


def test_shared_without_any_usable_row() -> None:
    batch = batch_of(walk(1, terminated=False, final_known=False))
    targets_BH, usable_BH = batch_targets(batch, torch.zeros(1, 4), DISCOUNT, prefix_bootstrap="shared")
    assert not usable_BH.any() and targets_BH.isfinite().all()


def test_an_unknown_bootstrap_is_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'shared'"):
        batch_targets(batch_of(walk(2, terminated=True)), torch.zeros(1, 4), DISCOUNT, prefix_bootstrap="share")  # pyright: ignore


def test_attainable_counts_what_it_clips_among_usable_rows() -> None:
    targets, usable = torch.tensor([[-0.5, 0.5, 1.5, 2.0]]), torch.tensor([[True, True, True, False]])
    clipped, count = attainable(targets, usable, low=0.0, high=1.0)
    assert clipped.tolist() == [[0.0, 0.5, 1.0, 1.0]] and count == 2


def test_with_the_horizon_of_the_episode_the_target_is_the_return() -> None:
    """Nothing is left to bootstrap, so any bootstrap will do."""
    replay = replay_of([walk(7, terminated=True)])
    batch = chunks(replay, replay.starts, horizon=7, version="env", discount=DISCOUNT, rng=np.random.default_rng(0))
    targets_BH, usable_BH = batch_targets(batch, torch.full((7, 7), 1e6), DISCOUNT)
    assert usable_BH[:, -1].all()
    torch.testing.assert_close(targets_BH[:, -1], batch.return_mc_B)


def test_with_true_values_every_target_is_the_return() -> None:
    """n-step equality: behaviour's own values as bootstrap give the same return at every prefix."""
    replay = replay_of([walk(7, terminated=True)])
    batch = chunks(replay, replay.starts, horizon=3, version="env", discount=DISCOUNT, rng=np.random.default_rng(0))
    value_S = torch.from_numpy(np.append(replay.returns["env"].return_N, 0.0)).float()
    targets_BH, usable_BH = batch_targets(batch, value_S[batch.features_BGD[:, 1:, 0].long()], DISCOUNT)
    assert usable_BH.all()
    torch.testing.assert_close(targets_BH, batch.return_mc_B[:, None].expand(-1, 3))
    ignored, _ = batch_targets(replace(batch, terminated_B=~batch.terminated_B), torch.ones(7, 3), DISCOUNT)
    assert (ignored - targets_BH).abs().max() > 0.1
