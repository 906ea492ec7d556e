"""Policies and envs that misbehave: a clear line in the rows that they spoil, and all the others as if nothing were."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from sim.fake import FAKE, FakeEnv, FaultyEnv
from sim.vector import EnvPool
from vla.core.errors import GrasplineError
from vla.core.types import ActionChunk, Observation
from vla.rollout.answers import answers
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.executor import RecedingHorizon, TemporalEnsemble
from vla.rollout.runner import EpisodePlan, EpisodeResult, run_episodes

PLAN = [EpisodePlan(task, state, 7 * state) for state in range(4) for task in FakeEnv().tasks]


def shorter(chunk: ActionChunk) -> ActionChunk:
    return replace(chunk, actions_HA=chunk.actions_HA[:3])


def wider(chunk: ActionChunk) -> ActionChunk:
    return replace(chunk, actions_HA=np.zeros((8, 9), np.float32))


def not_finite(chunk: ActionChunk) -> ActionChunk:
    return replace(chunk, actions_HA=np.full((8, 7), np.nan, np.float32))


def no_chunk(chunk: ActionChunk) -> ActionChunk:
    raise KeyError("image\nkeys")


class SpoiltPolicy(RandomPolicy):
    """Answers at random, but to one instruction with a chunk that was tampered with."""

    def __init__(self, spoil: Callable[[ActionChunk], ActionChunk]) -> None:
        super().__init__(spec=FAKE)
        self.spoil = spoil

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        chunks = super().act(observations, seeds)
        return [
            self.spoil(chunk) if "green" in seen.instruction and seen.time_s > 0.5 else chunk
            for seen, chunk in zip(observations, chunks, strict=True)
        ]


def played(policy: RandomPolicy, executor: RecedingHorizon | TemporalEnsemble, slots: int = 5) -> list[EpisodeResult]:
    results: list[EpisodeResult] = []
    with EnvPool(FakeEnv, num_slots=slots, num_workers=0) as pool:
        run_episodes(pool, policy, PLAN, executor, results.append)
    return results


def outcome(result: EpisodeResult) -> tuple:
    return result.task, result.init_state, result.seed, result.success, result.steps, result.error


@pytest.mark.parametrize("executor", [RecedingHorizon(8), RecedingHorizon(2), TemporalEnsemble(0.1)])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shorter, "the policy failed: a chunk of shape (3, 7), expected (8, 7) (horizon, action)"),
        (wider, "the policy failed: a chunk of shape (8, 9), expected (8, 7) (horizon, action)"),
        (no_chunk, "the policy failed: KeyError: 'image\\nkeys'"),
        (not_finite, "NonFiniteError: action"),
    ],
)
def test_a_bad_answer_spoils_its_own_row(
    spoil: Callable, words: str, executor: RecedingHorizon | TemporalEnsemble
) -> None:
    results = played(SpoiltPolicy(spoil), executor)
    lost = [result for result in results if result.error]
    assert len(results) == len(PLAN) and {result.task for result in lost} == {"reach_green"} and len(lost) == 4
    for result in lost:
        assert result.error is not None and "\n" not in result.error and not result.success
        assert result.error.startswith(f"task 'reach_green', init state {result.init_state}: {words}")
        assert result.steps > 10, "what was played until then is counted"
    whole = {outcome(result) for result in played(RandomPolicy(spec=FAKE), executor) if result.task != "reach_green"}
    assert {outcome(result) for result in results if not result.error} == whole


def test_one_that_always_fails_ends() -> None:
    class Broken(ZeroPolicy):
        def act(self, observations, seeds):
            raise RuntimeError("out of memory")

    results: list[EpisodeResult] = []
    with EnvPool(FakeEnv, num_slots=4, num_workers=0) as pool:
        run_episodes(pool, Broken(spec=FAKE), PLAN, RecedingHorizon(8), results.append)
    assert {(result.error or "").partition(": the")[2] for result in results} == {
        " policy failed: RuntimeError: out of memory"
    }
    assert len(results) == len(PLAN)


def test_a_batch_that_fails_as_a_whole_is_asked_one_by_one() -> None:
    class Forgetful(ZeroPolicy):
        asked: tuple[int, ...] = ()

        def act(self, observations, seeds):
            self.asked += (len(observations),)
            return super().act(observations, seeds)[: 2 if len(observations) > 2 else None]

    policy = Forgetful(spec=FAKE)
    answered = answers(policy, [FAKE.zeros()] * 3, [1, 2, 3])
    assert [type(each) for each in answered] == [ActionChunk] * 3 and policy.asked == (3, 1, 1, 1)


def test_a_server_that_is_gone_ends_the_run_as_itself() -> None:
    class Gone(ZeroPolicy):
        def act(self, observations, seeds):
            raise GrasplineError("ws://robot:8000: cannot connect")

    with pytest.raises(GrasplineError, match=r"^ws://robot:8000"):
        answers(Gone(spec=FAKE), [FAKE.zeros()] * 2, [1, 2])


def test_an_env_that_hangs_is_killed_and_named() -> None:
    plan = [row for row in PLAN if row.task == "reach_red"]
    results: list[EpisodeResult] = []
    began = time.monotonic()
    faulty = partial(FaultyEnv, faults={2: "hang"})
    with EnvPool(faulty, num_slots=2, num_workers=2, timeout_s=1.5) as pool:
        run_episodes(pool, ZeroPolicy(spec=FAKE), plan, RecedingHorizon(8), results.append)
    errors = {result.init_state: result.error for result in results}
    assert errors.pop(2) == (
        "task 'reach_red', init state 2: the worker process died: killed after 1.5 s without an answer"
    )
    assert errors == {0: None, 1: None, 3: None} and time.monotonic() - began > 1.5


def test_a_worker_that_dies_under_a_given_up_episode_is_no_matter() -> None:
    """The policy gives up green's last row while its worker's other slot is about to die."""
    plan = [EpisodePlan("reach_green", 0, 0), EpisodePlan("reach_red", 2, 0)]
    results: list[EpisodeResult] = []

    class Early(SpoiltPolicy):
        def act(self, observations, seeds):
            chunks = RandomPolicy.act(self, observations, seeds)
            return [
                shorter(chunk) if "green" in seen.instruction else chunk
                for seen, chunk in zip(observations, chunks, strict=True)
            ]

    with EnvPool(partial(FaultyEnv, faults={2: "kill"}), num_slots=2, num_workers=1) as pool:
        run_episodes(pool, Early(shorter), plan, RecedingHorizon(8), results.append)
    assert sorted((result.error or "").rpartition(": ")[2] for result in results) == sorted(
        ["SIGKILL", "a chunk of shape (3, 7), expected (8, 7) (horizon, action)"]
    )
