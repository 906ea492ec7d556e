"""The fake suite: solvable, exact, and shaped as the real ones."""

import numpy as np
import pytest

from sim.fake import COLOURS, FAKE, FakeEnv, FakeExpert
from vla.core.errors import CorruptFileError, NonFiniteError, UnknownNameError
from vla.rollout.executor import RecedingHorizon
from vla.rollout.runner import EpisodePlan, run_episode


def trace(env: FakeEnv, actions_TA: np.ndarray) -> list[bytes]:
    seen = []
    for action_A in actions_TA:
        step = env.step(action_A)
        observation = env.observe()
        pixels = b"".join(image.tobytes() for image in observation.images.values())
        seen.append(observation.state_S.tobytes() + pixels + bytes([step.success, step.truncated]))
    return seen


@pytest.fixture
def motion() -> np.ndarray:
    return FAKE.random_chunk(np.random.default_rng(0), 30).actions_HA


def test_observations_fit_the_spec() -> None:
    env = FakeEnv()
    env.reset("reach_red", 0, 0)
    observation = env.observe()
    FAKE.validate(observation)
    assert env.observe(()).images == {}
    assert set(env.observe(("wrist",)).images) == {"wrist"}
    assert "red" in observation.instruction


def test_same_row_same_episode_whatever_came_before(motion: np.ndarray) -> None:
    fresh, used = FakeEnv(), FakeEnv()
    used.reset("reach_blue", 3, 9)
    trace(used, motion)
    fresh.reset("reach_red", 7, 5)
    used.reset("reach_red", 7, 5)
    assert trace(fresh, motion) == trace(used, motion)


def test_seed_and_init_state_matter() -> None:
    env = FakeEnv()
    starts, targets = set(), set()
    for row in [(0, 0), (0, 1), (1, 0)]:
        env.reset("reach_red", *row)
        starts.add(env.observe(()).state_S.tobytes())
        targets.add(env.observe(()).privileged["target"].tobytes())
    assert len(starts) == 2 and len(targets) == 2


def test_restore_continues_bit_for_bit(motion: np.ndarray) -> None:
    env = FakeEnv()
    env.reset("reach_green", 11, 1)
    trace(env, motion[:7])
    kept = env.snapshot()
    first = trace(env, motion[7:])
    env.restore(kept)
    assert trace(env, motion[7:]) == first
    other = FakeEnv()
    other.reset("reach_green", 2, 0)
    other.restore(kept)
    assert trace(other, motion[7:]) == first
    with pytest.raises(CorruptFileError):
        env.restore(kept[:-1])


def test_the_expert_solves_every_initial_state() -> None:
    env = FakeEnv()
    for task in env.tasks:
        for state in range(50):
            result = run_episode(env, FakeExpert(), EpisodePlan(task, state, state), RecedingHorizon(1))
            assert result.success and 8 <= result.steps <= 25


def test_an_open_hand_or_another_colour_is_no_success() -> None:
    env = FakeEnv()
    env.reset("reach_red", 0, 0)
    expert = FakeExpert()
    for _ in range(39):
        [chunk] = expert.act([env.observe(())], [0])
        action_A = chunk.actions_HA[0].copy()
        action_A[6] = -1
        assert not env.step(action_A).success
    assert env.step(action_A).truncated
    red = env.snapshot()
    env.reset("reach_blue", 0, 0)
    env.restore(red)
    action_A[6] = 1
    assert not any(env.step(action_A).success for _ in range(3))


def test_the_pictures_show_all_colours_and_follow_the_hand() -> None:
    env = FakeEnv()
    env.reset("reach_red", 4, 0)
    before = env.observe()
    pixels = before.images["agentview"].reshape(-1, 3)
    for colour in COLOURS.values():
        assert (pixels == colour).all(axis=1).sum() > 20
    env.step(np.array([1, 1, -1, 0, 0, 0, 1], np.float32))
    after = env.observe()
    for camera in FAKE.camera_names:
        assert (before.images[camera] != after.images[camera]).any()


def test_user_mistakes_are_named() -> None:
    env = FakeEnv()
    with pytest.raises(ValueError, match="call reset"):
        env.observe()
    with pytest.raises(UnknownNameError, match="Did you mean 'reach_red'"):
        env.reset("reach_rad", 0, 0)
    with pytest.raises(ValueError, match=r"0\.\.49"):
        env.reset("reach_red", 50, 0)
    env.reset("reach_red", 0, 0)
    with pytest.raises(UnknownNameError, match="wrist"):
        env.observe(("wrost",))
    before = env.snapshot()
    with pytest.raises(NonFiniteError):
        env.step(np.full(7, np.nan, np.float32))
    assert env.snapshot() == before
