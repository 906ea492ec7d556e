"""The experts for spatial, object, goal and 10: goals, geometry and choices in closed form, and whole episodes."""

import os
from pathlib import Path

import numpy as np
import pytest

from sim.experts import expert_for
from sim.experts.libero import SUITES, Goal, LiberoExpert, goal_of, goals_of
from sim.experts.libero_dishes import GRASPS, hold_dish
from sim.experts.libero_hand import HAND_DOWN, nearest_yaw, pointing, tilt_of_hand, yaw_of_hand
from sim.experts.libero_obstacles import Obstacle, clear_height, crowding, hand_outline, kind_of, obstacles
from sim.experts.libero_packages import SHAPES
from sim.libero import LiberoEnv, libero_panda
from sim.libero_setup import suite_tasks
from vla.core.errors import GrasplineError, UnknownNameError
from vla.core.se3 import quat_conjugate, quat_from_yaw, quat_mul, rotate
from vla.core.types import Observation
from vla.rollout.collect import Perturbation, record_episode
from vla.rollout.runner import EpisodePlan

ASSETS = Path(
    os.environ.get("GRASPLINE_LIBERO_ASSETS") or Path(__file__).parents[3].parent / "shared" / "libero-assets"
)
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}: set GRASPLINE_LIBERO_ASSETS to their folder"
)
UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])
DOOR_OPEN = -1.58  # [rad]


def truth_of(**entries) -> dict[str, np.ndarray]:
    """A hand above the middle of a table whose top is at height 0, the robot 0.66 m behind it."""
    return {
        "eef_pos": np.array([-0.2, 0.0, 0.27]),
        "eef_quat": HAND_DOWN,
        "base_pos": np.array([-0.66, 0.0, 0.0]),
        "gripper_qpos": np.array([0.04, -0.04]),
        **{name: np.array(value) for name, value in entries.items()},
    }


def act(goal: Goal, truth: dict[str, np.ndarray]) -> np.ndarray:
    expert = LiberoExpert(libero_panda(256), {"do it": goal})
    observation = Observation(
        images={}, state_S=np.zeros(8, np.float32), instruction="do it", time_s=0.0, privileged=truth
    )
    return expert.act([observation], [0])[0].actions_HA[0]


def test_a_goal_is_read_from_its_bddl_text():
    goal = goal_of(
        """(define (problem LIBERO_Kitchen_Tabletop_Manipulation)
        (:init (Open microwave_1) )
        (:goal
          (And (In white_yellow_mug_1 microwave_1_heating_region) (Close microwave_1))
        ) )"""
    )
    assert goal.predicates == (("in", "white_yellow_mug_1", "microwave_1_heating_region"), ("close", "microwave_1"))
    assert goal.ground == 0.9


@pytest.mark.parametrize("suite", SUITES)
def test_the_expert_knows_everything_that_the_goals_name(suite: str):
    goals = goals_of(suite, suite_tasks(suite, 40))
    assert len(goals) == 10
    for goal in goals.values():
        assert goal.predicates
        for verb, *names in goal.predicates:
            assert verb in ("on", "in", "open", "close", "turnon")
            if verb in ("on", "in"):
                assert kind_of(names[0]) in {**GRASPS, **SHAPES, "plate": None}


def test_an_unknown_instruction_is_named():
    expert = LiberoExpert(libero_panda(256), {"open the drawer": Goal(predicates=(), ground=0.0)})
    observation = Observation(images={}, state_S=np.zeros(8, np.float32), instruction="open the draw", time_s=0.0)
    with pytest.raises(UnknownNameError, match="open the drawer"):
        expert.act([observation], [0])


def test_libero_90_has_no_expert():
    with pytest.raises(GrasplineError, match="libero_10"):
        expert_for(LiberoEnv(suite="libero_90"))


@pytest.mark.parametrize("tilt", [0.0, 0.7, 1.4])
@pytest.mark.parametrize("heading", [0.3, -2.0])
def test_a_raised_hand_points_where_it_should(tilt: float, heading: float):
    along = np.array([np.cos(heading), np.sin(heading)])
    quat = pointing(heading - np.pi / 2, along, tilt)
    expected = [*(np.sin(tilt) * along), -np.cos(tilt)]
    np.testing.assert_allclose(rotate(quat, np.array([0.0, 0.0, 1.0])), expected, atol=1e-12)
    assert tilt_of_hand(quat) == pytest.approx(tilt, abs=1e-6)
    closing = rotate(quat, np.array([0.0, 1.0, 0.0]))  # in the vertical plane of the heading: above and below a bar
    assert abs(closing @ [-along[1], along[0], 0.0]) < 1e-12


def test_of_two_equal_yaws_the_nearer_is_taken():
    truth = truth_of(eef_quat=quat_mul(quat_from_yaw(1.2), HAND_DOWN))
    assert yaw_of_hand(truth["eef_quat"]) == pytest.approx(1.2)
    assert nearest_yaw(-np.pi / 2, truth) == pytest.approx(np.pi / 2)
    assert nearest_yaw(0.2 + np.pi, truth) == pytest.approx(0.2)


def test_distances_to_a_turned_box_with_round_corners():
    box = Obstacle(
        name="x", centre=np.array([1.0, 0.0]), yaw=np.pi / 2, half=np.array([0.3, 0.1]), radius=0.05, top=0.2
    )
    points = np.array([[1.0, 0.0], [1.0, 0.5], [1.5, 0.0], [1.4, 0.7]])
    np.testing.assert_allclose(box.distance(points), [-0.15, 0.15, 0.35, 0.45], atol=1e-12)
    assert clear_height([box], np.array([0.0, 0.0]), np.array([2.0, 0.0]), 0.02) == 0.2
    assert clear_height([box], np.array([0.0, 0.6]), np.array([2.0, 0.6]), 0.02) == 0.0
    assert crowding([box], np.array([[[1.5, 0.0]]]), 0.3)[0] == 0.0  # not tall enough to be in the way
    assert crowding([box], np.array([[[1.16, 0.0]]]), 0.1)[0] == pytest.approx(0.002)


def test_the_hands_outline_turns_with_it():
    flat, turned = hand_outline(np.zeros(2), 0.0), hand_outline(np.zeros(2), np.pi / 2)
    np.testing.assert_allclose(np.ptp(flat, axis=0), [0.064, 0.206], atol=1e-12)
    np.testing.assert_allclose(np.ptp(turned, axis=0), [0.206, 0.064], atol=1e-12)


def test_an_open_drawer_and_a_swung_door_are_where_they_are():
    cabinet = truth_of(
        wooden_cabinet_1_pos=[0.0, 0.0, 0.0],
        wooden_cabinet_1_quat=quat_from_yaw(np.pi),  # the front faces +y
        **{f"wooden_cabinet_1_{level}_level": 0.0 for level in ("middle", "bottom")},
        wooden_cabinet_1_top_level=-0.16,
    )
    tops = [o.top for o in obstacles(cabinet, ()) if o.distance(np.array([[0.0, 0.26]]))[0] < 0.005]
    np.testing.assert_allclose(tops, [0.192])  # the handle of the drawer that is open
    door = truth_of(microwave_1_pos=[0.0, 0.0, 0.0], microwave_1_quat=UPRIGHT, microwave_1_microjoint=-np.pi / 2)
    [distance] = [o.distance(np.array([[-0.197, -0.217]]))[0] for o in obstacles(door, ())][1:]
    assert distance == pytest.approx(-0.03, abs=1e-9)  # the middle of its length and thickness


def test_a_rim_is_taken_away_from_what_stands_beside_it():
    for side in (-1.0, 1.0):
        truth = truth_of(
            akita_black_bowl_1_pos=[0.0, 0.0, 0.0],
            akita_black_bowl_1_quat=UPRIGHT,
            glazed_rim_porcelain_ramekin_1_pos=[0.0, side * 0.105, 0.0],
            glazed_rim_porcelain_ramekin_1_quat=UPRIGHT,
        )
        hold = hold_dish(truth, "akita_black_bowl_1", GRASPS["akita_black_bowl"], np.zeros(3))
        assert side * hold.point[1] < 0.02
        radius = np.linalg.norm(hold.point[:2])
        assert 0.03 < radius < 0.047  # a little inside the rim
        closing = np.array([-np.sin(hold.yaw), np.cos(hold.yaw)])
        assert abs(closing @ hold.point[:2]) == pytest.approx(radius)  # across the rim


def test_a_mug_is_not_taken_where_its_handle_is():
    for yaw in np.linspace(-3, 3, 7):
        truth = truth_of(porcelain_mug_1_pos=[0.0, 0.0, 0.0], porcelain_mug_1_quat=quat_from_yaw(yaw))
        hold = hold_dish(truth, "porcelain_mug_1", GRASPS["porcelain_mug"], np.zeros(3))
        own = rotate(quat_conjugate(quat_from_yaw(yaw)), hold.point)[:2] - [0.015, 0.0]
        assert own[0] > -0.7 * np.linalg.norm(own)  # the handle is towards -x


def test_what_is_shut_comes_last_and_what_holds_is_left_alone():
    mug, door = ("in", "white_yellow_mug_1", "microwave_1_heating_region"), ("close", "microwave_1")
    truth = truth_of(
        white_yellow_mug_1_pos=[0.0, 0.0, 0.0],
        white_yellow_mug_1_quat=UPRIGHT,
        grasp_white_yellow_mug_1=False,
        microwave_1_pos=[0.0, 0.34, 0.02],
        microwave_1_quat=UPRIGHT,
        microwave_1_microjoint=DOOR_OPEN,
        grasp_microwave_1=False,
        microwave_1_heating_region_pos=[0.0, 0.35, 0.116],
    )
    for predicates in ((mug, door), (door, mug)):
        goal = Goal(predicates=predicates, ground=0.0)
        first = act(goal, truth | {"goal": np.array([False, False])})
        assert first[6] == -1 and first[0] > 0.5  # open, towards the mug
        reached = np.array([predicate == mug for predicate in predicates])
        assert act(goal, truth | {"goal": reached})[6] == 1  # closed fingers push the door
        assert act(goal, truth | {"goal": np.array([True, True])})[6] == -1


class Blind:
    """A LiberoEnv that draws nothing, for `record_episode`."""

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env

    def __getattr__(self, name: str):
        return getattr(self._env, name)

    def observe(self, cameras=()):
        return self._env.observe(())


@needs_assets
def test_a_bowl_beside_a_ramekin_under_noise_and_kicks():
    env = LiberoEnv(suite="libero_spatial", assets=str(ASSETS))
    task = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
    episode = record_episode(
        Blind(env),  # pyright: ignore[reportArgumentType]
        expert_for(env),
        EpisodePlan(task=task, init_state=45, seed=3),
        Perturbation(),
        np.random.default_rng(3),
    )
    env.close()
    assert episode.success


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_task_from_a_held_out_state(suite: str):
    env = LiberoEnv(suite=suite, assets=str(ASSETS))
    expert, failed = expert_for(env), []
    for task in env.tasks:
        env.reset(task, 44, 0)
        while True:
            step = env.step(expert.act([env.observe(())], [0])[0].actions_HA[0])
            if step.terminated or step.truncated:
                break
        failed += [task] * (not step.success)
    env.close()
    assert len(failed) <= 1, failed
