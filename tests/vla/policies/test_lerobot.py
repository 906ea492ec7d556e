"""lerobot's ACT, trained by lerobot's classes on a dataset of ours, behind our Policy. The oracle is lerobot itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies import make_policy, make_pre_post_processors, prepare_observation_for_inference
from lerobot.policies.act.configuration_act import ACTConfig
from safetensors.torch import load_file, save_file

from scripts.entry import entry
from scripts.evaluate import main
from sim.fake import FAKE, FakeEnv, FakeExpert
from sim.vector import EnvPool
from vla.core.errors import (
    CorruptFileError,
    GrasplineError,
    MissingAssetError,
    NonFiniteError,
    SpecMismatchError,
    UnknownNameError,
)
from vla.core.spec import Embodiment
from vla.core.types import Observation
from vla.data.lerobot import write_dataset
from vla.policies.lerobot import LeRobotPolicy, lerobot_hash
from vla.rollout.collect import Perturbation, record_episode
from vla.rollout.executor import RecedingHorizon
from vla.rollout.runner import EpisodePlan, EpisodeResult, run_episodes

CHUNK, STEPS = 6, 3
SMALL = {
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 16,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "pretrained_backbone_weights": None,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ACT after a few steps on two episodes of the expert, saved as lerobot's trainer saves it."""
    root = tmp_path_factory.mktemp("lerobot")
    env, rng = FakeEnv(), np.random.default_rng(0)
    rows = [EpisodePlan("reach_red", init_state, init_state) for init_state in range(2)]
    write_dataset([record_episode(env, FakeExpert(), row, Perturbation(), rng) for row in rows], root / "dataset", FAKE)
    meta = LeRobotDatasetMetadata("fake", root=root / "dataset")
    config = ACTConfig(chunk_size=CHUNK, n_action_steps=CHUNK, **SMALL)
    torch.manual_seed(0)
    policy = make_policy(config, ds_meta=meta)
    before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
    window = {"action": [step / meta.fps for step in range(CHUNK)]}
    dataset = LeRobotDataset("fake", root=root / "dataset", delta_timestamps=window, video_backend="pyav")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    batches = iter(torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True))
    policy.train()
    losses = []
    for _ in range(STEPS):
        loss, _ = policy.forward(before(next(batches)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    folder = root / "pretrained_model"
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(trained: Path) -> LeRobotPolicy:
    return LeRobotPolicy(trained, spec=FAKE)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict], None]) -> None:
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def observations(count: int) -> list[Observation]:
    return [FAKE.random(np.random.default_rng(seed)) for seed in range(count)]


def test_the_actions_are_those_that_lerobot_would_play(policy: LeRobotPolicy, trained: Path) -> None:
    """Its own policy, processors and queue, one action at a time; then our bounds and the gripper's two values."""
    config = ACTConfig.from_pretrained(trained)
    config.pretrained_path = trained
    theirs = make_policy(config, ds_meta=LeRobotDatasetMetadata("fake", root=trained.parent / "dataset"))
    before, after = make_pre_post_processors(config, pretrained_path=str(trained))
    [seen] = observations(1)
    expected_HA = []
    for _ in range(CHUNK):
        arrays = {f"observation.images.{name}": image.copy() for name, image in seen.images.items()}
        arrays["observation.state"] = seen.state_S.copy()
        batch = prepare_observation_for_inference(arrays, torch.device("cpu"), seen.instruction)
        with torch.inference_mode():
            expected_HA.append(after(theirs.select_action(before(batch)))[0].numpy())
    [chunk] = policy.act([seen], [0])
    np.testing.assert_allclose(chunk.actions_HA[:, :6], np.clip(expected_HA, -1, 1)[:, :6], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(chunk.actions_HA[:, 6], np.where(np.array(expected_HA)[:, 6] > 0, 1, -1))
    assert (chunk.start_s, chunk.dt_s, chunk.actions_HA.dtype) == (seen.time_s, 0.05, np.float32)
    assert (policy.horizon, policy.cameras) == (CHUNK, ("agentview", "wrist"))


def test_a_row_depends_on_itself_alone(policy: LeRobotPolicy) -> None:
    one, other = observations(2)
    together, alone = policy.act([one, other], [1, 2]), policy.act([other], [2])
    np.testing.assert_array_equal(together[1].actions_HA, alone[0].actions_HA)
    assert (together[0].actions_HA != together[1].actions_HA).any()


def test_a_policy_that_samples_draws_from_the_seed(policy: LeRobotPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy._policy, "predict_action_chunk", lambda batch: torch.randn(1, CHUNK, 7))
    [one] = observations(1)
    state = torch.get_rng_state()
    first, again, other = (policy.act([one], [seed])[0].actions_HA for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (torch.get_rng_state() == state).all()


def test_it_is_evaluated_like_any_other(policy: LeRobotPolicy) -> None:
    plan = [EpisodePlan("reach_red", 40 + row, row) for row in range(3)]
    played = []
    for slots in (1, 3):
        results: list[EpisodeResult] = []
        with EnvPool(lambda: FakeEnv(horizon=7), num_slots=slots, num_workers=0) as pool:
            run_episodes(pool, policy, plan, RecedingHorizon(4), results.append)
        played.append(sorted((row.init_state, row.success, row.steps, row.error) for row in results))
    assert played[0] == played[1] and all(error is None for *_, error in played[0])


def test_the_evaluation_script_takes_its_folder(trained: Path, tmp_path: Path) -> None:
    overrides = ("env=fake", "tasks=reach_red", "episodes=2", "workers=0", "videos=0")
    entry("evaluate", main, [*overrides, f"policy={trained}", f"out={tmp_path}"])
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["total"]["episodes"] == 2 and content["errors"] == 0
    assert content["provenance"]["policy"]["hash"] == lerobot_hash(trained)
    assert content["provenance"]["protocol"]["execute"] == CHUNK


def test_other_names_of_cameras(policy: LeRobotPolicy, copy: Path) -> None:
    """lerobot's LIBERO calls them image and image2: taken in their order, or as a table says."""
    for name, new in (("agentview", "image"), ("wrist", "image2")):
        for path in copy.glob("*.json"):
            path.write_text(path.read_text().replace(f"observation.images.{name}", f"observation.images.{new}"))
        for path in copy.glob("policy_*.safetensors"):
            edit_tensors(path, lambda each: {k.replace(f"images.{name}.", f"images.{new}."): each[k] for k in each})  # noqa: B023
    seen = observations(1)
    ordered, swapped = (
        LeRobotPolicy(copy, spec=FAKE, cameras=cameras) for cameras in (None, {"image": "wrist", "image2": "agentview"})
    )
    [expected], [chunk], [other] = policy.act(seen, [0]), ordered.act(seen, [0]), swapped.act(seen, [0])
    assert ordered.cameras == ("agentview", "wrist") and swapped.cameras == ("wrist", "agentview")
    np.testing.assert_array_equal(chunk.actions_HA, expected.actions_HA)
    assert (other.actions_HA != expected.actions_HA).any()
    with pytest.raises(UnknownNameError, match="Did you mean 'wrist'"):
        LeRobotPolicy(copy, spec=FAKE, cameras={"image": "wriste"})


@pytest.mark.parametrize(
    "step",
    [
        {"class": "evil.Step"},
        {"class": "evil.Step", "registry_name": "device_processor"},
        {"registry_name": "action_tokenizer_processor"},
    ],
)
@pytest.mark.parametrize("file", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_a_file_cannot_name_code(
    step: dict[str, str], file: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(copy / file, lambda described: described["steps"].append({**step, "config": {}}))
    with pytest.raises(UnknownNameError, match=file):
        LeRobotPolicy(copy, spec=FAKE)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_run_here_is_refused(copy: Path) -> None:
    config = copy / "config.json"
    edit(config, lambda each: each.update(n_obs_steps=2))
    with pytest.raises(GrasplineError, match="n_obs_steps is 2"):
        LeRobotPolicy(copy, spec=FAKE)
    edit(config, lambda each: each.update(n_obs_steps=1, use_peft=True))
    with pytest.raises(GrasplineError, match="use_peft is true"):
        LeRobotPolicy(copy, spec=FAKE)
    edit(config, lambda each: each.update(type="pi0_fast"))
    with pytest.raises(GrasplineError, match=r"'pi0_fast', the types .* act, smolvla"):
        LeRobotPolicy(copy, spec=FAKE)
    edit(config, lambda each: each.update(type="act", use_peft=False, chunk_sise=5))
    with pytest.raises(CorruptFileError, match="chunk_sise"):
        LeRobotPolicy(copy, spec=FAKE)
    config.write_text("{")
    with pytest.raises(CorruptFileError, match="not JSON"):
        LeRobotPolicy(copy, spec=FAKE)


def test_weights_and_statistics_are_all_there(copy: Path) -> None:
    [statistics] = copy.glob("policy_preprocessor_*.safetensors")
    whole = statistics.read_bytes()
    edit_tensors(statistics, lambda each: {k: v for k, v in each.items() if not k.startswith("observation.state.")})
    with pytest.raises(CorruptFileError, match=r"no statistics of observation\.state"):
        LeRobotPolicy(copy, spec=FAKE)
    statistics.unlink()
    with pytest.raises(MissingAssetError, match=statistics.name):
        LeRobotPolicy(copy, spec=FAKE)
    statistics.write_bytes(whole)
    weights = copy / "model.safetensors"
    edit_tensors(weights, lambda each: {k: each[k] for k in sorted(each)[1:]})
    with pytest.raises(CorruptFileError, match="Missing key"):
        LeRobotPolicy(copy, spec=FAKE)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        LeRobotPolicy(copy, spec=FAKE)
    weights.unlink()
    with pytest.raises(MissingAssetError, match=r"model\.safetensors"):
        LeRobotPolicy(copy, spec=FAKE)
    (copy / "policy_postprocessor.json").unlink()
    with pytest.raises(MissingAssetError, match="migrate_policy_normalization"):
        LeRobotPolicy(copy, spec=FAKE)


def test_a_state_file_is_one_of_the_folder(copy: Path) -> None:
    def outside(described: dict) -> None:
        for step in described["steps"]:
            if "state_file" in step:
                step["state_file"] = "../" + step["state_file"]

    edit(copy / "policy_preprocessor.json", outside)
    with pytest.raises(CorruptFileError, match="not the name of a file in this folder"):
        LeRobotPolicy(copy, spec=FAKE)


def test_weights_of_nan_move_nothing(copy: Path) -> None:
    edit_tensors(copy / "model.safetensors", lambda each: {k: torch.full_like(v, torch.nan) for k, v in each.items()})
    with pytest.raises(NonFiniteError):
        LeRobotPolicy(copy, spec=FAKE).act(observations(1), [0])


@pytest.mark.parametrize("field", ["cameras", "state", "action"])
def test_another_body_is_refused(field: str, trained: Path) -> None:
    plain = FAKE.to_dict()
    if field == "cameras":
        plain["cameras"][0]["height"] = 32
    else:
        plain[field] = plain[field][1:]
    with pytest.raises(SpecMismatchError, match=r"config\.json"):
        LeRobotPolicy(trained, spec=Embodiment.from_dict(plain))


def test_the_hash_is_of_what_decides(trained: Path, copy: Path) -> None:
    (copy / "README.md").write_text("moved")
    assert lerobot_hash(copy) == lerobot_hash(trained)
    edit_tensors(
        copy / "model.safetensors", lambda each: {k: v + 1 if v.is_floating_point() else v for k, v in each.items()}
    )
    assert lerobot_hash(copy) != lerobot_hash(trained)
