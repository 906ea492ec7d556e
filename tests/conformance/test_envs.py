"""What every environment of `configs/env` promises. Adding a suite adds its tests."""

import os
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scripts.entry import CONFIG_DIR
from vla.core.errors import NonFiniteError, UnknownNameError
from vla.core.protocols import Env

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "libero-assets"
SUITES = sorted(path.stem for path in (CONFIG_DIR / "env").glob("*.yaml"))


def make(suite: str) -> Env:
    config = OmegaConf.load(CONFIG_DIR / "env" / f"{suite}.yaml")
    if "libero" in suite:
        if not (ASSETS.is_dir() or "GRASPLINE_LIBERO_ASSETS" in os.environ):
            pytest.skip("LIBERO's assets are not here")
        config.assets = os.environ.get("GRASPLINE_LIBERO_ASSETS", str(ASSETS))
    return instantiate(config)


@pytest.fixture(scope="module", params=SUITES)
def env(request: pytest.FixtureRequest):
    env = make(request.param)
    yield env
    env.close()


def first(env: Env) -> str:
    return next(iter(env.tasks))


def actions(env: Env, seed: int, steps: int = 4) -> np.ndarray:
    return env.spec.random_chunk(np.random.default_rng(seed), steps).actions_HA


def states(env: Env, actions_TA: np.ndarray) -> np.ndarray:
    found = []
    for action_A in actions_TA:
        env.step(action_A)
        found.append(env.observe(()).state_S)
    return np.array(found)


def test_tasks_are_described(env: Env) -> None:
    for name, task in env.tasks.items():
        assert task.name == name and task.instruction and task.horizon > 0
        assert 0 < task.num_train_states < task.num_init_states
    assert len({task.instruction for task in env.tasks.values()}) > len(env.tasks) * 0.5


def test_observation_fits_the_spec(env: Env) -> None:
    env.reset(first(env), 0, 0)
    observation = env.observe()
    env.spec.validate(observation)
    assert observation.instruction == env.tasks[first(env)].instruction
    assert all(image.std() > 1 for image in observation.images.values()), "no picture is constant"
    assert not env.observe(()).images


def test_start_depends_on_the_state_and_is_repeatable(env: Env) -> None:
    env.reset(first(env), 0, 0)
    one = states(env, actions(env, 0))
    env.reset(first(env), 1, 0)
    states(env, actions(env, 1))
    other = env.observe(env.spec.camera_names[:1]).images[env.spec.camera_names[0]]
    env.reset(first(env), 0, 0)
    np.testing.assert_array_equal(states(env, actions(env, 0)), one)
    assert (env.observe(env.spec.camera_names[:1]).images[env.spec.camera_names[0]] != other).any()


def test_snapshot_and_restore_are_exact(env: Env) -> None:
    env.reset(first(env), 2, 0)
    states(env, actions(env, 2))
    saved = env.snapshot()
    expected = states(env, actions(env, 3))
    env.restore(saved)
    np.testing.assert_array_equal(states(env, actions(env, 3)), expected)


def test_executed_is_what_was_clipped(env: Env) -> None:
    env.reset(first(env), 0, 0)
    step = env.step(env.spec.action_high_A + 1)
    np.testing.assert_array_equal(step.executed_A, env.spec.action_high_A)
    assert not (step.terminated and step.truncated)


def test_refusals(env: Env) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        env.reset(first(env) + "x", 0, 0)
    with pytest.raises(ValueError, match="init_state"):
        env.reset(first(env), -1, 0)
    env.reset(first(env), 0, 0)
    before = env.observe(()).state_S
    with pytest.raises(NonFiniteError):
        env.step(np.full(env.spec.action_dim, np.nan, np.float32))
    np.testing.assert_array_equal(env.observe(()).state_S, before)


@pytest.mark.parametrize("suite", ["fake", "tabletop", "libero_object", "metaworld", "pusht", "aloha", "robosuite"])
def test_two_envs_of_one_process_do_not_meet(suite: str) -> None:
    """Slots of one worker: what another env does, resets included, changes nothing here."""
    one, other = make(suite), make(suite)
    task, camera = list(one.tasks)[-8:][0], one.spec.camera_names[0]
    one.reset(task, 0, 0)
    alone = states(one, actions(one, 0)), one.observe([camera]).images[camera]
    one.reset(task, 0, 0)
    other.reset(task, 1, 0)
    states(other, actions(other, 1))
    other.observe()
    together = states(one, actions(one, 0)), one.observe([camera]).images[camera]
    one.close()
    other.close()
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)
