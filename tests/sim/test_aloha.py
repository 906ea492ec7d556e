"""ALOHA's simulated tasks behind our Env: gym-aloha's own episodes without its rendering, snapshots, success."""

import sys

import numpy as np
import pytest
from gym_aloha.env import AlohaEnv as Published

from sim.aloha import AlohaEnv
from vla.core.errors import CorruptFileError, MissingAssetError, UnknownNameError


def jitter(env: AlohaEnv, steps: int, seed: int) -> np.ndarray:
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        env.step(env.observe(()).state_S + 0.1 * rng.standard_normal(14))
        truth = env.observe(()).privileged
        seen.append(np.concatenate([env.observe(()).state_S, *[value.ravel() for value in truth.values()]]))
    return np.array(seen)


@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_an_episode_is_gym_alohas_own(task: str) -> None:
    env, published = AlohaEnv(), Published(task, obs_type="pixels_agent_pos")
    published._env.physics.render = lambda **_: np.zeros((1, 1, 3), np.uint8)
    env.reset(task, 2, 0)
    jitter(env, 5, seed=0)
    env.reset(task, 13, 0)
    observation, _ = published.reset(seed=13)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(env.observe(()).state_S, observation["agent_pos"].astype(np.float32))
    for _ in range(20):
        action_A = (observation["agent_pos"] + 0.1 * rng.standard_normal(14)).astype(np.float32)
        action_A = env.spec.clip(action_A)
        step = env.step(action_A)
        observation, reward, terminated, _, _ = published.step(action_A)
        np.testing.assert_array_equal(env._data.qpos, published._env.physics.data.qpos)
        np.testing.assert_array_equal(env.observe(()).state_S, observation["agent_pos"].astype(np.float32))
        assert step.terminated == terminated and env.observe(()).privileged["reward"] == reward


@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_snapshots_are_exact_and_go_to_another_env(task: str) -> None:
    env, other = AlohaEnv(), AlohaEnv()
    env.reset(task, 0, 0)
    jitter(env, 15, seed=1)
    saved = env.snapshot()
    expected = jitter(env, 15, seed=2)
    env.restore(saved)
    np.testing.assert_array_equal(jitter(env, 15, seed=2), expected)
    other.restore(saved)
    np.testing.assert_array_equal(jitter(other, 15, seed=2), expected)


def test_a_cube_in_the_left_gripper_is_success() -> None:
    env = AlohaEnv()
    env.reset("transfer_cube", 0, 0)
    stay = env.observe(()).state_S
    assert not env.step(stay).success
    env._data.joint("red_box_joint").qpos[:3] = env._data.geom("vx300s_left/10_left_gripper_finger").xpos
    step = env.step(stay)
    assert step.success and step.terminated and not step.truncated


def test_actions_stay_within_the_joints() -> None:
    env = AlohaEnv()
    env.reset("insertion", 0, 0)
    model = env._model
    limits = model.actuator_ctrlrange[[*range(6), *range(8, 14)]]
    arms = [i for i, axis in enumerate(env.spec.action) if "gripper" not in axis.name]
    np.testing.assert_allclose(env.spec.action_low_A[arms], limits[:, 0], rtol=1e-6)
    np.testing.assert_allclose(env.spec.action_high_A[arms], limits[:, 1], rtol=1e-6)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="top"):
        AlohaEnv(cameras=["tops"])
    env = AlohaEnv()
    with pytest.raises(ValueError, match="reset"):
        env.snapshot()
    env.reset("insertion", 0, 0)
    with pytest.raises(UnknownNameError, match="top"):
        env.observe(["angle"])
    with pytest.raises(CorruptFileError):
        env.restore(b"")
    monkeypatch.setitem(sys.modules, "gym_aloha.tasks", None)
    with pytest.raises(MissingAssetError, match="suites"):
        AlohaEnv().reset("insertion", 0, 0)
