import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from vla.core.errors import CorruptFileError, MissingAssetError, UnknownNameError
from vla.core.spec import Embodiment
from vla.policies.load import load_policy, policy_hash, save_policy
from vla.policies.vla import VLAPolicy


@pytest.fixture
def saved(tmp_path: Path, make_policy: Callable[..., VLAPolicy]) -> tuple[Path, VLAPolicy]:
    policy = make_policy(gripper_loss="l1", shift=0.1).eval()
    save_policy(tmp_path / "run", policy)
    return tmp_path / "run", policy


def rewrite(folder: Path, **changes: object) -> None:
    recipe = json.loads((folder / "policy.json").read_text()) | changes
    (folder / "policy.json").write_text(json.dumps(recipe))


def rewrite_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    import hashlib

    content = save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    rewrite(folder, weights_sha256=hashlib.sha256(content).hexdigest())


def test_a_loaded_policy_acts_the_same(saved: tuple[Path, VLAPolicy], toy_spec: Embodiment):
    folder, policy = saved
    loaded = load_policy(folder)
    observation = toy_spec.random(np.random.default_rng(3))
    expected, got = policy.act([observation], [0])[0], loaded.act([observation], [0])[0]
    np.testing.assert_array_equal(expected.actions_HA, got.actions_HA)
    assert loaded.spec == policy.spec
    assert (loaded.cameras, loaded.horizon) == (policy.cameras, policy.horizon)
    assert loaded.arguments == policy.arguments
    assert loaded.augmentation == policy.augmentation
    assert not loaded.training


def test_the_sentence_encoder_is_not_saved(saved: tuple[Path, VLAPolicy]):
    folder, policy = saved
    assert load_file(folder / "model.safetensors").keys() == dict(policy.named_parameters()).keys()
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "policy.json"]


def test_hash_follows_the_content_alone(saved: tuple[Path, VLAPolicy], tmp_path: Path):
    folder, policy = saved
    save_policy(tmp_path / "copy", policy)
    assert policy_hash(tmp_path / "copy") == policy_hash(folder)
    next(policy.parameters()).data.view(-1)[0] += 1e-3
    save_policy(tmp_path / "copy", policy)
    assert policy_hash(tmp_path / "copy") != policy_hash(folder)


def test_truncated_weights(saved: tuple[Path, VLAPolicy]):
    path = saved[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors: not the file"):
        load_policy(saved[0])


def test_truncated_json(saved: tuple[Path, VLAPolicy]):
    path = saved[0] / "policy.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"policy\.json: not JSON"):
        load_policy(saved[0])


def test_tensors_that_do_not_fit_are_listed(saved: tuple[Path, VLAPolicy]):
    folder = saved[0]
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.out.1.bias"]
    tensors["stowaway"] = torch.zeros(1)
    tensors["backbone.language.bias"] = torch.zeros(3)
    rewrite_weights(folder, tensors)
    with pytest.raises(CorruptFileError) as error:
        load_policy(folder)
    for part in ("missing: head.out.1.bias", "not used: stowaway", "of another shape: backbone.language.bias"):
        assert part in str(error.value)


def test_presets_come_from_our_table_only(saved: tuple[Path, VLAPolicy]):
    rewrite(saved[0], preset="os.system")
    with pytest.raises(UnknownNameError, match=r"policy preset 'os\.system'.*Valid: openvla_oft, smol, tiny"):
        load_policy(saved[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 99}, "format 99, this version reads 1"),
        ({"arguments": {"wings": 2}}, "wings"),
        ({"embodiment": {"name": "half"}}, "embodiment"),
        ({"transforms": {}}, "transforms"),
    ],
)
def test_a_recipe_that_does_not_make_sense(saved: tuple[Path, VLAPolicy], changes: dict, told: str):
    rewrite(saved[0], **changes)
    with pytest.raises(CorruptFileError, match=told):
        load_policy(saved[0])


def test_no_policy_there(tmp_path: Path):
    with pytest.raises(MissingAssetError, match=r"no policy in .*policy\.json is missing"):
        load_policy(tmp_path)
