"""The built-in suite: its tasks, its starts, its exactness."""

import numpy as np
import pytest

from sim.experts.tabletop import TabletopExpert
from sim.tabletop import TabletopEnv
from sim.tabletop_scene import FIXTURES, KINDS, sample_layout
from sim.tabletop_tasks import TASKS, At, In, On, Opened, Pressed, State
from vla.core.errors import NonFiniteError, UnknownNameError
from vla.core.se3 import rotate

FAMILIES = ("spatial", "object", "goal", "long")


@pytest.fixture(scope="module")
def env():
    env = TabletopEnv()
    yield env
    env.close()


def play(env: TabletopEnv, actions: np.ndarray) -> np.ndarray:
    """Physical state after each action, every digit."""
    states = []
    for action in actions:
        env.step(action)
        states.append(np.concatenate([env._data.qpos, env._data.qvel, env._data.ctrl]))
    return np.array(states)


def random_actions(seed: int, steps: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 7)).astype(np.float32)


def test_four_families_of_five_with_distinct_instructions() -> None:
    assert [sum(name.startswith(f"{family}_") for name in TASKS) for family in FAMILIES] == [5, 5, 5, 5]
    assert len({task.instruction for task in TASKS.values()}) == len(TASKS)
    assert all(len(task.goals) == 2 for name, task in TASKS.items() if name.startswith("long_"))
    assert len({TASKS[name].things for name in TASKS if name.startswith("goal_")}) == 1, "same scene, another goal"


@pytest.mark.parametrize("name", TASKS)
def test_starts_are_wide(name: str) -> None:
    """Over the 50 fixed states every movable object spans 15 x 15 cm and 60 degrees, and none overlaps another."""
    task = TASKS[name]
    layouts = [sample_layout(task.things, np.random.default_rng([k, *name.encode()])) for k in range(50)]
    for thing in task.things:
        if thing.kind in FIXTURES:
            continue
        spread = np.ptp([layout[thing.name][0][:2] for layout in layouts], axis=0)
        assert (spread > 0.15).all(), f"{thing.name}: {spread}"
        axis = np.array(KINDS[thing.kind].grasp_axis or (1, 0, 0))
        headings = [np.degrees(np.arctan2(*rotate(layout[thing.name][1], axis)[1::-1])) for layout in layouts]
        assert np.ptp(headings) > 60, f"{thing.name}: {np.ptp(headings)}"
    for layout in layouts:
        for i, a in enumerate(task.things):
            for b in task.things[:i]:
                gap = np.hypot(*(layout[a.name][0] - layout[b.name][0])[:2])
                assert gap >= KINDS[a.kind].radius + KINDS[b.kind].radius


def test_what_follows_reset_ignores_what_came_before(env: TabletopEnv) -> None:
    env.reset("object_can", 3, 0)
    clean = play(env, random_actions(0))
    env.reset("object_lemon", 7, 0)  # same model, another task
    play(env, random_actions(1))
    env.reset("goal_open", 0, 0)  # another model
    env.reset("object_can", 3, 99)
    np.testing.assert_array_equal(play(env, random_actions(0)), clean)


def test_snapshot_continues_bit_for_bit(env: TabletopEnv) -> None:
    env.reset("goal_stack", 5, 0)
    play(env, random_actions(2))
    saved = env.snapshot()
    expected = play(env, random_actions(3))
    pixels = env.observe().images["wrist"]
    env.reset("spatial_left", 0, 0)
    env.restore(saved)
    np.testing.assert_array_equal(play(env, random_actions(3)), expected)
    np.testing.assert_array_equal(env.observe().images["wrist"], pixels)


def test_looking_does_not_move_anything(env: TabletopEnv) -> None:
    env.reset("object_can", 1, 0)
    blind = play(env, random_actions(4, 6))
    env.reset("object_can", 1, 0)
    seen = []
    for action in random_actions(4, 6):
        env.observe()
        seen.append(play(env, action[None])[0])
    np.testing.assert_array_equal(seen, blind)


def test_the_look_does_not_change_physics(env: TabletopEnv) -> None:
    original = TabletopEnv(look="original")
    env.reset("spatial_left", 2, 0)
    original.reset("spatial_left", 2, 0)
    np.testing.assert_array_equal(play(env, random_actions(5)), play(original, random_actions(5)))
    fast, slow = (each.observe().images["agentview"].astype(float) for each in (env, original))
    original.close()
    assert 0 < np.abs(fast - slow).mean() < 20, "the fast look shows the same scene"


def test_observation_fits_the_spec_and_shows_the_scene(env: TabletopEnv) -> None:
    env.reset("goal_place", 0, 0)
    observation = env.observe()
    env.spec.validate(observation)
    assert all(image.std() > 10 for image in observation.images.values())
    assert not env.observe(()).images
    first = env.observe().images["agentview"]
    env.reset("goal_place", 1, 0)
    assert (env.observe().images["agentview"] != first).mean() > 0.01


def test_left_is_at_the_robots_left(env: TabletopEnv) -> None:
    env.reset("spatial_left", 0, 0)
    truth = env.observe(()).privileged
    assert truth["cube_left_pos"][1] > truth["cube_right_pos"][1]


def test_horizon_truncates_and_is_not_termination(env: TabletopEnv) -> None:
    env.reset("goal_press", 0, 0)
    steps = [env.step(np.array([0, 0, 0, 0, 0, 0, -1.0])) for _ in range(TASKS["goal_press"].horizon)]
    assert not any(step.truncated or step.terminated for step in steps[:-1])
    assert steps[-1].truncated and not steps[-1].terminated


def test_long_tasks_want_their_goals_in_order(env: TabletopEnv) -> None:
    """Pressing the button first does not count."""
    env.reset("long_place_press", 0, 0)
    env._data.qpos[env._slides["button"]] = -0.011
    assert not env.step(np.zeros(7)).success
    assert int(env.observe(()).privileged["stage"]) == 0


def test_bad_input(env: TabletopEnv) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'object_can'"):
        env.reset("object_cann", 0, 0)
    with pytest.raises(ValueError, match="init_state"):
        env.reset("object_can", -1, 0)
    env.reset("object_can", 0, 0)
    before = env._data.qpos.copy()
    with pytest.raises(NonFiniteError, match="dz"):
        env.step(np.array([0, 0, np.nan, 0, 0, 0, 0]))
    np.testing.assert_array_equal(env._data.qpos, before)
    with pytest.raises(UnknownNameError, match="camera 'front'"):
        env.observe(["front"])


def state(**positions: tuple[float, float, float]) -> State:
    return State({name: np.array(xyz) for name, xyz in positions.items()}, frozenset(), 0.0, 0.0)


def test_predicates_on_a_table_of_points() -> None:
    plate = (0.1, 0.2, 0.8)
    assert On("c", "plate")(state(c=(0.12, 0.2, 0.828), plate=plate))
    assert not On("c", "plate")(state(c=(0.16, 0.2, 0.828), plate=plate)), "beside"
    assert not On("c", "plate")(state(c=(0.1, 0.2, 0.86), plate=plate)), "above"
    held = State(state(c=(0.1, 0.2, 0.828), plate=plate).position, frozenset({"c"}), 0.0, 0.0)
    assert not On("c", "plate")(held), "not let go"
    assert In("c", "bin")(state(c=(0.0, 0.07, 0.83), bin=(0, 0, 0.8)))
    assert not In("c", "bin")(state(c=(0.0, 0.08, 0.83), bin=(0, 0, 0.8)))
    assert not In("c", "bin")(state(c=(0.0, 0.0, 0.87), bin=(0, 0, 0.8)))
    assert At("c", "zone")(state(c=(0.04, 0, 0.822), zone=(0, 0, 0.8)))
    assert not At("c", "zone")(state(c=(0.05, 0, 0.822), zone=(0, 0, 0.8)))
    assert Opened()(State({}, frozenset(), 0.09, 0.0)) and not Opened()(State({}, frozenset(), 0.07, 0.0))
    assert Pressed()(State({}, frozenset(), 0.0, -0.01)) and not Pressed()(State({}, frozenset(), 0.0, -0.004))


@pytest.mark.parametrize("name", ["spatial_far", "object_milk", "goal_push", "goal_open", "long_stack_press"])
def test_the_expert_solves_and_recovers(env: TabletopEnv, name: str) -> None:
    """Clean, and with the arm kicked in the middle; the full table over 50 states is in the README."""
    expert = TabletopExpert(env.spec)
    for kick in (False, True):
        env.reset(name, 31, 0)
        rng = np.random.default_rng(0)
        step = None
        for t in range(env.tasks[name].horizon):
            [chunk] = expert.act([env.observe(())], [0])
            action = chunk.actions_HA[0]
            if kick and 20 <= t < 26:
                action = action + rng.uniform(-1, 1, 7).astype(np.float32) * (np.arange(7) < 6)
            step = env.step(action)
            if step.terminated:
                break
        assert step is not None and step.success


def test_the_expert_is_a_function_of_the_state(env: TabletopEnv) -> None:
    env.reset("object_can", 0, 0)
    observation = env.observe(())
    experts = TabletopExpert(env.spec), TabletopExpert(env.spec)
    [first] = experts[0].act([observation], [0])
    for _ in range(5):
        experts[1].act([env.observe(())], [0])
        env.step(np.ones(7))
    [again] = experts[1].act([observation], [1])
    np.testing.assert_array_equal(first.actions_HA, again.actions_HA)
