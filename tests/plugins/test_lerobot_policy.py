"""Our policies in lerobot: found as a plugin, converted exactly, played by `lerobot-eval` as we play them."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.policies import make_pre_post_processors
from lerobot.policies.factory import get_policy_class, make_policy
from lerobot.processor.env_processor import LiberoProcessorStep
from lerobot.utils.import_utils import register_third_party_plugins

from sim.libero import LiberoEnv, libero_panda
from sim.libero_setup import ensure_config, suite_tasks
from vla.core.errors import SpecMismatchError, UnknownNameError
from vla.core.spec import Embodiment
from vla.core.types import Observation
from vla.data.transforms import Transforms
from vla.policies.load import load_policy, policy_hash, save_policy
from vla.policies.tiny import tiny_policy
from vla.policies.vla import VLAPolicy
from vla.rollout.runner import act_seed

ROOT = Path(__file__).parents[2]
ASSETS = Path(os.environ.get("GRASPLINE_LIBERO_ASSETS") or ROOT.parent / "shared" / "libero-assets")
PX, HORIZON, PLAYED = 48, 5, 3
SPEC = libero_panda(PX)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a tiny policy that was never trained."""
    rng = np.random.default_rng(0)
    actions_NA = np.concatenate([SPEC.random_chunk(rng, 25).actions_HA for _ in range(2)])
    transforms = Transforms.fit(SPEC, rng.standard_normal((50, 8)).astype(np.float32), actions_NA)
    small = {"width": 32, "layers": 1, "heads": 2, "image_size": 32, "channels": (8, 16)}
    torch.manual_seed(0)
    policy = tiny_policy(spec=SPEC, transforms=transforms, cameras=SPEC.camera_names, horizon=HORIZON, **small)
    folder = tmp_path_factory.mktemp("run")
    save_policy(folder, policy)
    return folder


@pytest.fixture(scope="module")
def config_of(run: Path) -> Callable[..., PreTrainedConfig]:
    """The config as lerobot makes it of `--policy.type=graspline --policy.run=...`, the plugin found by lerobot."""
    register_third_party_plugins()
    graspline = PreTrainedConfig.get_choice_class("graspline")
    return lambda **fields: graspline(**{"run": str(run), "device": "cpu", "n_action_steps": PLAYED, **fields})


@pytest.fixture
def policy(config_of: Callable[..., PreTrainedConfig]) -> Any:
    return get_policy_class("graspline")(config_of())


def as_lerobot_sees(observations: list[Observation]) -> dict[str, Any]:
    """What lerobot's LIBERO env and its processors would make of the same moment: raw images are upside down."""
    names = {"agentview": "image", "wrist": "image2"}
    raw = {
        "pixels": {new: np.stack([o.images[name][::-1, ::-1] for o in observations]) for name, new in names.items()},
        "robot_state": {
            "eef": {
                "pos": np.stack([o.state_S[:3] for o in observations]),
                "quat": np.stack([quaternion(o.state_S[3:6]) for o in observations]),
            },
            "gripper": {"qpos": np.stack([o.state_S[6:] for o in observations])},
        },
    }
    batch = preprocess_observation(raw)
    batch["task"] = [o.instruction for o in observations]
    return LiberoProcessorStep().observation(batch)


def quaternion(vector: np.ndarray) -> np.ndarray:
    """x, y, z, w of a rotation vector."""
    angle = np.linalg.norm(vector).astype(np.float64)
    return np.append(np.sin(angle / 2) * vector / angle, np.cos(angle / 2))


def seen(count: int, spec: Embodiment = SPEC) -> list[Observation]:
    return [spec.random(np.random.default_rng(number), instruction=f"task {number}") for number in range(count)]


def ours(run: Path) -> VLAPolicy:
    return load_policy(run)


def test_lerobot_finds_it_by_its_name(config_of: Callable[..., PreTrainedConfig]) -> None:
    """With underscores, or it would not be found."""
    assert distribution("lerobot_policy_graspline").metadata["Name"] == "lerobot_policy_graspline"
    assert config_of().type == "graspline"


def test_the_same_actions_for_the_same_observations(policy: Any, run: Path) -> None:
    observations = seen(3)
    seeds = [act_seed(1000 + row, 0) for row in range(3)]
    expected_BHA = np.stack([chunk.actions_HA for chunk in ours(run).act(observations, seeds)])
    chunk_BHA = policy.predict_action_chunk(as_lerobot_sees(observations))
    np.testing.assert_allclose(chunk_BHA.numpy(), expected_BHA, atol=1e-5)
    assert (expected_BHA[0] != expected_BHA[1]).any()


def test_conversion_is_exact(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images to the last bit; the state within float32, since lerobot computes the rotation vector in it."""
    observations, given = seen(2), []
    act = policy.policy.act
    monkeypatch.setattr(policy.policy, "act", lambda rows, seeds: given.append((rows, seeds)) or act(rows, seeds))
    policy.predict_action_chunk(as_lerobot_sees(observations))
    rows, seeds = given[0]
    for row, observation in zip(rows, observations, strict=True):
        assert row.images.keys() == observation.images.keys()
        for name, image in observation.images.items():
            np.testing.assert_array_equal(row.images[name], image)
        np.testing.assert_allclose(row.state_S, observation.state_S, atol=1e-5)
        assert row.instruction == observation.instruction and row.time_s == 0.0
    assert seeds == [act_seed(1000, 0), act_seed(1001, 0)]


def test_a_chunk_is_played_before_the_next(policy: Any) -> None:
    first, later = as_lerobot_sees(seen(2)), as_lerobot_sees(seen(4)[2:])
    chunk_BHA, next_BHA = policy.predict_action_chunk(first), policy.predict_action_chunk(later)
    policy.reset()
    for step in range(PLAYED):
        action_BA = policy.select_action(first if step == 0 else later)
        torch.testing.assert_close(action_BA, chunk_BHA[:, step])
    torch.testing.assert_close(policy.select_action(later), next_BHA[:, 0])
    policy.reset()
    torch.testing.assert_close(policy.select_action(first), chunk_BHA[:, 0])


def test_each_episode_has_its_own_seed(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, act, batch = [], policy.policy.act, as_lerobot_sees(seen(2))
    monkeypatch.setattr(policy.policy, "act", lambda rows, seeds: given.extend(seeds) or act(rows, seeds))
    for _ in range(2):
        policy.reset()
        for _ in range(PLAYED + 1):
            policy.select_action(batch)
    assert given == [
        act_seed(episode, step) for first in (1000, 1002) for step in (0, PLAYED) for episode in (first, first + 1)
    ]


def test_other_sizes_are_resized_and_told(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    large = libero_panda(2 * PX)
    images = {name: np.full((2 * PX, 2 * PX, 3), 77, np.uint8) for name in large.camera_names}
    state_S = seen(1)[0].state_S
    plain = Observation(images=images, state_S=state_S, instruction="do", time_s=0.0)
    small = Observation(
        images={name: image[::2, ::2] for name, image in images.items()}, state_S=state_S, instruction="do", time_s=0.0
    )
    with caplog.at_level(logging.WARNING):
        chunk_BHA = policy.predict_action_chunk(as_lerobot_sees([plain]))
    torch.testing.assert_close(chunk_BHA, policy.predict_action_chunk(as_lerobot_sees([small])))
    assert f"--env.observation_height={PX}" in caplog.text


def test_what_does_not_fit_is_said(policy: Any, config_of: Callable[..., PreTrainedConfig]) -> None:
    batch = as_lerobot_sees(seen(1))
    with pytest.raises(SpecMismatchError, match="state has shape"):
        policy.predict_action_chunk({**batch, "observation.state": torch.zeros(1, 6)})
    del batch["observation.images.image2"]
    with pytest.raises(UnknownNameError, match="image for camera 'wrist'"):
        policy.predict_action_chunk(batch)
    with pytest.raises(ValueError, match=r"policy\.n_action_steps is 0"):
        config_of(n_action_steps=0)
    with pytest.raises(ValueError, match=r"--policy\.run="):
        get_policy_class("graspline")(config_of(run=None))


def test_an_exported_folder_loads_by_its_path(
    config_of: Callable[..., PreTrainedConfig], run: Path, tmp_path: Path
) -> None:
    """As `lerobot-eval --policy.path=...` does it; and the folder is a run directory of ours, with the same hash."""
    from lerobot.envs.configs import LiberoEnv as TheirConfig
    from lerobot_policy_graspline.modeling_graspline import export

    export(run, tmp_path, n_action_steps=2)
    assert policy_hash(tmp_path) == policy_hash(run)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--device=cpu"])
    config.pretrained_path = tmp_path
    policy = make_policy(config, env_cfg=TheirConfig(task="libero_object", observation_height=PX, observation_width=PX))
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    before, after = make_pre_post_processors(config, str(tmp_path), preprocessor_overrides=overrides)
    batch = as_lerobot_sees(seen(2))
    expected_BHA = get_policy_class("graspline")(config_of()).predict_action_chunk(batch)
    for step in range(2):
        torch.testing.assert_close(after(policy.select_action(before(dict(batch)))), expected_BHA[:, step])
    assert config.n_action_steps == 2 and json.loads((tmp_path / "config.json").read_text())["run"] is None


@pytest.fixture
def libero_of_lerobot() -> Iterator[None]:
    """lerobot's own LIBERO env asks the package for its assets, which otherwise asks the Hub."""
    ensure_config()
    import libero.libero as package

    before, package._assets_path_cache = package._assets_path_cache, str(ASSETS)
    yield
    package._assets_path_cache = before


@pytest.mark.slow
@pytest.mark.skipif(not ASSETS.is_dir(), reason=f"no LIBERO assets in {ASSETS}: set GRASPLINE_LIBERO_ASSETS")
@pytest.mark.usefixtures("libero_of_lerobot")
def test_lerobot_eval_plays_what_we_play(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same task, state and seed: lerobot's entry point and our env show the same pixels, play the same actions."""
    from lerobot.envs.libero import LiberoEnv as TheirEnv
    from lerobot.scripts import lerobot_eval

    steps, images, played = 7, [], []
    step, reset = TheirEnv.step, TheirEnv.reset

    def watched_step(env: Any, action_A: np.ndarray) -> Any:
        played.append(action_A.copy())
        return step(env, action_A)

    def watched_reset(env: Any, **options: Any) -> Any:
        observation, info = reset(env, **options)
        images.append(observation["pixels"])
        return observation, info

    monkeypatch.setattr(TheirEnv, "step", watched_step)
    monkeypatch.setattr(TheirEnv, "reset", watched_reset)
    words = {
        "policy.type": "graspline",
        "policy.run": run,
        "policy.device": "cpu",
        "policy.n_action_steps": PLAYED,
        "policy.seed": 0,
        "seed": 0,
        "env.type": "libero",
        "env.task": "libero_object",
        "env.task_ids": "[0]",
        "env.episode_length": steps,
        "env.observation_height": PX,
        "env.observation_width": PX,
        "eval.n_episodes": 1,
        "eval.batch_size": 1,
        "output_dir": tmp_path / "eval",
    }
    monkeypatch.setattr("sys.argv", ["lerobot-eval", *(f"--{key}={value}" for key, value in words.items())])
    lerobot_eval.main()
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())

    env, policy, succeeded = LiberoEnv(suite="libero_object", assets=str(ASSETS), image_size=PX), ours(run), False
    env.reset(next(iter(suite_tasks("libero_object", 40))), 0, 0)
    for name, theirs in (("agentview", "image"), ("wrist", "image2")):
        np.testing.assert_array_equal(env.observe().images[name], images[0][theirs][::-1, ::-1])
    for number in range(steps):
        if number % PLAYED == 0:
            [chunk] = policy.act([env.observe()], [act_seed(0, number)])
        np.testing.assert_allclose(played[number], chunk.actions_HA[number % PLAYED], atol=1e-5)
        succeeded = env.step(
            played[number]
        ).success  # theirs, so that the last digit of a state never grows into pixels
    env.close()
    assert len(played) == steps and info["per_task"][0]["metrics"]["successes"] == [succeeded]
