"""The state of tabletop_poses against what it is made of, and whether it says all that a policy needs."""

import numpy as np
import pytest

from sim.experts.tabletop import TabletopExpert
from sim.tabletop import TabletopEnv
from sim.tabletop_poses import NEAR_M, TabletopPosesEnv
from sim.tabletop_tasks import TABLE_Z
from vla.core.errors import UnknownNameError


@pytest.fixture(scope="module")
def env() -> TabletopPosesEnv:
    return TabletopPosesEnv()


def test_physics_is_that_of_tabletop(env: TabletopPosesEnv) -> None:
    plain = TabletopEnv()
    actions_TA = env.spec.random_chunk(np.random.default_rng(0), 20).actions_HA
    truths = []
    for each in (env, plain):
        each.reset("goal_place", 3, 0)
        for action_A in actions_TA:
            each.step(action_A)
        truths.append(each.observe(()).privileged)
    for name, value in truths[0].items():
        np.testing.assert_array_equal(value, truths[1][name], err_msg=name)


def test_differences_are_those_of_the_truth_and_cut_near(env: TabletopPosesEnv) -> None:
    env.reset("object_can", 31, 0)
    seen = env.observe(())
    state = dict(zip([axis.name for axis in env.spec.state], seen.state_S, strict=True))
    truth = seen.privileged
    for i, a in enumerate("xyz"):
        to_thing = truth["can_pos"][i] - truth["eef_pos"][i]
        to_place = truth["bin_pos"][i] - truth["can_pos"][i]
        assert state[f"to_thing_{a}"] == pytest.approx(to_thing, abs=1e-6)
        assert state[f"near_thing_{a}"] == pytest.approx(np.clip(to_thing, -NEAR_M, NEAR_M), abs=1e-6)
        assert state[f"to_place_{a}"] == pytest.approx(to_place, abs=1e-6)
    assert state["eef_z"] == pytest.approx(truth["eef_pos"][2] - TABLE_Z, abs=1e-6)
    assert state["turn_to_grasp"] == 0.0, "a can is round"


def test_the_turn_brings_the_hand_across_the_cube(env: TabletopPosesEnv) -> None:
    """While the expert approaches, the turn it still has to make shrinks to nothing, and it grasps and succeeds."""
    expert = TabletopExpert(env.spec)
    env.reset("goal_place", 7, 0)
    turns, held, success = [], False, False
    while not success and len(turns) < 200:
        seen = env.observe(())
        state = dict(zip([axis.name for axis in env.spec.state], seen.state_S, strict=True))
        held = held or bool(state["held"])
        turns.append(abs(state["turn_to_grasp"]))
        [chunk] = expert.act([seen], [0])
        success = env.step(chunk.actions_HA[0]).success
    assert turns[0] > 0.1 and min(turns) < 0.03 and max(turns) <= np.pi / 4 + 1e-3, (
        "a cube has a grasp every 90 degrees"
    )
    assert held and success


def test_only_tasks_that_move_one_thing(env: TabletopPosesEnv) -> None:
    assert {"goal_place", "goal_stack", "goal_push", "object_can"} <= set(env.tasks)
    assert not {"goal_open", "goal_press", "long_place_press"} & set(env.tasks)
    with pytest.raises(UnknownNameError, match="goal_open"):
        env.reset("goal_open", 0, 0)
