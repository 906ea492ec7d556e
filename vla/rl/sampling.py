"""Chunks cut from a replay, and which of them come when.

Special here: tails are kept, every executed step starts a chunk; actions past an early end are padded without a look at
the outcome, because repeating the last action tells a critic how the chunk ended; the clock's schedule, not the
episode's real length, says which prefixes count; and a batch is a function of (seed, step), so that a run resumes at
the sample where it stopped. With any of the three left out, tests/vla/rl/test_golden_mdps.py measures the bias.
Letters as in interfaces.py; N step of the replay, G = H + 1.
"""

from collections.abc import Iterator
from itertools import count
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vla.core.errors import unknown_name
from vla.core.types import Float
from vla.data.mixture import WeightedOrder
from vla.rl.interfaces import ChunkBatch
from vla.rl.replay import Bools, Ints, Replay

type Padding = Literal["predicted", "random"]


class Sampler:
    """Endless batches of chunks."""

    def __init__(
        self,
        replay: Replay,
        *,
        batch_size: int,
        horizon: int,
        version: str,
        discount: float,
        seed: int,
        weights_N: NDArray | None = None,
        padding: Padding = "predicted",
        one_look: bool = False,
    ) -> None:
        """As `chunks`.

        Args:
            replay: with returns of `version` at this discount.
            batch_size: B.
            horizon: H.
            version: of the rewards.
            discount: per step.
            seed: of the order and of the padding.
            weights_N: (N,) how often each step is drawn as a start, relative to the others; equally when None. Here
                belong shares of demonstrations (vla.data.mixture.mix) and `success_weights`.
            padding: see `chunks`.
            one_look: see `chunks`.
        """
        weights_N = np.ones(len(replay)) if weights_N is None else np.asarray(weights_N)
        if weights_N.shape != (len(replay),):
            raise ValueError(f"weights_N has shape {weights_N.shape}, expected ({len(replay)},), one for each step")
        self._order = WeightedOrder(np.where(replay.executed_N, weights_N, 0), seed)
        self._replay, self._batch_size, self._seed = replay, batch_size, seed
        self._horizon, self._version, self._discount = horizon, version, discount
        self._padding: Padding = padding
        self._one_look = one_look
        self.batch(0)  # what does not fit is said now, not at the first step of a run

    def batch(self, step: int) -> ChunkBatch:
        """The chunks of one step: the same whenever and however often they are asked for."""
        return chunks(
            self._replay,
            self._order.rows(step, self._batch_size),
            horizon=self._horizon,
            version=self._version,
            discount=self._discount,
            rng=np.random.default_rng([self._seed, step, 1]),
            padding=self._padding,
            one_look=self._one_look,
        )

    def batches(self, start_step: int = 0) -> Iterator[ChunkBatch]:
        """Batches from `start_step` on, without end."""
        return (self.batch(step) for step in count(start_step))


def success_weights(replay: Replay, *, last: int, factor: float) -> NDArray[np.float64]:
    """(N,) drawing weights: `factor` for the last steps of episodes that succeeded, else 1.

    It shows success more often without changing what it is worth, as copies of the last frames would.
    """
    left_N = replay.end_E[replay.episode_N] - np.arange(len(replay))
    return np.where(replay.success_E[replay.episode_N] & (left_N <= last), factor, 1.0)


def chunks(
    replay: Replay,
    starts_B: Ints,
    *,
    horizon: int,
    version: str,
    discount: float,
    rng: np.random.Generator,
    padding: Padding = "predicted",
    one_look: bool = False,
) -> ChunkBatch:
    """The chunks that start at these steps.

    Args:
        replay: with returns of `version` at this discount: see `Replay.with_returns`.
        starts_B: (B,) indices of executed steps.
        horizon: H >= 1.
        version: of the rewards.
        discount: per step.
        rng: draws the padding.
        padding: of actions after the last valid step. "predicted": what the policy had planned, as far as recorded,
            then random. "random": a stretch of actions from a random place of the replay, which keeps binary axes
            binary; a critic sees no bias where behaviour does not depend on the state, and little elsewhere.
        one_look: chunks end where the player looked again, so that each was really played blind. Otherwise the value of
            a chunk recorded by a player who looks is too high for one who does not.

    Raises:
        UnknownNameError: no such version of the rewards.
        ValueError: returns at this discount are not stored; a start that was not executed; with `one_look`, a horizon
            longer than anything that was played at one look.
    """
    if padding not in ("predicted", "random"):
        raise unknown_name("padding", padding, ("predicted", "random"))
    reward_N, return_N = replay.reward(version), _stored_returns(replay, version, discount)
    starts_B, look_B = _check_starts(replay, np.asarray(starts_B, np.int64), horizon, one_look)
    episode_B = replay.episode_N[starts_B]
    stop_B, end_B = np.minimum(replay.stop_N[starts_B], look_B), replay.end_E[episode_B]
    length_B = np.minimum(horizon, stop_B - starts_B)
    ended_B = starts_B + length_B == end_B
    steps_H = np.arange(horizon)
    valid_BH = steps_H < length_B[:, None]
    taken_BH = np.minimum(starts_B[:, None] + steps_H, stop_B[:, None] - 1)
    scheduled_B = np.minimum(
        replay.clock_limit_E[episode_B] - (starts_B - replay.begin_E[episode_B]), look_B - starts_B
    )
    gap_B = replay.stop_N[starts_B] < end_B
    scheduled_B = np.where(gap_B, np.minimum(scheduled_B, stop_B - starts_B), scheduled_B)
    padded_BHA = _padding(replay, starts_B + length_B - 1, valid_BH, padding, rng)
    arrays = {
        "features_BGD": _features(replay, starts_B, length_B, horizon),
        "actions_BHA": np.where(valid_BH[..., None], replay.actions_NA[taken_BH], padded_BHA),
        "valid_BH": valid_BH,
        "rows_BH": steps_H < scheduled_B[:, None],
        "rewards_BH": np.where(valid_BH, reward_N[taken_BH], np.float32(0)),
        "terminated_B": ended_B & replay.terminated_E[episode_B],
        "known_B": ~ended_B | replay.final_known_E[episode_B],
        "return_mc_B": return_N[starts_B],
        "success_B": replay.success_E[episode_B],
        "demo_B": replay.demo_N[starts_B],
        "task_B": replay.task_E[episode_B],
    }
    return ChunkBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _stored_returns(replay: Replay, version: str, discount: float) -> Float:
    if version not in replay.returns:
        raise ValueError(f"no returns of rewards '{version}': call with_returns('{version}', {discount}) first")
    stored = replay.returns[version]
    if stored.discount != discount:
        raise ValueError(f"discount is {discount}, but the returns of '{version}' were made at {stored.discount}")
    return stored.return_N


def _check_starts(replay: Replay, starts_B: Ints, horizon: int, one_look: bool) -> tuple[Ints, Ints]:
    """The starts, and for each where the player looked again (the end of the replay where that does not matter)."""
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}, expected at least 1")
    if starts_B.size and (starts_B.min() < 0 or starts_B.max() >= len(replay)):
        raise ValueError(f"starts must lie in 0..{len(replay) - 1}")
    if not replay.executed_N[starts_B].all():
        raise ValueError("starts: a step that was not executed; draw from Replay.starts")
    if not one_look:
        return starts_B, np.full_like(starts_B, len(replay) + horizon)
    if replay.open_loop_N is None:
        raise ValueError("one_look: this replay has no open_loop_N, so nobody knows when its player looked")
    if horizon > replay.open_loop_N.max():
        raise ValueError(
            f"horizon is {horizon}, but at most {replay.open_loop_N.max()} steps were played at one look: shorten the "
            "horizon, or accept values that are too high with one_look=False"
        )
    return starts_B, starts_B + replay.open_loop_N[starts_B]


def _features(replay: Replay, starts_B: Ints, length_B: Ints, horizon: int) -> Float:
    """(B, G, D): the observations before and after each step; the last one that was recorded is repeated."""
    episode_B = replay.episode_N[starts_B]
    at_BG = starts_B[:, None] + np.minimum(np.arange(horizon + 1), length_B[:, None])
    past_BG = at_BG == replay.end_E[episode_B][:, None]
    features_BGD = replay.features_ND[at_BG - past_BG]
    row, column = np.nonzero(past_BG & replay.final_known_E[episode_B][:, None])
    features_BGD[row, column] = replay.final_features_ED[episode_B[row]]
    return features_BGD


def _padding(replay: Replay, last_B: Ints, valid_BH: Bools, padding: Padding, rng: np.random.Generator) -> Float:
    """(B, H, A): what stands in each place where no action was executed."""
    horizon = valid_BH.shape[1]
    places_BH = rng.integers(0, len(replay.starts), len(last_B))[:, None] + np.arange(horizon)
    padded_BHA = replay.actions_NA[replay.starts[places_BH % len(replay.starts)]]
    if padding == "random" or replay.predicted_NPA is None or replay.predicted_N is None:
        return padded_BHA
    ahead_BH = np.arange(horizon) - valid_BH.sum(axis=1, keepdims=True) + 1  # of the last executed step
    planned_BH = (ahead_BH >= 1) & (ahead_BH < replay.predicted_N[last_B][:, None])
    row, column = np.nonzero(planned_BH)
    padded_BHA[row, column] = replay.predicted_NPA[last_B[row], ahead_BH[row, column]]
    return padded_BHA
