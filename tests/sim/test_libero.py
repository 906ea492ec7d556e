"""LIBERO behind our `Env`, against stock LIBERO as the oracle: same states, same pixels, to the last bit."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sim.libero import LiberoEnv
from sim.libero_setup import (
    bddl_file,
    ensure_config,
    find_assets,
    init_states_file,
    load_init_states,
    package_folder,
    suite_tasks,
)
from vla.core.errors import CorruptFileError, MissingAssetError, NonFiniteError, UnknownNameError
from vla.core.types import Observation

ROOT = Path(__file__).parents[2]
ASSETS = Path(os.environ.get("GRASPLINE_LIBERO_ASSETS") or ROOT.parent / "shared" / "libero-assets")
needs_assets = pytest.mark.skipif(
    not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}: set GRASPLINE_LIBERO_ASSETS to their folder"
)
SOUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
STOVE = "turn_on_the_stove"


def actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)


def physics(env: LiberoEnv) -> np.ndarray:
    """Everything that MuJoCo integrates: positions, velocities, controls, warm start, time."""
    assert env._scene is not None
    return env._scene._state()


def assert_same(one: Observation, other: Observation) -> None:
    np.testing.assert_array_equal(one.state_S, other.state_S)
    assert one.time_s == other.time_s and one.instruction == other.instruction
    assert one.privileged.keys() == other.privileged.keys()
    for name, value in one.privileged.items():
        np.testing.assert_array_equal(value, other.privileged[name], err_msg=name)
    for name, image in one.images.items():
        np.testing.assert_array_equal(image, other.images[name], err_msg=name)


@pytest.fixture(scope="module")
def soup():
    env = LiberoEnv(suite="libero_object", assets=str(ASSETS), image_size=128)
    yield env
    env.close()


@pytest.fixture(scope="module")
def stove():
    env = LiberoEnv(suite="libero_goal", assets=str(ASSETS))
    yield env
    env.close()


def stock(suite: str, task: str, init_state: int, **options):
    """LIBERO as the published evaluations use it."""
    ensure_config()
    import libero.libero
    from libero.libero.envs import OffScreenRenderEnv
    from libero.libero.envs.env_wrapper import ControlEnv

    libero.libero._assets_path_cache = str(ASSETS)
    kind = ControlEnv if options else OffScreenRenderEnv
    env = kind(bddl_file_name=str(bddl_file(suite, task)), camera_heights=256, camera_widths=256, **options)
    env.seed(0)
    env.reset()
    states = load_init_states(init_states_file(suite, task))
    env.set_init_state(states[init_state])
    for _ in range(10):
        raw, _, done, _ = env.step([0, 0, 0, 0, 0, 0, -1])
    return env, raw, done


# -- without assets ---------------------------------------------------------------------------------------------------


def test_tasks_have_libero_names_order_and_horizons():
    counts = {"libero_spatial": (10, 220), "libero_object": (10, 280), "libero_goal": (10, 300)}
    counts |= {"libero_10": (10, 520), "libero_90": (90, 400)}
    for suite, (count, horizon) in counts.items():
        tasks = suite_tasks(suite, 40)
        assert len(tasks) == count
        assert {task.horizon for task in tasks.values()} == {horizon}
        assert all(bddl_file(suite, name).is_file() for name in tasks)
    objects = list(suite_tasks("libero_object", 40).values())
    assert objects[0].name == SOUP
    assert objects[0].instruction == "pick up the alphabet soup and place it in the basket"
    assert (objects[0].num_init_states, objects[0].num_train_states) == (50, 40)
    kitchen = "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet"
    assert suite_tasks("libero_90", 40)[kitchen].instruction == "close the top drawer of the cabinet"


def test_unknown_suite_and_bad_arguments():
    with pytest.raises(UnknownNameError, match="libero_object"):
        LiberoEnv(suite="libero_objects")
    with pytest.raises(ValueError, match="look"):
        LiberoEnv(suite="libero_object", look="pretty")
    with pytest.raises(ValueError, match="train_states"):
        LiberoEnv(suite="libero_object", train_states=51)


def test_unknown_task_state_and_early_calls_compile_nothing():
    env = LiberoEnv(suite="libero_object", assets="/nowhere")
    with pytest.raises(UnknownNameError, match=SOUP):
        env.reset("pick_up_the_alphabet_soup", 0, 0)
    with pytest.raises(ValueError, match="50"):
        env.reset(SOUP, 50, 0)
    with pytest.raises(ValueError, match="reset"):
        env.observe()
    env.close()


def test_construction_imports_neither_torch_nor_the_simulator():
    code = (
        "import sys; from sim.libero import LiberoEnv; env = LiberoEnv(suite='libero_object'); env.tasks;"
        "assert not {'torch', 'robosuite', 'libero.libero'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdin=subprocess.DEVNULL)


def test_missing_assets_say_how_to_set_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingAssetError, match=r"env\.assets"):
        LiberoEnv(suite="libero_object", assets=str(tmp_path)).reset(SOUP, 0, 0)
    for name in ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures"):
        (tmp_path / name).mkdir()  # as an interrupted download leaves it
    with pytest.raises(MissingAssetError, match=SOUP):
        LiberoEnv(suite="libero_object", assets=str(tmp_path)).reset(SOUP, 0, 0)
    if (package_folder() / "assets").is_dir():
        pytest.skip("the installed package brings its own assets")
    monkeypatch.delenv("GRASPLINE_LIBERO_ASSETS", raising=False)

    def offline(*args: object, **options: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(MissingAssetError, match=r"env\.assets=") as caught:
        find_assets(None)
    assert "\n" not in str(caught.value)


def test_config_is_ours_and_a_users_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    ensure_config()
    folder = Path(os.environ["LIBERO_CONFIG_PATH"])
    assert folder.is_relative_to(tmp_path / "cache") and (folder / "config.yaml").is_file()
    assert not (tmp_path / "home" / ".libero").exists()

    own = tmp_path / "own"
    own.mkdir()
    (own / "config.yaml").write_text("assets: /mine\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(own))
    ensure_config()
    assert os.environ["LIBERO_CONFIG_PATH"] == str(own)
    assert (own / "config.yaml").read_text() == "assets: /mine\n"


def archive(path: Path, payload: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", payload)
    return path


class Attack:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def test_init_states_equal_torchs_own_loader():
    torch = pytest.importorskip("torch")
    path = init_states_file("libero_object", SOUP)
    np.testing.assert_array_equal(load_init_states(path), torch.load(path, weights_only=False))


def test_a_malicious_pickle_is_refused(tmp_path: Path):
    touched = tmp_path / "touched"
    for attack in (Attack(os.system, f"touch {touched}"), Attack(eval, "1"), Attack(np.fromfile, "/etc/hostname")):
        with pytest.raises(CorruptFileError, match="refused"):
            load_init_states(archive(tmp_path / "bad.pruned_init", pickle.dumps(attack, 2)))
    assert not touched.exists()
    # an allowed name, but not for what it is allowed for
    payload = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00bX\x05\x00\x00\x00rot13\x86R."
    with pytest.raises(CorruptFileError, match="rot13"):
        load_init_states(archive(tmp_path / "bad.pruned_init", payload))


def test_damaged_init_states_are_refused(tmp_path: Path):
    good = init_states_file("libero_object", SOUP).read_bytes()
    short = tmp_path / "short.pruned_init"
    short.write_bytes(good[: len(good) // 2])
    with pytest.raises(CorruptFileError):
        load_init_states(short)
    for bad in ([1, 2], np.zeros((50, 3), np.float32), np.full((50, 3), np.nan), np.zeros((49, 3))):
        with pytest.raises(CorruptFileError):
            load_init_states(archive(tmp_path / "bad.pruned_init", pickle.dumps(bad, 2)))


# -- with assets ------------------------------------------------------------------------------------------------------


@needs_assets
def test_states_equal_stock_libero_bit_for_bit(soup: LiberoEnv):
    other, raw, _ = stock("libero_object", SOUP, 7, use_camera_obs=False, has_offscreen_renderer=False)
    soup.reset(SOUP, 7, 0)
    for action in actions(30):
        np.testing.assert_array_equal(soup._scene.data.qpos, other.sim.data.qpos)
        np.testing.assert_array_equal(soup._scene.data.qvel, other.sim.data.qvel)
        seen = soup.observe(cameras=())
        np.testing.assert_array_equal(seen.privileged["eef_pos"], raw["robot0_eef_pos"])
        np.testing.assert_array_equal(seen.privileged["eef_quat"][[1, 2, 3, 0]], raw["robot0_eef_quat"])
        np.testing.assert_array_equal(seen.state_S[6:], raw["robot0_gripper_qpos"].astype(np.float32))
        for name in ("alphabet_soup_1", "basket_1"):
            np.testing.assert_array_equal(seen.privileged[f"{name}_pos"], raw[f"{name}_pos"])
        raw, _, done, _ = other.step(action.astype(np.float64))
        step = soup.step(action)
        assert step.success == done == step.terminated
    other.close()


@needs_assets
def test_the_state_has_published_axis_angles(soup: LiberoEnv):
    from robosuite.utils.transform_utils import quat2axisangle

    soup.reset(SOUP, 0, 0)
    for action in actions(5, seed=3):
        soup.step(action)
        seen = soup.observe(cameras=())
        expected = quat2axisangle(seen.privileged["eef_quat"][[1, 2, 3, 0]])
        np.testing.assert_allclose(seen.state_S[3:6], expected, rtol=1e-6, atol=1e-7)


@needs_assets
def test_pixels_fixtures_and_the_lit_stove_equal_stock_libero(stove: LiberoEnv):
    """A scene with fixtures, whose places `seed(0)` decides, and a lamp that is switched on by the knob's angle."""
    other, raw, _ = stock("libero_goal", STOVE, 2)
    stove.reset(STOVE, 2, 0)

    def compare() -> None:
        images = stove.observe().images
        np.testing.assert_array_equal(images["agentview"], raw["agentview_image"][::-1, ::-1])
        np.testing.assert_array_equal(images["wrist"], raw["robot0_eye_in_hand_image"][::-1, ::-1])

    np.testing.assert_array_equal(stove._scene.model.body_pos, other.sim.model._model.body_pos)
    compare()
    knob = stove._scene.model.joint("flat_stove_1_button").qposadr
    stove._scene.data.qpos[knob] = other.sim.data.qpos[knob] = 1
    for _ in range(2):  # the lamp is seen one step after the task has ended
        raw, _, done, _ = other.step(np.zeros(7))
        assert stove.step(np.zeros(7, np.float32)).success and done
        compare()
    lit = stove._scene.model.site_rgba.copy()
    stove.reset(STOVE, 2, 0)
    assert (lit != stove._scene.model.site_rgba).any()
    other.sim._render_context_offscreen.gl_ctx.make_current()  # else robosuite frees textures of our context
    other.close()


@needs_assets
def test_an_episode_does_not_depend_on_those_before(soup: LiberoEnv):
    soup.reset(SOUP, 21, 0)
    for action in actions(40, seed=1):  # a history: closed gripper, arm in the basket, rotated goal
        soup.step(action)
    soup.step(np.ones(7))
    soup.observe()
    fresh = LiberoEnv(suite="libero_object", assets=str(ASSETS), image_size=128)
    for env in (soup, fresh):
        np.random.seed(5 if env is soup else 6)  # the global generator must not matter
        env.reset(SOUP, 4, 11)
    for action in actions(25, seed=2):
        np.testing.assert_array_equal(physics(soup), physics(fresh))
        soup.observe(cameras=("wrist",) if action[0] > 0.8 else ())  # looking must not matter either
        soup.step(action)
        fresh.step(action)
    assert_same(soup.observe(), fresh.observe())
    fresh.close()


@needs_assets
@pytest.mark.parametrize("before", [0, 7])
def test_restore_continues_bit_for_bit(soup: LiberoEnv, before: int):
    soup.reset(SOUP, 1, 0)
    for action in actions(before, seed=4):
        soup.step(action)
    saved, seen = soup.snapshot(), soup.observe()
    after = actions(12, seed=5)
    first = [(soup.step(action), physics(soup))[1] for action in after]
    soup.reset(SOUP, 30, 0)
    soup.step(np.ones(7))
    soup.restore(saved)
    assert_same(seen, soup.observe())
    assert soup.snapshot() == saved
    second = [(soup.step(action), physics(soup))[1] for action in after]
    np.testing.assert_array_equal(first, second)


@needs_assets
def test_restore_without_settling_and_bad_snapshots(soup: LiberoEnv, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(soup, "_settle_steps", 0)
    soup.reset(SOUP, 0, 0)
    saved, seen = soup.snapshot(), soup.observe(cameras=())
    after = actions(5)
    first = [(soup.step(action), physics(soup))[1] for action in after]
    soup.restore(saved)
    assert_same(seen, soup.observe(cameras=()))
    np.testing.assert_array_equal(first, [(soup.step(action), physics(soup))[1] for action in after])
    for bad in (b"", saved[:-100], saved.replace(b"libero_object", b"libero_spatia")):
        with pytest.raises(CorruptFileError):
            soup.restore(bad)


@needs_assets
def test_step_clips_refuses_nan_and_truncates(soup: LiberoEnv):
    soup.reset(SOUP, 0, 0)
    before = physics(soup)
    with pytest.raises(NonFiniteError, match="dx"):
        soup.step(np.array([np.nan, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(before, physics(soup))
    step = soup.step(np.array([9, -9, 0.5, 0, 0, 0, 3]))
    np.testing.assert_array_equal(step.executed_A, np.float32([1, -1, 0.5, 0, 0, 0, 1]))
    soup._steps = soup.tasks[SOUP].horizon - 2
    assert not soup.step(np.zeros(7)).truncated
    last = soup.step(np.zeros(7))
    assert last.truncated and not last.terminated and not last.success


@needs_assets
def test_observe_fits_the_spec_and_renders_only_what_is_asked(soup: LiberoEnv):
    soup.reset(SOUP, 0, 0)
    seen = soup.observe()
    soup.spec.validate(seen)
    assert all(image.std() > 10 for image in seen.images.values())
    assert soup.observe(cameras=()).images == {}
    assert list(soup.observe(cameras=("wrist",)).images) == ["wrist"]
    with pytest.raises(UnknownNameError, match="agentview"):
        soup.observe(cameras=("agentviev",))
    assert not seen.privileged["grasp_alphabet_soup_1"]
    assert seen.time_s < (soup.step(np.zeros(7)), soup.observe(cameras=()).time_s)[1]


@needs_assets
def test_a_task_builds_without_standard_input_or_home(tmp_path: Path):
    code = (
        "from sim.libero import LiberoEnv; import sys, numpy as np;"
        f"env = LiberoEnv(suite='libero_object', assets={str(ASSETS)!r}); env.reset({SOUP!r}, 0, 0);"
        "assert 'torch' not in sys.modules; env.close()"
    )
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "MUJOCO_GL": "egl", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=home, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


@needs_assets
def test_the_fast_look_changes_pixels_alone(stove: LiberoEnv):
    fast = LiberoEnv(suite="libero_goal", assets=str(ASSETS), look="fast")
    for env in (stove, fast):
        env.reset(STOVE, 3, 0)
        for action in actions(10):
            env.step(action)
    np.testing.assert_array_equal(physics(stove), physics(fast))
    one, other = stove.observe(), fast.observe()
    np.testing.assert_array_equal(one.state_S, other.state_S)
    for name, image in one.images.items():  # the same scene from the same place, things where they were
        assert 0 < np.abs(image.astype(float) - other.images[name]).mean() < 20
        blurred = [picture.reshape(16, 16, 16, 16, 3).mean((1, 3)) for picture in (image, other.images[name])]
        assert np.corrcoef(blurred[0].ravel(), blurred[1].ravel())[0, 1] > 0.95
    fast.close()


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"])
def test_every_task_starts(suite: str):
    env = LiberoEnv(suite=suite, assets=str(ASSETS))
    for name in env.tasks:
        env.reset(name, 49, 0)
        env.step(np.zeros(7))
        env.spec.validate(env.observe(cameras=()), cameras=())
    env.close()
