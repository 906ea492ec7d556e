"""Protocols: each constant beside an independent copy of it, and results that never wear a name they do not deserve."""

import ast
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from scripts.entry import CONFIG_DIR, entry
from scripts.evaluate import main
from sim.libero import LiberoEnv
from sim.libero_setup import HORIZONS, bddl_file, ensure_config
from vla.core.errors import GrasplineError, UnknownNameError
from vla.rollout.protocol import Protocol

ASSETS = Path(os.environ.get("GRASPLINE_LIBERO_ASSETS") or Path(__file__).parents[4] / "shared" / "libero-assets")
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}: set GRASPLINE_LIBERO_ASSETS to their folder"
)
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
STOVE = "turn_on_the_stove"


def published(name: str, **changes: Any) -> Protocol:
    return instantiate(
        OmegaConf.merge(OmegaConf.load(CONFIG_DIR / "protocol" / f"{name}.yaml"), changes), _convert_="all"
    )


def evaluate(out: Path, *overrides: str) -> str | None:
    """Runs the script in this process; None, or the line with which it fails."""
    try:
        entry("evaluate", main, [f"out={out}", "workers=0", "batch=1", "videos=0", *overrides])
    except SystemExit as stop:
        return str(stop.code)
    return None


@pytest.mark.parametrize(
    ("name", "horizons", "size", "scene_seed", "trials", "seed", "execute"),
    [
        ("openvla", (220, 280, 300, 520, 400), 256, 0, 50, 7, 8),
        ("openpi", (220, 280, 300, 520, 400), 256, 7, 50, 7, 5),
        ("lerobot", (280, 280, 300, 520, 400), 360, None, 10, 1000, None),
        ("simplevla_rl", (512, 512, 512, 512, 512), 256, 0, 50, 0, 8),
    ],
)
def test_constants(
    name: str, horizons: tuple[int, ...], size: int, scene_seed: int, trials: int, seed: int, execute: int
) -> None:
    protocol = published(name)
    assert protocol.name == name and protocol.source
    assert protocol.horizons == dict(zip(SUITES, horizons, strict=True))
    assert (protocol.image_size, protocol.scene_seed, protocol.trials) == (size, scene_seed, trials)
    assert (protocol.seed, protocol.execute, protocol.settle_steps) == (seed, execute, 10)
    assert (protocol.image_rotation_deg, protocol.init_states, protocol.look) == (180, "all", "original")


def test_every_protocol_is_tested_above() -> None:
    assert {path.stem for path in (CONFIG_DIR / "protocol").glob("*.yaml")} == {
        "openvla", "openpi", "lerobot", "simplevla_rl"
    }  # fmt: skip
    assert published("openvla").horizons == HORIZONS


def test_lerobot_agrees_with_its_source() -> None:
    """The installed lerobot, read and not run: its LIBERO module wants things that are not installed."""
    found = importlib.util.find_spec("lerobot")
    assert found is not None and found.submodule_search_locations
    package = Path(found.submodule_search_locations[0])

    def value(path: str, name: str, owner: str | None = None) -> Any:
        """The plain value that a file, or a class in it, gives to a name: as a field or as an argument's default."""
        tree = ast.parse((package / path).read_text())
        [top] = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner] or [tree]
        values = []
        for node in ast.walk(top):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                values.append(node.value)
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                values += [d for a, d in zip(arguments, node.args.defaults) if a.arg == name]
        [only] = values
        return ast.literal_eval(only)

    protocol = published("lerobot")
    assert protocol.horizons == value("envs/libero.py", "TASK_SUITE_MAX_STEPS")
    assert protocol.settle_steps == value("envs/libero.py", "num_steps_wait", "LiberoEnv")
    assert protocol.image_size == value("envs/configs.py", "observation_height", "LiberoEnv")
    assert protocol.seed == value("configs/eval.py", "seed")


@pytest.mark.parametrize("name", ["openvla", "lerobot"])
@pytest.mark.parametrize("suite", SUITES)
def test_the_env_takes_what_a_protocol_sets(name: str, suite: str) -> None:
    protocol = published(name)
    env = LiberoEnv(suite=suite, **protocol.env(suite))
    assert {task.horizon for task in env.tasks.values()} == {protocol.horizons[suite]}
    assert {(camera.height, camera.width) for camera in env.spec.cameras} == {(protocol.image_size,) * 2}


def test_trial_i_starts_from_state_i() -> None:
    env = LiberoEnv(suite="libero_spatial", train_states=40)
    tasks = list(env.tasks.values())
    plan = published("openvla").plan(tasks)
    assert len(plan) == len(set(plan)) == 500
    assert [(row.init_state, row.seed) for row in plan if row.task == tasks[3].name] == [(i, 7 + i) for i in range(50)]
    assert len(published("lerobot").plan(tasks)) == 100
    some = published("lerobot").plan(tasks[:2], episodes=5)
    assert [(row.init_state, row.seed) for row in some] == [(0, 1000), (1, 1001), (2, 1002), (0, 1000), (1, 1001)]
    assert {row.init_state for row in published("openvla", init_states="heldout").plan(tasks)} == set(range(40, 50))


def test_the_name_is_only_the_published_one_if_nothing_was_changed() -> None:
    told = published("openvla").describe(published("openvla"))
    assert told["name"] == "openvla" and told["constants"]["horizons"]["libero_10"] == 520
    assert json.loads(json.dumps(told)) == told
    told = published("openvla", execute=5, image_size=128).describe(published("openvla"), ["episodes"])
    assert told["name"] == "openvla (changed: image_size, execute, episodes)"
    assert told["constants"]["execute"] == 5


def test_constants_out_of_range_are_refused() -> None:
    for field, value in {
        "image_rotation_deg": 0,
        "execute": 0,
        "trials": 0,
        "settle_steps": -1,
        "image_size": "x",
    }.items():
        fields = {**OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "protocol" / "openvla.yaml")), field: value}  # pyright: ignore
        fields.pop("_target_")
        with pytest.raises(GrasplineError, match=f"protocol.{field}"):
            Protocol(**fields)
    with pytest.raises(UnknownNameError, match="Did you mean 'libero_goal'"):
        published("openvla").env("libero_gaol")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("env=libero_goal", "protocol=openvl"), "Did you mean 'openvla'"),
        (("env=tabletop", "protocol=openvla"), "protocol=openvla is one of LIBERO"),
        (("env=libero_goal", "protocol=openvla", "env.image_size=128"), "write protocol.image_size=128 instead"),
        (("env=libero_goal", "protocol=openvla", "protocol.execute=0"), "protocol.execute is 0"),
        (("env=libero_goal", "protocol=openvla", "protocol.name=mine"), "unknown protocol.name 'mine'"),
        (("env=libero_goal", "protocol=openvla", "init_states=some"), "unknown init_states 'some'"),
    ],
)
def test_a_mistake_is_one_line(overrides: tuple[str, ...], words: str, tmp_path: Path) -> None:
    line = evaluate(tmp_path / "out", "policy=zero", *overrides)
    assert line is not None and words in line and "\n" not in line
    assert not (tmp_path / "out").exists()


@needs_assets
def test_results_carry_the_protocol_and_where_they_come_from(tmp_path: Path) -> None:
    short = ("protocol.horizons.libero_goal=3", "protocol.settle_steps=1", "protocol.image_size=32", "execute=2")
    common = ("env=libero_goal", f"env.assets={ASSETS}", "policy=zero", f"tasks=[{STOVE}]", "protocol=openpi")
    assert evaluate(tmp_path, *common, "episodes=2", *short) is None
    provenance = json.loads((tmp_path / "results.json").read_text())["provenance"]
    told = provenance["protocol"]
    changed = "horizons, settle_steps, image_size, execute, tasks, episodes"
    assert told["name"] == f"openpi (changed: {changed})"
    assert told["constants"]["scene_seed"] == provenance["env"]["scene_seed"] == 7
    assert told["tasks"] == {STOVE: {"max_steps": 3}} and provenance["env"]["image_size"] == 32
    assert told["init_states"] == "all" and told["seed"] == 7 and told["episodes"] == 2
    assert provenance["hardware"]["cpu"] and isinstance(provenance["hardware"]["gpus"], list)
    assert provenance["software"]["mujoco"] and provenance["gl_renderer"]


@needs_assets
def test_the_scene_seed_is_libero_s() -> None:
    """openpi's scenes are those of stock LIBERO after `env.seed(7)`; fixtures stand elsewhere than after 0."""
    ensure_config()
    import libero.libero
    from libero.libero.envs.env_wrapper import ControlEnv

    libero.libero._assets_path_cache = str(ASSETS)  # pyright: ignore[reportAttributeAccessIssue]
    file = str(bddl_file("libero_goal", STOVE))
    stock = ControlEnv(bddl_file_name=file, use_camera_obs=False, has_offscreen_renderer=False)
    places = {}
    try:
        for seed in (0, 7):
            stock.seed(seed)
            stock.reset()
            places[seed] = stock.sim.model.body_pos.copy()
    finally:
        stock.close()
    assert np.abs(places[0] - places[7]).max() > 0.001
    env = LiberoEnv(suite="libero_goal", assets=str(ASSETS), image_size=32, settle_steps=0, scene_seed=None)
    try:
        env.reset(STOVE, 0, seed=7)
        assert env._scene is not None
        np.testing.assert_array_equal(env._scene.model.body_pos, places[7])
        snapshot = env.snapshot()
        env.reset(STOVE, 0, seed=0)
        np.testing.assert_array_equal(env._scene.model.body_pos, places[0])
        env.restore(snapshot)
        np.testing.assert_array_equal(env._scene.model.body_pos, places[7])
    finally:
        env.close()
