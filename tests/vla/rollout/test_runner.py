"""One row, one outcome: whatever the workers, the slots, the order of the plan and the neighbours' fate."""

from collections.abc import Sequence
from functools import cache, partial
from typing import ClassVar

import numpy as np
import pytest

from sim.experts import expert_for
from sim.fake import COLOURS, FAKE, FakeEnv, FaultyEnv
from sim.vector import EnvPool
from vla.core.types import ActionChunk, Observation
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.executor import Executor, RecedingHorizon, TemporalEnsemble
from vla.rollout.runner import EpisodePlan, EpisodeResult, act_seed, run_episode, run_episodes, run_in_workers

PLAN = [EpisodePlan(task, state, 100 * state + 7) for state in range(6) for task in FakeEnv().tasks]


class SightedPolicy:
    """Finds the target's colour in the picture and wanders there. Every outcome hangs on pixels, state and seed."""

    spec = FAKE
    horizon = 8
    cameras = ("agentview",)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self.batches.append(len(observations))
        return [self._one(each, seed) for each, seed in zip(observations, seeds, strict=True)]

    def _one(self, observation: Observation, seed: int) -> ActionChunk:
        assert set(observation.images) == {"agentview"} and not observation.privileged
        colour = next(rgb for name, rgb in COLOURS.items() if name in observation.instruction)
        rows, columns = np.nonzero((observation.images["agentview"] == colour).all(axis=2))
        seen = np.array([columns.mean(), 63 - rows.mean()]) / 63 * 0.48 - 0.24 if len(rows) else np.zeros(2)
        offset = np.array([*seen, 0.03]) - observation.state_S[:3]
        actions_HA = np.zeros((8, 7), np.float32)
        actions_HA[:, :3] = np.clip(offset * 12, -1, 1)
        actions_HA += 0.5 * np.random.default_rng(seed).standard_normal(actions_HA.shape, np.float32)
        actions_HA[:, 6] = 1 if np.hypot(*offset[:2]) < 0.03 else -1
        return ActionChunk(actions_HA=actions_HA, start_s=observation.time_s, dt_s=FAKE.dt_s)


def outcome(result: EpisodeResult) -> tuple:
    return result.task, result.init_state, result.seed, result.success, result.steps, result.truncated, result.error


@cache
def alone(executor: Executor) -> list[tuple]:
    """What SightedPolicy does in one env in this process."""
    env = FakeEnv()
    blind = _WithoutPrivileged(SightedPolicy())
    return sorted(outcome(run_episode(env, blind, row, executor)) for row in PLAN)


class _WithoutPrivileged:
    """Shows a policy what a pool would show it."""

    def __init__(self, policy) -> None:
        self.inner, self.spec, self.horizon, self.cameras = policy, policy.spec, policy.horizon, policy.cameras

    def act(self, observations, seeds):
        bare = [
            Observation(images=o.images, state_S=o.state_S, instruction=o.instruction, time_s=o.time_s)
            for o in observations
        ]
        return self.inner.act(bare, seeds)


@pytest.mark.parametrize(
    ("slots", "executor"),
    [
        (1, RecedingHorizon(8)),
        (3, RecedingHorizon(8)),
        (16, RecedingHorizon(8)),
        (3, RecedingHorizon(3)),
        (5, TemporalEnsemble(0.1)),
    ],
)
def test_rows_do_not_depend_on_slots_or_order(slots: int, executor: Executor) -> None:
    expected = alone(executor)
    assert len({steps for *_, steps, _, _ in expected}) > 5, "the outcomes must differ to prove anything"
    for plan in (PLAN, [PLAN[i] for i in np.random.default_rng(0).permutation(len(PLAN))]):
        results: list[EpisodeResult] = []
        policy = SightedPolicy()
        with EnvPool(FakeEnv, num_slots=slots, num_workers=0) as pool:
            run_episodes(pool, policy, plan, executor, results.append)
        assert sorted(map(outcome, results)) == expected
        assert max(policy.batches) == min(slots, len(PLAN)), "the policy answers all slots that wait"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_rows_do_not_depend_on_workers(workers: int) -> None:
    results: list[EpisodeResult] = []
    with EnvPool(FakeEnv, num_slots=5, num_workers=workers) as pool:
        run_episodes(pool, SightedPolicy(), PLAN, RecedingHorizon(8), results.append)
    assert sorted(map(outcome, results)) == alone(RecedingHorizon(8))


def test_a_policy_in_the_workers_gives_the_same_rows() -> None:
    results: list[EpisodeResult] = []
    with EnvPool(FakeEnv, num_slots=3, num_workers=2) as pool:
        run_in_workers(pool, expert_for, PLAN, RecedingHorizon(1), results.append)
    env = FakeEnv()
    expected = [run_episode(env, expert_for(env), row, RecedingHorizon(1)) for row in PLAN]
    assert sorted(map(outcome, results)) == sorted(map(outcome, expected))
    assert all(result.success and not result.truncated and not result.error for result in results)


def test_the_baselines_fail_as_they_should() -> None:
    for policy in (ZeroPolicy(spec=FAKE), RandomPolicy(spec=FAKE)):
        results: list[EpisodeResult] = []
        with EnvPool(FakeEnv, num_slots=4, num_workers=0) as pool:
            run_episodes(pool, policy, PLAN, RecedingHorizon(8), results.append)
        assert sum(result.success for result in results) <= 1
        assert {result.steps for result in results if not result.success} == {40}


def test_the_zero_policy_does_not_move_and_the_random_one_follows_its_seed() -> None:
    seen = [FAKE.zeros()] * 3
    [chunk, *_] = ZeroPolicy(spec=FAKE).act(seen, [1, 2, 3])
    assert chunk.actions_HA.tolist() == [[0, 0, 0, 0, 0, 0, -1]] * 8
    one, same, other = RandomPolicy(spec=FAKE).act(seen, [1, 1, 2])
    np.testing.assert_array_equal(one.actions_HA, same.actions_HA)
    assert (one.actions_HA != other.actions_HA).any()
    assert set(np.unique(one.actions_HA[:, 6])) == {-1, 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_leaves_the_other_rows_intact(workers: int) -> None:
    faulty = partial(FaultyEnv, faults={2: "raise"})
    results: list[EpisodeResult] = []
    with EnvPool(faulty, num_slots=4, num_workers=workers) as pool:
        run_episodes(pool, SightedPolicy(), PLAN, RecedingHorizon(8), results.append)
    lost = [result for result in results if result.error]
    assert {result.init_state for result in lost} == {2} and len(lost) == 3
    for result in lost:
        assert not result.success
        assert f"task '{result.task}', init state 2: RuntimeError: the physics exploded" in (result.error or "")
    expected = [row for row in alone(RecedingHorizon(8)) if row[1] != 2]
    assert sorted(outcome(result) for result in results if not result.error) == expected


@pytest.mark.parametrize("in_workers", [False, True])
def test_a_killed_worker_costs_the_rows_in_flight(in_workers: bool) -> None:
    faulty = partial(FaultyEnv, faults={2: "kill"})
    plan = [row for row in PLAN if row.task == "reach_red"]
    results: list[EpisodeResult] = []
    with EnvPool(faulty, num_slots=2, num_workers=2) as pool:
        if in_workers:
            run_in_workers(pool, expert_for, plan, RecedingHorizon(1), results.append)
        else:
            run_episodes(pool, SightedPolicy(), plan, RecedingHorizon(8), results.append)
    [lost] = [result for result in results if result.error]
    assert lost.init_state == 2 and "init state 2: the worker process died: SIGKILL" in (lost.error or "")
    assert len(results) == len(plan)


def test_time_is_accounted_for() -> None:
    results: list[EpisodeResult] = []
    with EnvPool(FakeEnv, num_slots=2, num_workers=0) as pool:
        run_episodes(pool, SightedPolicy(), PLAN, RecedingHorizon(8), results.append)
    for result in results:
        assert min(result.physics_s, result.render_s, result.policy_s) > 0
        assert result.physics_s + result.render_s + result.policy_s <= result.wall_s


def test_seeds_are_a_function_of_row_and_step() -> None:
    seeds = {act_seed(seed, step) for seed in range(50) for step in range(0, 400, 8)}
    assert len(seeds) == 50 * 50 and all(0 <= seed < 2**63 for seed in seeds)
    assert act_seed(3, 8) == act_seed(3, 8)
    assert act_seed(2**32 - 1, 0) != act_seed(2**32 - 2, 0)


def test_no_rows_is_no_work() -> None:
    with EnvPool(FakeEnv, num_slots=2, num_workers=0) as pool:
        run_episodes(pool, SightedPolicy(), [], RecedingHorizon(8), lambda result: pytest.fail("no row was planned"))


class CompilingEnv(FakeEnv):
    """Counts how often a slot meets another task, which costs a real suite a new model."""

    compiled: ClassVar[list[str]] = []

    def reset(self, task: str, init_state: int, seed: int) -> None:
        if getattr(self, "last", None) != task:
            CompilingEnv.compiled.append(task)
        self.last = task
        super().reset(task, init_state, seed)


def test_slots_stay_with_their_task() -> None:
    CompilingEnv.compiled.clear()
    plan = [EpisodePlan(task, state, state) for state in range(40) for task in FakeEnv().tasks]
    with EnvPool(CompilingEnv, num_slots=3, num_workers=0) as pool:
        run_episodes(pool, SightedPolicy(), plan, RecedingHorizon(8), lambda result: None)
    assert len(CompilingEnv.compiled) <= 6, "three slots, three tasks, and help at the end"
