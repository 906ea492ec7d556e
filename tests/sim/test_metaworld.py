"""Meta-World behind our Env: its own episodes bit for bit, whatever was played before, and its experts."""

import sys

import numpy as np
import pytest
from metaworld.env_dict import ENV_CLS_MAP

from sim.experts import expert_for
from sim.experts.metaworld import MetaworldExpert
from sim.metaworld import INSTRUCTIONS, MAX_HORIZON, MetaworldEnv, scripted_policy
from sim.pusht import PushTEnv
from vla.core.errors import CorruptFileError, MissingAssetError, UnknownNameError

# basketball aims at a view into MuJoCo's memory, lever-pull and door write to the model, push rejects placements
TASKS = ["basketball-v3", "lever-pull-v3", "push-v3", "door-open-v3"]


@pytest.fixture(scope="module")
def env():
    env = MetaworldEnv()
    yield env
    env.close()


def play(env: MetaworldEnv, steps: int, seed: int) -> np.ndarray:
    """Half a scripted policy, half noise, so that things are touched."""
    rng, policy, seen = np.random.default_rng(seed), expert_for(env), []
    for _ in range(steps):
        action_A = policy.act([env.observe(())], [0])[0].actions_HA[0] + 0.3 * rng.standard_normal(4)
        success = env.step(action_A).success
        seen.append(np.append(env.observe(()).privileged["state"], success))
    return np.array(seen)


def test_the_fifty_tasks_in_their_order() -> None:
    assert list(INSTRUCTIONS) == list(ENV_CLS_MAP)
    assert len(set(INSTRUCTIONS.values())) == 50
    assert all(task.horizon == MAX_HORIZON for task in MetaworldEnv().tasks.values())


@pytest.mark.parametrize("task", TASKS)
def test_an_episode_is_meta_worlds_own(env: MetaworldEnv, task: str) -> None:
    env.reset(task, 3, 0)
    play(env, 25, seed=9)
    env.reset(task, 7, 0)
    stock = ENV_CLS_MAP[task]()
    stock._partially_observable, stock._set_task_called, stock._freeze_rand_vec = False, True, True
    stock._last_rand_vec = env._scene._last_rand_vec.copy()
    del stock.sawyer_observation_space
    start, _ = stock.reset()
    np.testing.assert_array_equal(env.observe(()).privileged["state"], start)
    policy = scripted_policy(task)
    sensed = start
    for _ in range(40):
        action_A = np.clip(policy.get_action(sensed), -1, 1).astype(np.float32)
        sensed, _, _, _, info = stock.step(action_A)
        step, observation = env.step(action_A), env.observe(())
        np.testing.assert_array_equal(observation.privileged["state"], sensed)
        np.testing.assert_array_equal(observation.state_S, sensed[:4].astype(np.float32))
        assert step.success == step.terminated == bool(info["success"])


@pytest.mark.parametrize("task", TASKS)
def test_snapshots_go_to_another_env(env: MetaworldEnv, task: str) -> None:
    env.reset(task, 60, 0)
    play(env, 40, seed=0)
    saved = env.snapshot()
    expected = play(env, 30, seed=1)
    other = MetaworldEnv()
    other.reset(task, 2, 0)
    other.restore(saved)
    np.testing.assert_array_equal(play(other, 30, seed=1), expected)
    env.reset(task, 5, 0)
    env.restore(saved)
    np.testing.assert_array_equal(play(env, 30, seed=1), expected)
    other.close()


def test_starts_differ_and_two_envs_do_not_meet(env: MetaworldEnv) -> None:
    starts = set()
    for init_state in range(8):
        env.reset("pick-place-v3", init_state, 0)
        starts.add(env.observe(()).privileged["state"].tobytes())
    assert len(starts) == 8
    env.reset("push-v3", 0, 0)
    alone = play(env, 20, seed=2)
    other = MetaworldEnv()
    env.reset("push-v3", 0, 0)
    other.reset("push-v3", 1, 0)
    play(other, 20, seed=3)
    np.testing.assert_array_equal(play(env, 20, seed=2), alone)
    other.close()


@pytest.mark.parametrize("task", ["drawer-open-v3", "pick-place-v3", "hammer-v3"])
def test_the_expert_succeeds_on_a_held_out_state(env: MetaworldEnv, task: str) -> None:
    env.reset(task, 40, 0)
    policy, steps = expert_for(env), 0
    while not (step := env.step(policy.act([env.observe(())], [0])[0].actions_HA[0])).success:
        assert not step.truncated
        steps += 1
    assert step.terminated and steps < 200


def test_the_time_runs_out() -> None:
    env = MetaworldEnv(horizon=3)
    env.reset("push-v3", 0, 0)
    steps = [env.step(np.zeros(4, np.float32)) for _ in range(3)]
    assert [step.truncated for step in steps] == [False, False, True]
    assert not any(step.terminated for step in steps)
    env.close()


def test_refusals(env: MetaworldEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset("push-v3", 0, 0)
    with pytest.raises(CorruptFileError):
        env.restore(b"nonsense")
    other = PushTEnv()
    other.reset("push_t", 0, 0)
    with pytest.raises(CorruptFileError, match="'pusht'"):
        env.restore(other.snapshot())
    with pytest.raises(UnknownNameError, match="corner"):
        env.observe(["cornr"])
    with pytest.raises(ValueError, match="reset"):
        MetaworldEnv().step(np.zeros(4, np.float32))
    with pytest.raises(UnknownNameError, match="instruction"):
        MetaworldExpert(env.spec).act([env.spec.zeros("make coffee")], [0])
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(MissingAssetError, match="suites"):
        MetaworldEnv().reset("push-v3", 0, 0)
