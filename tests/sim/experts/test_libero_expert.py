"""The libero_object expert: succeeds, recovers, and is a function of the present state alone."""

import os
from pathlib import Path

import numpy as np
import pytest

from sim.experts.libero import Goal, LiberoExpert
from sim.experts.libero_packages import SHAPES
from sim.libero import LiberoEnv, libero_panda
from vla.core.errors import UnknownNameError
from vla.core.protocols import Policy
from vla.core.se3 import quat_from_yaw, quat_mul
from vla.core.types import Observation

ASSETS = Path(
    os.environ.get("GRASPLINE_LIBERO_ASSETS") or Path(__file__).parents[3].parent / "shared" / "libero-assets"
)
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}: set GRASPLINE_LIBERO_ASSETS to their folder"
)


def task(name: str) -> str:
    return f"pick_up_the_{name}_and_place_it_in_the_basket"


def instruction(name: str) -> str:
    return f"pick up the {name.replace('_', ' ')} and place it in the basket"


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv(suite="libero_object", assets=str(ASSETS))
    yield env
    env.close()


@pytest.fixture(scope="module")
def expert() -> Policy:
    goals = {
        instruction(name): Goal(predicates=(("in", f"{name}_1", "basket_1_contain_region"),), ground=0.0)
        for name in SHAPES
    }
    return LiberoExpert(libero_panda(256), goals)


def act(expert: Policy, observation: Observation) -> np.ndarray:
    return expert.act([observation], [0])[0].actions_HA[0]


def finish(env: LiberoEnv, expert: Policy, sigma: float = 0.0, kicks: float = 0.0, seed: int = 0) -> int:
    """Steps to success from the present state, with noise on the executed position actions; -1 if the time is up."""
    rng, noise, steps = np.random.default_rng(seed), np.zeros(3), 0
    while True:
        action = act(expert, env.observe(cameras=())).copy()
        noise = 0.8 * noise + sigma * rng.standard_normal(3)
        action[:3] += noise
        if rng.random() < kicks:
            action[:3] = rng.choice([-1.0, 1.0], 3)
        step, steps = env.step(action), steps + 1
        if step.success:
            return steps
        if step.truncated:
            return -1


def place(env: LiberoEnv, name: str, xy: tuple[float, float], turn: np.ndarray) -> None:
    """Puts an object elsewhere on the floor, turned."""
    scene = env._scene
    assert scene is not None
    start = scene.model.joint(f"{name}_1_joint0").qposadr[0]
    scene.data.qpos[start : start + 2] = xy
    scene.data.qpos[start + 3 : start + 7] = quat_mul(turn, scene.data.qpos[start + 3 : start + 7])


def synthetic(name: str, **changes: np.ndarray) -> Observation:
    """The scene of `name` without a simulator: the hand above the table, the object on the floor."""
    truth = {
        "eef_pos": np.array([-0.15, 0.0, 0.26]),
        "eef_quat": np.array([0.0, 1.0, 0.0, 0.0]),
        "gripper_qpos": np.array([0.039, -0.039]),
        "goal": np.array([False]),
        f"{name}_1_pos": np.array([0.05, -0.1, SHAPES[name].size[2]]),
        f"{name}_1_quat": np.array(SHAPES[name].quat),
        f"grasp_{name}_1": np.array(False),
        "basket_1_pos": np.array([0.0, 0.26, -0.005]),
    }
    return Observation(
        images={},
        state_S=np.zeros(8, np.float32),
        instruction=instruction(name),
        time_s=1.5,
        privileged=truth | changes,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_actions_follow_from_the_state(expert: Policy, name: str):
    there = synthetic(name)
    far = act(expert, there)
    assert far.shape == (7,) and far.dtype == np.float32 and np.abs(far).max() <= 1
    assert far[0] == 1 and far[1] < 0 and far[6] == -1  # towards the object, open

    [grasp] = [Observation(**{**vars(there), "privileged": {**there.privileged}})]
    height = max(0.010, SHAPES[name].size[2] + SHAPES[name].grasp)
    at = there.privileged[f"{name}_1_pos"] * [1, 1, 0] + [0, 0, height]
    grasp = synthetic(name, eef_pos=at)
    assert act(expert, grasp)[6] == 1  # around it: close

    held = synthetic(name, eef_pos=at, **{f"grasp_{name}_1": np.array(True)})
    lift = act(expert, held)
    assert lift[2] == 1 and lift[6] == 1 and abs(lift[1]) < 0.3  # up first

    over = np.array([0.0, 0.26, 0.30])
    above = synthetic(name, eef_pos=over, **{f"{name}_1_pos": over, f"grasp_{name}_1": np.array(True)})
    assert act(expert, above)[6] == -1  # over the basket: let go

    done = act(expert, synthetic(name, goal=np.array([True]), eef_pos=over))
    assert done[2] > 0.9 and done[6] == -1  # up, open


def test_a_batch_and_its_order_change_nothing(expert: Policy):
    states = [synthetic(name) for name in SHAPES]
    together = expert.act(states, list(range(len(states))))
    for state, chunk in zip(reversed(states), reversed(together), strict=True):
        np.testing.assert_array_equal(act(expert, state), chunk.actions_HA[0])
        assert (chunk.start_s, chunk.dt_s) == (1.5, 0.05)


def test_an_instruction_of_another_suite(expert: Policy):
    with pytest.raises(UnknownNameError, match="butter"):
        act(expert, Observation(**{**vars(synthetic("butter")), "instruction": "open the middle drawer"}))


@needs_assets
def test_butter_from_a_held_out_state_without_idle_frames(env: LiberoEnv, expert: Policy):
    env.reset(task("butter"), 44, 0)
    idle = steps = 0
    success = False
    while not success:
        action = act(expert, env.observe(cameras=()))
        idle += np.abs(action[:6]).max() < 0.02
        success, steps = env.step(action).success, steps + 1
        assert steps < 120
    assert idle <= 3
    for _ in range(3):  # what is recorded after success
        action = act(expert, env.observe(cameras=()))
        assert action[6] == -1
        assert env.step(action).success


@needs_assets
def test_butter_under_noise_and_kicks(env: LiberoEnv, expert: Policy):
    env.reset(task("butter"), 3, 0)
    assert finish(env, expert, sigma=0.15, kicks=0.03, seed=1) > 0


@needs_assets
def test_butter_dropped_on_the_way_is_picked_up_again(env: LiberoEnv, expert: Policy):
    env.reset(task("butter"), 10, 0)
    for _ in range(100):
        observation = env.observe(cameras=())
        if observation.privileged["butter_1_pos"][2] > 0.08:
            break
        env.step(act(expert, observation))
    for _ in range(10):
        env.step(np.array([0, 0, 0, 0, 0, 0, -1]))
    assert env.observe(cameras=()).privileged["butter_1_pos"][2] < 0.03
    assert finish(env, expert) > 0


@needs_assets
def test_butter_elsewhere_and_turned(env: LiberoEnv, expert: Policy):
    env.reset(task("butter"), 0, 0)
    place(env, "butter", (-0.05, -0.17), quat_from_yaw(1.0))
    assert finish(env, expert) > 0


@needs_assets
def test_cream_cheese_beside_a_can_that_is_in_the_hands_way(env: LiberoEnv, expert: Policy):
    env.reset(task("cream_cheese"), 1, 0)
    assert finish(env, expert) > 0


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_task_from_ten_states(env: LiberoEnv, expert: Policy, name: str):
    lengths = []
    for init_state in range(0, 50, 5):
        env.reset(task(name), init_state, 0)
        lengths.append(finish(env, expert))
    assert sum(length > 0 for length in lengths) >= 9, lengths
