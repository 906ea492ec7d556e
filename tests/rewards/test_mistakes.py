"""Mistakes on the fake suite: each way fails as it says, the truth is the env's, and an episode repeats exactly."""

import numpy as np
import pytest

from rewards.collection import Collection, play_row, rows_of
from rewards.mistakes import WAYS, play
from sim.fake import FakeEnv, FakeExpert
from vla.core.errors import GrasplineError
from vla.core.types import Episode, Observation

ENV, EXPERT = FakeEnv(horizon=60), FakeExpert()
OTHER = ENV.tasks["reach_green"].instruction


def record(way: str, seed: int, **changes) -> Episode:
    options = {"task": "reach_red", "init_state": seed, "seed": seed, "other_instruction": OTHER, "max_steps": 50}
    return play(ENV, EXPERT, **{**options, **changes}, way=way)


def successes(way: str) -> int:
    return sum(record(way, seed).success for seed in range(10))


def test_the_expert_succeeds_and_mistakes_fail():
    assert successes("clean") == 10 and successes("early") == 0
    assert successes("misjudged") <= 2, "5 to 9 cm beside a target of 2.5 cm"
    assert successes("random") <= 2


@pytest.mark.parametrize("way", WAYS)
def test_an_episode_repeats_and_is_labelled_by_the_env(way: str):
    first, again = record(way, 3), record(way, 3)
    assert np.array_equal(first.actions_TA, again.actions_TA) and first.success == again.success
    assert not np.array_equal(first.actions_TA[:5], record(way, 4).actions_TA[:5])
    ENV.reset("reach_red", 3, 3)
    assert [ENV.step(a).success for a in first.actions_TA] == (first.rewards["success"] > 0.5).tolist()
    assert first.meta["way"] == way and first.terminated == first.success != first.truncated


def test_success_is_lingered_on():
    episode = record("clean", 0, linger=6)
    first = int(episode.rewards["success"].argmax())
    assert len(episode) == first + 7
    assert len(record("clean", 0, linger=0)) == first + 1
    assert len(record("random", 1, max_steps=7)) == 7


def test_early_is_the_clean_beginning_of_a_success():
    episode = record("early", 2)
    assert (
        not episode.success and not episode.rewards["success"].any() and len(episode.observations) == len(episode) + 1
    )


def test_other_task_is_asked_in_the_right_words():
    episode = record("other_task", 1)
    assert {each.instruction for each in episode.observations} == {ENV.tasks["reach_red"].instruction}
    last = episode.observations[-1].privileged["hand"][:2]
    ENV.reset("reach_green", 1, 1)
    assert np.linalg.norm(last - ENV.observe(()).privileged["target"][:2]) > 0, "played without an error"
    with pytest.raises(ValueError, match="needs an other_instruction"):
        record("other_task", 1, other_instruction=None)
    with pytest.raises(ValueError, match="way is 'sloppy'"):
        record("sloppy", 1)


def test_a_suite_without_places():
    class Mute(FakeEnv):
        def observe(self, cameras=None) -> Observation:
            seen = super().observe(cameras)
            return Observation(
                images=seen.images, state_S=seen.state_S, instruction=seen.instruction, time_s=seen.time_s,
                privileged={"hand": seen.privileged["hand"]},
            )  # fmt: skip

    with pytest.raises(GrasplineError, match="no places"):
        play(Mute(), EXPERT, task="reach_red", init_state=0, seed=0, way="misjudged")


def test_a_planned_row():
    plan = Collection(tasks=["reach_red"], other_tasks=["reach_green"], episodes=12, max_steps=20)
    rows = rows_of(ENV, plan, test=False)
    assert {row.way for row in rows} == set(WAYS)
    episode = play_row(ENV, EXPERT, rows[1], plan)
    assert (episode.meta["way"], episode.meta["init_state"]) == (rows[1].way, rows[0].init_state)
