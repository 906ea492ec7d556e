"""Small MDPs whose chunk values are known exactly, played into replays, and a table that is fitted to chunks.

Chain: states 0..5, goal 6 (reward 1, terminal), actions -1 and +1, a step left of 0 stays; with probability `slip` an
action is reversed. Matching: from 0 any action leads to 1 or 2, evenly; there one action pays 1, and the episode ends.
Features are the number of the state.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from vla.rl.interfaces import ChunkBatch
from vla.rl.replay import NO_CLOCK, Replay, Rewards
from vla.rl.sampling import chunks
from vla.rl.targets import usable_rows

GOAL = 6
DISCOUNT = 0.9
DETERMINISTIC = [0.59049, 0.6561, 0.729, 0.81, 0.9, 1.0]  # values of states 0..5 without slip
NEVER = 77.0  # value of a terminal state in the table: whoever uses it is found out

type Targets = Callable[[ChunkBatch, Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One episode: T + 1 states, T actions and rewards, how it ended, and what was planned at its start."""

    states: Sequence[int]
    actions: Sequence[int]
    rewards: Sequence[float]
    terminated: bool
    clock_limit: int | None = None  # None: its own length, or none where it terminated
    plan: Sequence[int] = ()
    look: int = 1  # steps played at one look
    final_known: bool = True


def replay_of(attempts: Sequence[Attempt], *, success: Sequence[bool] | None = None) -> Replay:
    """Episodes as a replay with rewards "env" and returns at DISCOUNT."""
    lengths = np.array([len(attempt.actions) for attempt in attempts])
    planned = max(len(attempt.plan) for attempt in attempts)
    predicted_NPA = np.zeros((lengths.sum(), planned, 1), np.float32)
    left_N, looks_N, row = np.zeros(lengths.sum(), np.int64), np.ones(lengths.sum(), np.int64), 0
    for attempt in attempts:
        for t in range(len(attempt.actions)):
            rest = attempt.plan[t:]
            predicted_NPA[row, : len(rest), 0], left_N[row] = rest, len(rest)
            looks_N[row] = attempt.look - t % attempt.look
            row += 1
    clock = [
        attempt.clock_limit or (NO_CLOCK if attempt.terminated else length)
        for attempt, length in zip(attempts, lengths, strict=True)
    ]
    terminated_E = np.array([attempt.terminated for attempt in attempts])
    rewards = [reward for attempt in attempts for reward in attempt.rewards]
    return Replay(
        features_ND=np.array([[s] for attempt in attempts for s in attempt.states[:-1]], np.float32),
        actions_NA=np.array([[a] for attempt in attempts for a in attempt.actions], np.float32),
        episode_N=np.repeat(np.arange(len(attempts)), lengths),
        executed_N=np.ones(lengths.sum(), bool),
        demo_N=np.ones(lengths.sum(), bool),
        rewards={"env": Rewards(reward_N=np.array(rewards, np.float32), provenance={"source": "chain"})},
        final_features_ED=np.array([[attempt.states[-1]] for attempt in attempts], np.float32),
        final_known_E=np.array([attempt.final_known for attempt in attempts]),
        terminated_E=terminated_E,
        truncated_E=~terminated_E,
        clock_limit_E=np.array(clock, np.int64),
        success_E=terminated_E if success is None else np.array(success),
        task_E=np.zeros(len(attempts), np.int64),
        tasks=("chain",),
        predicted_NPA=predicted_NPA if planned else None,
        predicted_N=left_N if planned else None,
        open_loop_N=looks_N,
    ).with_returns("env", DISCOUNT, "nothing")


def play(start: int, plan: Sequence[int], slipped: Sequence[bool]) -> Attempt:
    """The chain from `start` under a plan, until it is played out or the goal is reached."""
    states, rewards = [start], []
    for action, slip in zip(plan, slipped, strict=True):
        states.append(max(0, states[-1] + (-action if slip else action)))
        rewards.append(float(states[-1] == GOAL))
        if states[-1] == GOAL:
            break
    taken = len(rewards)
    return Attempt(
        states=states,
        actions=list(plan[:taken]),
        rewards=rewards,
        terminated=states[-1] == GOAL,
        plan=list(plan),
        look=len(plan),
    )


def all_chunks(horizon: int, slip: float = 0.0) -> tuple[ChunkBatch, Tensor]:
    """Every chunk from every state under every outcome, and the probability (B,) of that outcome."""
    patterns = list(itertools.product([False, True], repeat=horizon)) if slip else [(False,) * horizon]
    cases = list(itertools.product(range(GOAL), itertools.product([-1, 1], repeat=horizon), patterns))
    replay = replay_of([play(start, plan, slipped) for start, plan, slipped in cases])
    chance = np.array([np.prod(np.where(slipped, slip, 1 - slip)) for _, _, slipped in cases])
    rng = np.random.default_rng(0)
    batch = chunks(replay, replay.begin_E, horizon=horizon, version="env", discount=DISCOUNT, rng=rng)
    return batch, torch.from_numpy(chance)


def random_walks(episodes: int, *, slip: float, clock: int, seed: int) -> Replay:
    """Episodes from random states under actions that look at nothing, ended by the goal or by the clock."""
    rng = np.random.default_rng(seed)
    states_ET = np.zeros((episodes, clock + 1), np.int64)
    states_ET[:, 0] = rng.integers(0, GOAL, episodes)
    actions_ET = rng.choice([-1, 1], (episodes, clock))
    moves_ET = np.where(rng.random((episodes, clock)) < slip, -actions_ET, actions_ET)
    for t in range(clock):
        there = states_ET[:, t] == GOAL
        states_ET[:, t + 1] = np.where(there, GOAL, np.maximum(states_ET[:, t] + moves_ET[:, t], 0))
    played_ET = states_ET[:, :-1] != GOAL
    terminated_E = states_ET[:, -1] == GOAL
    nothing = np.zeros(episodes, np.int64)
    return Replay(
        features_ND=states_ET[:, :-1][played_ET][:, None].astype(np.float32),
        actions_NA=actions_ET[played_ET][:, None].astype(np.float32),
        episode_N=np.nonzero(played_ET)[0],
        executed_N=np.ones(played_ET.sum(), bool),
        demo_N=np.zeros(played_ET.sum(), bool),
        rewards={
            "env": Rewards(reward_N=(states_ET[:, 1:] == GOAL)[played_ET].astype(np.float32), provenance={"seed": seed})
        },
        final_features_ED=states_ET[:, -1:].astype(np.float32),
        final_known_E=np.ones(episodes, bool),
        terminated_E=terminated_E,
        truncated_E=~terminated_E,
        clock_limit_E=np.full(episodes, clock),
        success_E=terminated_E,
        task_E=nothing,
        tasks=("chain",),
    ).with_returns("env", DISCOUNT, "nothing")


def states_of(batch: ChunkBatch) -> Tensor:
    """(B, G) int64."""
    return batch.features_BGD[..., 0].long()


def codes_of(batch: ChunkBatch) -> Tensor:
    """(B, H) int64: each prefix as a binary number, + being 1."""
    bits_BH = (batch.actions_BHA[..., 0] > 0).long()
    codes, code = [], torch.zeros(len(bits_BH), dtype=torch.int64)
    for i in range(bits_BH.shape[1]):
        code = 2 * code + bits_BH[:, i]
        codes.append(code)
    return torch.stack(codes, dim=1)


def distinct(batch: ChunkBatch) -> tuple[ChunkBatch, Tensor]:
    """The different rows of a batch of a million, and how often each occurs."""
    parts = [states_of(batch), codes_of(batch), batch.valid_BH, batch.rows_BH, batch.terminated_B[:, None]]
    keys = torch.cat([part.long() for part in parts], dim=1).numpy()
    weights = np.concatenate([[1], np.cumprod(keys.max(axis=0) + 1)[:-1]])
    _, first, counts = np.unique(keys @ weights, return_index=True, return_counts=True)
    return rows_of(batch, torch.from_numpy(first)), torch.from_numpy(counts)


def rows_of(batch: ChunkBatch, index: Tensor) -> ChunkBatch:
    return ChunkBatch(**{field.name: getattr(batch, field.name)[index] for field in fields(batch)})


def fit_table(
    batch: ChunkBatch, weights_B: Tensor, targets: Targets, *, states: int = GOAL, sweeps: int = 200
) -> list[Tensor]:
    """Values of all prefixes by repeated exact regression: entry i - 1 is (states, 2^i), NaN where never seen."""
    now_BG, codes_BH = states_of(batch), codes_of(batch)
    horizon = codes_BH.shape[1]
    value_S = torch.zeros(states, dtype=torch.float64)
    tables: list[Tensor] = []
    for _ in range(sweeps):
        known_S = torch.cat([value_S, torch.full((int(now_BG.max()) + 1,), NEVER, dtype=torch.float64)])
        targets_BH, usable_BH = targets(batch, known_S[now_BG[:, 1:]], DISCOUNT)
        tables = []
        for i in range(horizon):
            cells, size = now_BG[:, 0] * 2 ** (i + 1) + codes_BH[:, i], states * 2 ** (i + 1)
            mass_B = weights_B.double() * usable_BH[:, i]
            learned = torch.where(usable_BH[:, i], targets_BH[:, i], 0.0)
            total = torch.bincount(cells, mass_B * learned, minlength=size)
            tables.append((total / torch.bincount(cells, mass_B, minlength=size)).view(states, -1))
        value_S = tables[-1].nan_to_num(nan=-torch.inf).amax(dim=1)
    return tables


def best(table: Tensor) -> list[float]:
    """Value of each state under its best chunk."""
    return table.nan_to_num(nan=-torch.inf).amax(dim=1).tolist()


def matching(look: int, seed: int = 0, episodes: int = 2000) -> Replay:
    """The matching MDP. look=1: an expert who looks, and so always matches; 2: pairs of actions played blind."""
    rng = np.random.default_rng(seed)
    attempts = []
    for _ in range(episodes):
        side, first = rng.integers(1, 3), int(rng.choice([-1, 1]))
        wanted = 1 if side == 2 else -1
        second = wanted if look == 1 else int(rng.choice([-1, 1]))
        attempts.append(
            Attempt(
                states=[0, int(side), 3],
                actions=[first, second],
                rewards=[0.0, float(second == wanted)],
                terminated=True,
                look=look,
            )
        )
    return replay_of(attempts)


def undiscounted_inside(batch: ChunkBatch, bootstrap_BH: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """The bug: rewards are summed and the bootstrap is discounted once, as if a chunk were one step."""
    return _discounted_once(batch, bootstrap_BH, discount, batch.rewards_BH)


def bootstrap_discounted_once(batch: ChunkBatch, bootstrap_BH: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """The bug: rewards are discounted inside the chunk, the bootstrap once."""
    powers_H = discount ** torch.arange(batch.rewards_BH.shape[1])
    return _discounted_once(batch, bootstrap_BH, discount, batch.rewards_BH * powers_H)


def _discounted_once(
    batch: ChunkBatch, bootstrap_BH: Tensor, discount: float, rewards_BH: Tensor
) -> tuple[Tensor, Tensor]:
    steps_H = torch.arange(1, rewards_BH.shape[1] + 1)
    ended_BH = batch.terminated_B[:, None] & (steps_H >= batch.length_B[:, None])
    targets_BH = rewards_BH.cumsum(dim=1) + torch.where(ended_BH, 0.0, discount * bootstrap_BH)
    return targets_BH, usable_rows(batch)
