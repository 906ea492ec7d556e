"""Push-T behind our Env: gym-pusht's own episodes, snapshots in the middle of a push, success."""

import sys
from typing import Any

import numpy as np
import pytest
from gym_pusht.envs import PushTEnv as Published

from sim.pusht import PushTEnv
from vla.core.errors import CorruptFileError, MissingAssetError, UnknownNameError


def push(env: PushTEnv, steps: int, seed: int) -> np.ndarray:
    """Chases the block with some noise; returns disc, block and coverage after each step."""
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        target = env.observe(()).privileged["block"][:2] + rng.uniform(-40, 40, 2)
        env.step(target)
        observation = env.observe(())
        truth = observation.privileged
        seen.append([*observation.state_S, *truth["block"], *truth["disc_velocity"], truth["coverage"]])
    return np.array(seen)


def test_an_episode_is_gym_pushts_own() -> None:
    env = PushTEnv()
    published: Any = Published(obs_type="state")
    env.reset("push_t", 3, 0)
    push(env, 20, seed=0)
    env.reset("push_t", 11, 0)
    start, _ = published.reset(seed=11)
    rng = np.random.default_rng(0)
    truth = env.observe(()).privileged["block"]
    np.testing.assert_array_equal([*truth[:2], truth[2] % (2 * np.pi)], start[2:])
    for _ in range(30):
        action_A = (truth[:2] + rng.uniform(-40, 40, 2)).astype(np.float32).clip(0, 512)
        step = env.step(action_A)
        state, _, terminated, _, info = published.step(action_A)
        truth = env.observe(()).privileged["block"]
        np.testing.assert_array_equal([*truth[:2], truth[2] % (2 * np.pi)], state[2:])
        assert step.terminated == terminated and env.observe(()).privileged["coverage"] == info["coverage"]


def test_a_snapshot_in_the_middle_of_a_push_is_exact() -> None:
    env, other = PushTEnv(), PushTEnv()
    env.reset("push_t", 0, 0)
    before = env.observe(()).privileged["block"]
    push(env, 25, seed=1)
    assert np.abs(env.observe(()).privileged["block"] - before).max() > 1, "the block is being pushed"
    saved = env.snapshot()
    expected = push(env, 25, seed=2)
    env.restore(saved)
    np.testing.assert_array_equal(push(env, 25, seed=2), expected)
    other.restore(saved)
    np.testing.assert_array_equal(push(other, 25, seed=2), expected)


def test_the_block_on_its_outline_is_success() -> None:
    env = PushTEnv(horizon=2)
    env.reset("push_t", 0, 0)
    away = np.full(2, 40.0, np.float32)
    assert not env.step(away).success
    scene = env._scene
    scene.agent.position, scene.agent.velocity = (40, 40), (0, 0)
    scene.block.angle = scene.goal_pose[2]
    scene.block.position = tuple(scene.goal_pose[:2])
    step = env.step(away)
    assert step.success and step.terminated and not step.truncated
    assert env.observe(()).privileged["coverage"] == pytest.approx(1.0, abs=0.02)


def test_the_picture_shows_disc_block_and_outline() -> None:
    env = PushTEnv()
    env.reset("push_t", 4, 0)
    image = env.observe().images["top"].astype(int)
    assert image.shape == (96, 96, 3)
    disc = env.observe(()).state_S * 96 / 512
    blue = (image[..., 2] - image[..., 0] > 60) & (image[..., 2] > 150)
    rows, columns = np.nonzero(blue)
    np.testing.assert_allclose([columns.mean(), rows.mean()], disc, atol=2)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    env = PushTEnv()
    with pytest.raises(ValueError, match="reset"):
        env.observe()
    env.reset("push_t", 0, 0)
    with pytest.raises(UnknownNameError, match="top"):
        env.observe(["front"])
    with pytest.raises(CorruptFileError):
        env.restore(env.snapshot()[:-40])
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)
    with pytest.raises(MissingAssetError, match="suites"):
        PushTEnv().reset("push_t", 0, 0)
