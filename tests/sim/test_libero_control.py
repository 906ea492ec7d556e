"""Our control step against robosuite's own: the same trajectory to the last bit, on every scene of LIBERO."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from sim.libero import LiberoEnv
from sim.libero_scene import Scene
from sim.libero_setup import HORIZONS, bddl_file, suite_tasks

ROOT = Path(__file__).parents[2]
ASSETS = Path(os.environ.get("GRASPLINE_LIBERO_ASSETS") or ROOT.parent / "shared" / "libero-assets")
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}: set GRASPLINE_LIBERO_ASSETS to their folder"
)


def scene_of(suite: str, task: str) -> tuple[str, ...]:
    """What the compiled model is made of: the arena, the fixtures and the objects of a bddl file."""
    text = bddl_file(suite, task).read_text()
    return tuple(" ".join(re.findall(rf"\({part}([^()]*)\)", text)[0].split()) for part in PARTS)


PARTS = ("define \\(problem ", ":fixtures", ":objects")
SCENES = {scene_of(suite, task): (suite, task) for suite in HORIZONS for task in suite_tasks(suite, 40)}


def started(suite: str, task: str) -> tuple[LiberoEnv, Scene]:
    env = LiberoEnv(suite=suite, assets=str(ASSETS), settle_steps=0)
    env.reset(task, 0, 0)
    assert env._scene is not None
    return env, env._scene


def assert_like_robosuite(scene: Scene, steps: int) -> None:
    """Plays random actions with LIBERO's whole `step`, then with ours, from the same state."""
    actions_TA = np.random.default_rng(0).uniform(-1, 1, (steps, 7))
    actions_TA[steps // 2 :, 3:6] = 0  # then the controller keeps its former goal orientation
    beginning = scene.flags(), scene.arrays()
    theirs = []
    for action_A in actions_TA:
        scene._env.step(action_A)
        theirs.append((scene._state(), [scene._env._eval_predicate(predicate) for predicate in scene._goal]))
    controller = {name: value for name, value in scene.arrays().items() if "seen" not in name}
    scene.resume(*beginning)
    for number, (action_A, (state, goal)) in enumerate(zip(actions_TA, theirs, strict=True)):
        scene.control(action_A)
        assert np.array_equal(scene._state(), state), f"step {number}"
        assert scene.reached == goal, f"step {number}"
    for name, value in controller.items():
        np.testing.assert_array_equal(scene.arrays()[name], value, err_msg=name)


def test_scenes_cover_every_task():
    tasks = [task for suite in HORIZONS for task in suite_tasks(suite, 40)]
    rooms = {re.match(r"[A-Z_]+SCENE\d+", task) for task in tasks if task[0].isupper()}
    assert len(tasks) == 130
    # one scene of libero_spatial, one of libero_goal, ten of libero_object, and the rooms of the other two suites
    assert len(SCENES) == 12 + len({room[0] for room in rooms if room}) == 32


@needs_assets
def test_control_is_robosuites_bit_for_bit():
    env, scene = started("libero_goal", "turn_on_the_stove")
    assert_like_robosuite(scene, 40)
    env.close()


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("suite, task", SCENES.values(), ids=[f"{suite}-{task}" for suite, task in SCENES.values()])
def test_control_is_robosuites_on_every_scene(suite: str, task: str):
    env, scene = started(suite, task)
    assert_like_robosuite(scene, 1000)
    env.close()
