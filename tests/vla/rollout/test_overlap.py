"""Envs move while the policy computes: with two envs for each process, one of them is on its way at every call."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sim.fake import FAKE, FakeEnv
from sim.vector import EnvPool, Reply
from vla.core.types import ActionChunk, Observation
from vla.rollout.executor import RecedingHorizon
from vla.rollout.runner import EpisodePlan, EpisodeResult, run_episodes


class OneByOne:
    """A process with several envs, as the parent sees it: answers its commands one after the other, in their order."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.pools = [EnvPool(FakeEnv, num_slots=1, num_workers=0) for _ in range(num_slots)]
        self.queue: deque[int] = deque()

    def reset(self, slot: int, task: str, init_state: int, seed: int, cameras: Sequence[str]) -> None:
        self.queue.append(slot)
        self.pools[slot].reset(0, task, init_state, seed, cameras)

    def play(self, slot: int, actions_HA: np.ndarray, cameras: Sequence[str]) -> None:
        self.queue.append(slot)
        self.pools[slot].play(0, actions_HA, cameras)

    def call(self, slot: int, function: Callable[..., Any], *arguments: Any) -> None:
        raise NotImplementedError

    def wait(self) -> list[Reply]:
        slot = self.queue.popleft()
        [reply] = self.pools[slot].wait()
        return [Reply(slot=slot, steps=reply.steps, step=reply.step, observation=reply.observation)]


class Watching:
    """Notes how many envs are on their way whenever it is asked."""

    spec, cameras, horizon = FAKE, (), 8

    def __init__(self, pool: OneByOne) -> None:
        self.pool = pool
        self.on_their_way: list[int] = []

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self.on_their_way.append(len(self.pool.queue))
        return [FAKE.random_chunk(np.random.default_rng(seed), 8) for seed in seeds]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_other_envs_move_while_the_policy_computes(slots: int) -> None:
    pool, rows = OneByOne(slots), list[EpisodeResult]()
    policy = Watching(pool)
    run_episodes(
        pool, policy, [EpisodePlan("reach_red", state, 0) for state in range(9)], RecedingHorizon(8), rows.append
    )
    assert len(rows) == 9 and not any(row.error for row in rows)
    last = len(policy.on_their_way) - 9 * slots  # towards the end of the plan slots stay empty
    assert set(policy.on_their_way[:last]) == {slots - 1}
