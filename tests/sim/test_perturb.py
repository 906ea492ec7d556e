"""Perturbations: nothing at severity 0, one thing at any other, and the same thing every time."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sim.experts import expert_for
from sim.fake import FakeEnv
from sim.libero import LiberoEnv
from sim.perturb import KINDS, Perturbed
from sim.perturb_placement import spread_cm
from sim.perturb_senses import GREY, reword
from sim.perturb_stage import Stage
from sim.tabletop import TabletopEnv
from sim.tabletop_tasks import TASKS
from sim.vector import EnvPool
from vla.core.errors import CorruptFileError, GrasplineError, UnknownNameError
from vla.core.types import Observation
from vla.rollout.baselines import RandomPolicy
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.runner import run_episodes

ASSETS = Path(os.environ.get("GRASPLINE_LIBERO_ASSETS") or Path(__file__).parents[3] / "shared" / "libero-assets")
TASK = "object_can"
SENSES = ("noise", "instruction", "language_blind", "vision_blind")
SCENE = ("camera", "light", "texture", "distractors")
START = ("placement", "layout", "robot")
make_tabletop = partial(TabletopEnv, image_size=48)


@pytest.fixture(scope="module")
def plain():
    env = make_tabletop()
    yield env
    env.close()


def perturbed(env, kind: str, severity: float, seed: int = 0) -> Perturbed:
    """A wrapper around an env that exists already, so that nothing is compiled twice."""
    return Perturbed(make_env=lambda: env, kind=kind, severity=severity, seed=seed)


def start(env, kind: str, severity: float, row=(TASK, 3, 11), seed: int = 0) -> tuple[Observation, Stage, Perturbed]:
    wrapper = perturbed(env, kind, severity, seed)
    wrapper.reset(*row)
    return wrapper.observe(), env.stage(), wrapper


def done(wrapper: Perturbed) -> None:
    """Takes the changes out of the shared env."""
    wrapper._changes.undo()


def same(one: Observation, other: Observation, *parts: str) -> bool:
    checks = {
        "state": np.array_equal(one.state_S, other.state_S),
        "images": all(np.array_equal(image, other.images[name]) for name, image in one.images.items()),
        "words": one.instruction == other.instruction,
        "truth": all(np.array_equal(value, other.privileged[name]) for name, value in one.privileged.items()),
    }
    return all(checks[part] for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_severity_0_is_the_plain_env_bit_for_bit(plain, kind):
    plain.reset(TASK, 3, 11)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (2, 7)).astype(np.float32)
    for action in actions:
        plain.step(action)
    expected = plain.observe()
    wrapper = perturbed(plain, kind, 0.0)
    wrapper.reset(TASK, 3, 11)
    for action in actions:
        wrapper.step(action)
    assert same(wrapper.observe(), expected, "state", "images", "words", "truth")
    assert wrapper.snapshot().endswith(plain.snapshot())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_row_is_perturbed_the_same_way_and_undone(plain, kind):
    plain.reset(TASK, 4, 0)
    before = plain.observe()
    first, _, wrapper = start(plain, kind, 0.8)
    wrapper.reset(TASK, 4, 2)  # another episode in between
    wrapper.reset(TASK, 3, 11)
    assert same(wrapper.observe(), first, "state", "images", "words", "truth")
    wrapper.reset(TASK, 3, 12)
    if kind not in ("language_blind", "vision_blind", "instruction"):  # few other wordings; grey has no direction
        assert not same(wrapper.observe(), first, "state", "images", "words", "truth")
    done(wrapper)
    plain.reset(TASK, 4, 0)
    assert same(plain.observe(), before, "state", "images", "words", "truth")


@pytest.mark.parametrize("kind", SCENE)
def test_scene_kinds_change_pictures_and_nothing_else(plain, kind):
    plain.reset(TASK, 3, 11)
    before = plain.observe()
    differences = []
    for severity in (0.3, 1.0):
        after, _, wrapper = start(plain, kind, severity)
        assert same(after, before, "state", "words", "truth")
        pictures = (after.images["agentview"], before.images["agentview"])
        differences.append(np.abs(np.subtract(*pictures, dtype=float)).mean())
        done(wrapper)
    assert 0.3 < differences[0] < differences[1]


def test_physics_does_not_notice_what_is_only_seen(plain):
    action = np.array([0.5, 0.2, -0.5, 0, 0, 0, 1], np.float32)
    ends = []
    for kind in ("camera", "texture", "distractors", "light"):
        wrapper = start(plain, kind, 1.0)[2]
        for _ in range(5):
            wrapper.step(action)
        ends.append(plain.stage().data.qpos.copy())
        done(wrapper)
    plain.reset(TASK, 3, 11)
    for _ in range(5):
        plain.step(action)
    assert all(np.array_equal(end, plain.stage().data.qpos) for end in ends)


def test_layout_moves_objects_a_little_and_placement_far(plain):
    plain.reset(TASK, 3, 11)
    stage = plain.stage()
    before = {name: pose.copy() for name, pose in stage.poses().items()}
    arm = stage.data.qpos[stage.arm].copy()
    farthest = {}
    for kind in ("layout", "placement"):
        moved = []
        for seed in range(4):
            _, stage, wrapper = start(plain, kind, 1.0, seed=seed)
            shifts = [np.hypot(*(pose[:2] - before[name][:2])) for name, pose in stage.poses().items()]
            heights = [pose[2] - before[name][2] for name, pose in stage.poses().items()]
            assert np.abs(heights).max() < 0.01
            assert np.abs(stage.data.qpos[stage.arm] - arm).max() < 2e-3
            moved.append(max(shifts))
            done(wrapper)
        farthest[kind] = max(moved)
    assert 0.01 < farthest["layout"] < 0.065
    assert farthest["placement"] > 0.15


@pytest.mark.parametrize("task", ["object_can", "goal_open"])
def test_wide_placements_keep_things_apart_on_the_table_and_fixtures_still(plain, task):
    for seed in range(5):
        _, stage, _ = start(plain, "placement", 1.0, row=(task, seed, seed))
        fixtures = {name: stage.still().xpos[body].copy() for name, body in stage.fixtures.items()}
        poses = {name: pose.copy() for name, pose in stage.poses().items()}
        for one in poses:
            for other in poses:
                assert one == other or np.hypot(*(poses[one] - poses[other])[:2]) > 0.05
        assert all(np.abs(pose[:2]).max() < 0.4 and abs(pose[2] - 0.83) < 0.05 for pose in poses.values())
        assert all(np.hypot(*(pose[:2] - stage.base_xy)) < 0.8 for pose in poses.values())
        plain.reset(task, seed, seed)
        assert all(
            np.array_equal(plain.stage().still().xpos[stage.fixtures[name]], fixtures[name]) for name in fixtures
        )


def test_tasks_that_speak_of_places_move_as_one(plain):
    task = "spatial_left"
    plain.reset(task, 1, 0)
    before = {name: pose.copy() for name, pose in plain.stage().poses().items()}
    start(plain, "placement", 1.0, row=(task, 1, 0))
    after = plain.stage().poses()
    names = [name for name in before if np.hypot(*(after[name] - before[name])[:2]) > 0.01]
    assert len(names) >= 2
    for one in names:
        for other in names:
            gaps = [np.hypot(*(poses[one] - poses[other])[:2]) for poses in (before, after)]
            assert gaps[0] == pytest.approx(gaps[1], abs=0.005)


def test_the_arm_starts_elsewhere_by_the_severity(plain):
    plain.reset(TASK, 3, 11)
    stage = plain.stage()
    before, objects = stage.data.qpos[stage.arm].copy(), {name: pose.copy() for name, pose in stage.poses().items()}
    for severity in (0.4, 1.0):
        _, stage, _ = start(plain, "robot", severity)
        assert np.linalg.norm(stage.data.qpos[stage.arm] - before) == pytest.approx(0.35 * severity, rel=0.15)
        assert all(np.allclose(pose, objects[name], atol=1e-3) for name, pose in stage.poses().items())


def test_a_camera_still_looks_at_the_same_place(plain):
    """The point on the table in the middle of the picture stays there, by MuJoCo's own camera frames."""
    _, stage, wrapper = start(plain, "camera", 0.0)
    height = np.mean([stage.still().xpos[body, 2] for body in stage.movable.values()])
    centres = []
    for severity in (0.0, 1.0):
        wrapper = start(plain, "camera", severity)[2]
        still, camera = plain.stage().still(), plain.stage().model.camera("agentview").id
        place, ahead = still.cam_xpos[camera], -still.cam_xmat[camera].reshape(3, 3)[:, 2]
        centres.append((place + (height - place[2]) / ahead[2] * ahead, place.copy()))
        done(wrapper)
    np.testing.assert_allclose(centres[0][0][:2], centres[1][0][:2], atol=2e-3)
    assert np.linalg.norm(centres[0][1] - centres[1][1]) > 0.1


def test_snapshots_come_back_with_their_perturbation(plain):
    for kind in ("camera", "distractors", "placement", "noise", "instruction"):
        first, _, wrapper = start(plain, kind, 1.0)
        wrapper.step(np.array([0.5, 0, -0.5, 0, 0, 0, -1], np.float32))
        expected, snapshot = wrapper.observe(), wrapper.snapshot()
        wrapper.reset(TASK, 7, 1)
        wrapper.restore(snapshot)
        assert same(wrapper.observe(), expected, "state", "images", "words", "truth"), kind
        assert not same(expected, first, "state")
        with pytest.raises(CorruptFileError, match="snapshot is of"):
            perturbed(plain, kind, 0.5).restore(snapshot)
        done(wrapper)
    with pytest.raises(CorruptFileError, match="not of a perturbed env"):
        perturbed(plain, "noise", 0.5).restore(plain.snapshot()[5:])


@pytest.mark.parametrize("kind", SENSES)
def test_senses_work_with_any_env_and_leave_the_truth(kind):
    env = FakeEnv()
    env.reset("reach_red", 2, 5)
    before = env.observe()
    wrapper = perturbed(env, kind, 1.0)
    wrapper.reset("reach_red", 2, 5)
    after = wrapper.observe()
    assert same(after, before, "truth")
    changed = {
        "noise": ("images", "state"),
        "vision_blind": ("images",),
        "instruction": ("words",),
        "language_blind": ("words",),
    }
    for part in ("images", "state", "words"):
        assert same(after, before, part) is (part not in changed[kind])


def test_blind_controls_show_and_say_nothing_of_the_task():
    env = FakeEnv()
    blind = perturbed(env, "vision_blind", 1.0)
    blind.reset("reach_red", 0, 0)
    assert all((image == GREY).all() for image in blind.observe().images.values())
    silent, wrong = perturbed(env, "language_blind", 0.5), perturbed(env, "language_blind", 1.0)
    silent.reset("reach_red", 0, 0)
    wrong.reset("reach_red", 0, 0)
    assert silent.observe().instruction == ""
    others = {task.instruction for name, task in env.tasks.items() if name != "reach_red"}
    assert wrong.observe().instruction in others


def test_noise_has_its_size_and_does_not_depend_on_the_cameras_asked():
    env = perturbed(FakeEnv(), "noise", 0.4)
    env.reset("reach_red", 0, 0)
    clean, noisy = env.inner.observe(), env.observe()
    middle = (clean.images["agentview"] > 100) & (clean.images["agentview"] < 160)  # far from clipping
    difference = np.subtract(noisy.images["agentview"], clean.images["agentview"], dtype=float)[middle]
    assert difference.std() == pytest.approx(20.0, rel=0.1)
    np.testing.assert_array_equal(env.observe(["wrist"]).images["wrist"], noisy.images["wrist"])
    env.step(np.zeros(7, np.float32))
    assert not np.array_equal(env.observe().images["agentview"], noisy.images["agentview"])


def test_rewording_keeps_every_name():
    verbs = {
        "pick",
        "up",
        "place",
        "put",
        "turn",
        "on",
        "off",
        "open",
        "close",
        "push",
        "press",
        "stack",
        "move",
        "pull",
    }
    for task in TASKS.values():
        for severity in (0.2, 0.5, 1.0):
            words = reword(task.instruction, severity, np.random.default_rng(3))
            assert words != task.instruction
            kept = [word for word in task.instruction.split() if word not in verbs]
            assert all(word in words for word in kept)


def test_one_and_two_workers_play_the_same_rows():
    make_env = partial(Perturbed, make_env=partial(FakeEnv, horizon=6), kind="noise", severity=0.5)
    env = make_env()
    plan = make_plan(list(env.tasks.values()), 6, "heldout", 0)
    found = []
    for workers in (1, 2):
        rows = []
        with EnvPool(make_env, num_slots=2, num_workers=workers) as pool:
            run_episodes(pool, RandomPolicy(spec=env.spec), plan, RecedingHorizon(4), rows.append)
        found.append(sorted((row.task, row.init_state, row.seed, row.success, row.steps) for row in rows))
    assert found[0] == found[1] and len(found[0]) == 6


def test_mistakes_are_named():
    with pytest.raises(UnknownNameError, match="camera"):
        Perturbed(make_env=FakeEnv, kind="camra", severity=0.5)
    with pytest.raises(GrasplineError, match="0 to 1"):
        Perturbed(make_env=FakeEnv, kind="noise", severity=1.5)
    with pytest.raises(GrasplineError, match="FakeEnv has only noise"):
        Perturbed(make_env=FakeEnv, kind="camera", severity=0.5)


def test_the_expert_of_a_perturbed_env_is_that_of_its_suite():
    env = Perturbed(make_env=FakeEnv, kind="noise", severity=1.0)
    assert type(expert_for(env)) is type(expert_for(FakeEnv()))


@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}")
def test_libero_official_starts_are_narrow_and_wide_ones_are_not():
    task = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
    env = LiberoEnv(suite="libero_object", assets=str(ASSETS), image_size=64, look="fast")
    rows = [(index, index) for index in range(5)]
    official = spread_cm(env, task, rows)
    env.reset(task, 0, 0)
    arm = env.stage().data.qpos[env.stage().arm].copy()
    wide = spread_cm(perturbed(env, "placement", 1.0), task, rows)
    assert next(iter(official)) == "alphabet_soup_1"
    assert max(official["alphabet_soup_1"]) < 1.0 < 10.0 < max(wide["alphabet_soup_1"])
    assert wide["basket_1"] == pytest.approx(official["basket_1"], abs=0.2), "containers stay"
    wrapper = perturbed(env, "placement", 1.0)
    wrapper.reset(task, 0, 0)
    np.testing.assert_array_equal(env.stage().data.qpos[env.stage().arm], arm)
    stage = env.stage()
    roots = stage.model.body_rootid[stage.model.geom_bodyid[stage.data.contact.geom]].tolist()
    loose = set(stage.movable.values())
    assert not [pair for pair in roots if set(pair) <= loose], "nothing lies on anything"
    env.close()


def test_distractors_are_six_shapes_more_in_the_picture_and_gone_afterwards(plain):
    wrapper = start(plain, "distractors", 1.0)[2]
    _, renderer = plain.stage().pictures()
    with_shapes = renderer.scene.ngeom
    done(wrapper)
    plain.observe()
    assert with_shapes - renderer.scene.ngeom == 6
