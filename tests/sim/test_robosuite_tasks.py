"""robosuite's tasks behind our Env: its own physics, no memory of earlier episodes, exact snapshots, success."""

import numpy as np
import pytest
import robosuite

from sim.experts import expert_for
from sim.robosuite_tasks import TASKS, RobosuiteEnv, _build, _drawing_from
from vla.core.errors import CorruptFileError, GrasplineError, UnknownNameError


@pytest.fixture(scope="module")
def env():
    env = RobosuiteEnv()
    yield env
    env.close()


def wander(env: RobosuiteEnv, steps: int, seed: int) -> np.ndarray:
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        env.step(rng.uniform(-1, 1, 7))
        observation = env.observe(())
        seen.append(np.concatenate([observation.state_S, *[v.ravel() for v in observation.privileged.values()]]))
    return np.array(seen)


def test_the_tasks_are_robosuites(env: RobosuiteEnv) -> None:
    assert {published.name for published in TASKS.values()} <= set(robosuite.ALL_ENVIRONMENTS)
    assert len({task.instruction for task in env.tasks.values()}) == len(env.tasks)


@pytest.mark.parametrize("task", ["lift", "door"])
def test_an_episode_is_robosuites_own_and_forgets_the_last(env: RobosuiteEnv, task: str) -> None:
    """Its `step` sees its own state one physics step late, ours does not; the physics is the same to rounding."""
    env.reset(task, 1, 0)
    wander(env, 3, seed=5)
    drawn_next = np.random.RandomState()
    drawn_next.set_state(np.random.get_state())
    env.reset(task, 4, 0)
    assert np.random.random() == drawn_next.random(), "the global generator is as it was"
    stock = _build(env._scene.__class__.__name__)
    with _drawing_from([4, *task.encode()]):
        stock.reset()
    np.testing.assert_array_equal(stock.sim.data.qpos, env._data.qpos)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action_A = rng.uniform(-1, 1, 7).astype(np.float32)
        env.step(action_A)
        stock.step(action_A)
        np.testing.assert_allclose(env._data.qpos, stock.sim.data.qpos, atol=1e-7)
    stock.close()


@pytest.mark.parametrize("task", ["lift", "door", "nut_assembly_square"])
def test_snapshots_are_exact_and_go_to_another_env(env: RobosuiteEnv, task: str) -> None:
    env.reset(task, 0, 0)
    wander(env, 4, seed=0)
    saved = env.snapshot()
    expected = wander(env, 4, seed=1)
    env.reset(task, 3, 0)
    env.restore(saved)
    np.testing.assert_array_equal(wander(env, 4, seed=1), expected)
    other = RobosuiteEnv()
    other.restore(saved)
    np.testing.assert_array_equal(wander(other, 4, seed=1), expected)
    other.close()


def test_a_lifted_cube_is_success(env: RobosuiteEnv) -> None:
    env.reset("lift", 0, 0)
    idle = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
    assert not env.step(idle).success
    env._data.joint("cube_joint0").qpos[2] += 0.1
    step = env.step(idle)
    assert step.success and step.terminated and not step.truncated


def test_the_expert_lifts_on_a_held_out_state(env: RobosuiteEnv) -> None:
    env.reset("lift", 40, 0)
    policy, steps = expert_for(env), 0
    while not (step := env.step(policy.act([env.observe(())], [0])[0].actions_HA[0])).success:
        assert not step.truncated
        steps += 1
    assert 10 < steps < 60
    with pytest.raises(GrasplineError, match="lift"):
        policy.act([env.spec.zeros(env.tasks["door"].instruction)], [0])


def test_refusals(env: RobosuiteEnv) -> None:
    env.reset("lift", 0, 0)
    with pytest.raises(UnknownNameError, match="agentview"):
        env.observe(["agent_view"])
    with pytest.raises(CorruptFileError):
        env.restore(b"PK")
    with pytest.raises(ValueError, match="reset"):
        RobosuiteEnv().observe()
