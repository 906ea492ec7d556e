"""Published checkpoints, on random twins in their very layout: every tensor accounted for, and the numbers theirs."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sim.libero import libero_panda
from tests.golden.openvla_twin import STATISTICS_KEY, write_twin
from vla.core.errors import CorruptFileError, MissingAssetError, NonFiniteError, SpecMismatchError, UnknownNameError
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.empty import empty_weights
from vla.policies.load import load_policy, save_policy
from vla.policies.lora_merge import merge_wrapped, read_adapter
from vla.policies.openvla_oft import openvla_oft_policy
from vla.policies.published import load_published
from vla.policies.published_spec import PLATFORMS, published_transforms
from vla.policies.vla import VLAPolicy

HEAD, PROPRIO = "action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the twin with some arguments; written once."""
    folders: dict[str, Path] = {}

    def folder(**arguments) -> Path:
        key = repr(sorted(arguments.items()))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("twin") / "checkpoint"
            write_twin(folders[key], **arguments)
        return folders[key]

    return folder


@pytest.fixture
def broken(written: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the L1 twin that a test may damage by replacing files."""
    return Path(shutil.copytree(written(), tmp_path / "copy", copy_function=os.link))


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """A new file in the place of one that other tests share."""
    path.unlink(missing_ok=True)
    write(path)


def change_shard(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SHARD)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    replace(folder / SHARD, lambda path: save_file(tensors, path))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != SHARD}
    index["weight_map"] = kept | dict.fromkeys(tensors, SHARD)
    replace(folder / "model.safetensors.index.json", lambda path: path.write_text(json.dumps(index)) and None)


def files_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of the shards and components under the names of their files."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    for path in folder.glob("*.pt"):
        part = torch.load(path, map_location="cpu", weights_only=True)
        tensors |= {f"{path.stem.split('--')[0]}/{name.removeprefix('module.')}": part[name] for name in part}
    return tensors


def actions_of(policy: VLAPolicy, seed: int = 0) -> np.ndarray:
    observations = [policy.spec.random(np.random.default_rng(seed + i), "pick up the bowl") for i in range(2)]
    return np.stack([chunk.actions_HA for chunk in policy.act(observations, [0, 1])])


def redraw(folder: Path) -> None:
    """New numbers for all tensors, no two of them alike, so that each can be known by its content."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}

    for path in folder.glob("*.safetensors"):
        shard = drawn(load_file(path))
        replace(path, lambda path, shard=shard: save_file(shard, path))
    for path in folder.glob("*.pt"):
        part = drawn(torch.load(path, map_location="cpu", weights_only=True))
        replace(path, lambda path, part=part: torch.save(part, path))


def test_every_weight_is_a_published_one(broken: Path) -> None:
    """Tensor by tensor, by content: all of ours are theirs, and what is left are the parts that nothing reads."""
    redraw(broken)
    published, ours = files_of(broken), load_published(broken).state_dict()
    by_content = {tensor.numpy().tobytes(): name for name, tensor in published.items()}
    assert len(by_content) == len(published)
    homes = {name: by_content.get(tensor.numpy().tobytes()) for name, tensor in ours.items()}
    for name, home in homes.items():  # the places in the tree agree, too: layer 0 is layer 0
        assert home is None or re.findall(r"(?:layers|blocks)\.(\d+)", name) == re.findall(
            r"(?:layers|blocks)\.(\d+)", home
        )
    assert [name for name, home in homes.items() if home is None] == ["head.out.1.weight", "head.out.1.bias"]
    assert homes["backbone.vision.featurizer.blocks.1.ls2.gamma"] == (
        "vision_backbone.featurizer.blocks.1.ls2.scale_factor"
    )
    assert homes["head.blocks.1.1.weight"] == "action_head/model.mlp_resnet_blocks.1.ffn.1.weight"
    left = published.keys() - set(homes.values()) - {"action_head/model.fc2.weight", "action_head/model.fc2.bias"}
    unread = r"vision_backbone\.(fused_)?featurizer\.(blocks\.2|norm|attn_pool)\..*|language_model\.lm_head\.weight"
    assert left and all(re.fullmatch(unread, name) for name in left)


def test_the_embodiment_is_that_of_our_libero(written: Callable[..., Path]) -> None:
    policy = load_published(written())
    libero_panda(256).check_same(policy.spec, here="sim", there="published")
    assert (policy.spec, policy.cameras, policy.horizon) == (libero_panda(256), ("agentview", "wrist"), 8)


def test_grippers_command_what_is_published(written: Callable[..., Path]) -> None:
    """Published: g -> 2 g - 1 -> its sign -> times -1. Ours: fold, sign, and the axis' extremes. Others untouched."""
    policy, published = load_published(written()), files_of(written())
    features_BHD = 2 * torch.randn(64, 8, 7 * 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden_BHD = policy.head.project(features_BHD)  # pyright: ignore[reportCallIssue]
        for block in policy.head.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            hidden_BHD = hidden_BHD + block(hidden_BHD)
        normed_BHD = policy.head.out[0](hidden_BHD)  # pyright: ignore
        weight_AD, bias_A = published["action_head/model.fc2.weight"], published["action_head/model.fc2.bias"]
        theirs_BHA = (normed_BHD @ weight_AD.T + bias_A).numpy()
        scaled_BHA = policy.head.sample(lambda: features_BHD, []).numpy()  # pyright: ignore[reportCallIssue]
    commands_BH = -np.sign(2 * theirs_BHA[..., 6] - 1)
    assert 50 < (commands_BH > 0).sum() < commands_BH.size - 50, "both commands occur"
    np.testing.assert_array_equal(policy.transforms.inverse_actions(scaled_BHA)[..., 6], commands_BH)
    np.testing.assert_allclose(scaled_BHA[..., :6], theirs_BHA[..., :6], atol=1e-5)


def theirs(value: np.ndarray, low: np.ndarray, high: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The published normalisation, written down once more."""
    scaled = np.clip(2 * (value - low) / (high - low + 1e-8) - 1, -1, 1)
    return np.where(least == most, 0, scaled)


@pytest.mark.parametrize("dims", [7, 14])
def test_numbers_are_scaled_as_published(dims: int, tmp_path: Path) -> None:
    """Quantiles for LIBERO, bounds for ALOHA; also on axes that never move, or hardly ever."""
    rng, platform = np.random.default_rng(0), PLATFORMS[dims]
    statistics = {}
    for name, size in (("action", dims), ("proprio", platform.spec.state_dim)):
        least, q01, q99, most = np.sort(rng.normal(size=(4, size)), axis=0)
        least[0] = q01[0] = q99[0] = most[0]
        q01[1] = q99[1]
        columns = {"min": least, "q01": q01, "q99": q99, "max": most, "mean": q01, "std": q99 - q01}
        statistics[name] = {key: column.tolist() for key, column in columns.items()}
    statistics["action"]["mask"] = [True] * (dims - 1) + [dims == 14]
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"data": statistics}))
    transforms = published_transforms(tmp_path, {}, None, platform)
    low, high = ("q01", "q99") if dims == 7 else ("min", "max")
    bounds = [np.array(statistics["proprio"][key]) for key in (low, high, "min", "max")]
    states_NS = np.concatenate(
        [bounds[0] + 1e-10, bounds[1] - 1e-10, rng.normal(size=(100, len(bounds[0])))], axis=None
    )
    states_NS = states_NS.reshape(-1, len(bounds[0]))
    np.testing.assert_allclose(transforms.observation(states_NS), theirs(states_NS, *bounds), atol=1e-6)
    scaled_NA = rng.uniform(-1, 1, (100, dims))
    low_A, high_A = (np.array(statistics["action"][key]) for key in (low, high))
    values_NA = 0.5 * (scaled_NA + 1) * (high_A - low_A + 1e-8) + low_A
    moves = slice(0, 6 if dims == 7 else 14)
    np.testing.assert_allclose(transforms.inverse_actions(scaled_NA)[:, moves], values_NA[:, moves], atol=1e-6)


def test_aloha(written: Callable[..., Path]) -> None:
    policy = load_published(written(action_dim=14, proprio_dim=14))
    assert (policy.spec.name, policy.horizon, len(policy.cameras)) == ("aloha", 25, 3)
    assert actions_of(policy).shape == (2, 25, 14)


def test_statistics_by_name(broken: Path) -> None:
    assert load_published(broken, unnorm_key="libero_spatial").horizon == 8, "found as libero_spatial_no_noops"
    with pytest.raises(UnknownNameError, match=f"Valid: {STATISTICS_KEY}"):
        load_published(broken, unnorm_key="libero_goal")
    path = broken / "dataset_statistics.json"
    two = json.loads(path.read_text()) | {"other": {}}
    replace(path, lambda path: path.write_text(json.dumps(two)) and None)
    with pytest.raises(UnknownNameError, match="unnorm_key"):
        load_published(broken)


def add_unknown(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors.update({"projector.fc4.weight": torch.zeros(2)}))


def drop(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors.pop("vision_backbone.featurizer.blocks.1.norm1.bias"))


def reshape(folder: Path) -> None:
    name = "vision_backbone.featurizer.blocks.1.norm1.bias"
    change_shard(folder, lambda tensors: tensors.update({name: tensors[name][:5]}))


def damage(folder: Path) -> None:
    change_shard(folder, lambda tensors: tensors["vision_backbone.featurizer.cls_token"].fill_(float("nan")))


def truncate(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    replace(folder / SHARD, lambda path: path.write_bytes(content[:-100]) and None)


def hide_code(folder: Path) -> None:
    replace(folder / PROPRIO, lambda path: torch.save({"fc1.weight": nn.Linear(8, 64)}, path))


@pytest.mark.parametrize(
    ("harm", "error", "told"),
    [
        (add_unknown, CorruptFileError, r"\(unknown: projector.fc4.weight\)"),
        (drop, CorruptFileError, r"\(missing: backbone.vision.featurizer.blocks.1.norm1.bias\)"),
        (reshape, CorruptFileError, r"shape: vision_backbone.featurizer.blocks.1.norm1.bias \(5,\) for \(32,\)\)"),
        (damage, NonFiniteError, "vision_backbone.featurizer.cls_token"),
        (truncate, CorruptFileError, SHARD),
        (hide_code, CorruptFileError, PROPRIO),
        (lambda folder: (folder / SHARD).unlink(), MissingAssetError, SHARD),
        (lambda folder: (folder / HEAD).unlink(), MissingAssetError, "head=tokens .* fresh_parts=true"),
        (lambda folder: (folder / PROPRIO).unlink(), MissingAssetError, "proprio_projector.*proprio=false"),
        (lambda folder: os.link(folder / HEAD, folder / "action_head--5_checkpoint.pt"), CorruptFileError, "keep one"),
        (lambda folder: (folder / "tokenizer.json").unlink(), MissingAssetError, "tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), MissingAssetError, "config.json"),
    ],
)
def test_what_does_not_fit_is_named(broken: Path, harm: Callable[[Path], None], error: type[Exception], told: str):
    harm(broken)
    with pytest.raises(error, match=told) as raised:
        load_published(broken)
    assert "\n" not in str(raised.value)


def test_weights_that_would_not_be_used(written: Callable[..., Path]) -> None:
    with pytest.raises(SpecMismatchError, match="proprio_projector, which this network would not use"):
        load_published(written(), proprio=False)
    with pytest.raises(SpecMismatchError, match="kind l1, not diffusion"):
        load_published(written(), head="diffusion")


def test_an_adapter_and_its_base_give_the_merged_weights(written: Callable[..., Path]) -> None:
    merged, base = written(lora=True), written(lora=True, merge=False)
    one, other = load_published(merged).state_dict(), load_published(merged, base=base).state_dict()
    plain = load_published(base).state_dict()
    name = "backbone.vision.featurizer.patch_embed.proj.weight"
    assert not torch.allclose(one[name], plain[name], atol=1e-2), "the adapter changes something"
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


def test_merging_against_peft(tmp_path: Path) -> None:
    """PEFT's own network with an adapter, against plain layers with our merged weights: linear and convolution."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    wrapped = get_peft_model(plain, LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=False))
    wrapped.save_pretrained(str(tmp_path))
    images = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        expected = wrapped(images)
    inner = {name.removeprefix("base_model.model."): tensor for name, tensor in wrapped.state_dict().items()}
    adapter = read_adapter(tmp_path)
    by_adapter = {name: adapter.merged(name, tensor) for name, tensor in weights.items()}
    for merged in (by_adapter, merge_wrapped(inner, 6, tmp_path)):
        fresh = nn.Sequential(
            nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5)
        )
        fresh.load_state_dict(merged)
        with torch.no_grad():
            torch.testing.assert_close(fresh(images), expected)


def test_adapters_that_are_more_than_lora(tmp_path: Path, written: Callable[..., Path]) -> None:
    folder = Path(shutil.copytree(written(lora=True) / "lora_adapter", tmp_path / "adapter", copy_function=os.link))
    config = json.loads((folder / "adapter_config.json").read_text()) | {"use_dora": True}
    replace(folder / "adapter_config.json", lambda path: path.write_text(json.dumps(config)) and None)
    with pytest.raises(CorruptFileError, match="use_dora is True"):
        read_adapter(folder)


def test_film_takes_the_towers_from_its_own_file(written: Callable[..., Path]) -> None:
    folder = written(film=True)
    published, ours = files_of(folder), load_published(folder).state_dict()
    prefix = "vision_backbone/vision_backbone.fused_featurizer.blocks.1"
    assert torch.equal(ours["backbone.vision.fused_featurizer.blocks.1.scale.bias"], published[f"{prefix}.scale.bias"])
    layer = f"{prefix}.block.attn.qkv"
    change = published[f"{layer}.lora_B.default.weight"] @ published[f"{layer}.lora_A.default.weight"]
    expected = published[f"{layer}.base_layer.weight"] + 0.5 * change
    torch.testing.assert_close(ours["backbone.vision.fused_featurizer.blocks.1.attn.qkv.weight"], expected)


def test_a_base_model_starts_with_fresh_parts(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(head="discrete", proprio_dim=0)
    torch.manual_seed(3)
    policy = load_published(folder, fresh_parts=True, film=True, transforms=load_published(written()).transforms)
    assert "action_head, proprio_projector, vision_backbone" in capsys.readouterr().out
    torch.manual_seed(3)
    again = load_published(folder, fresh_parts=True, film=True, transforms=policy.transforms).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in policy.state_dict().items())
    rng = np.random.default_rng(0)
    batch = Batch(
        images_BKHWC=torch.from_numpy(rng.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)),
        state_BS=torch.zeros(2, 8),
        instructions=["push", "pull it"],
        actions_BHA=torch.zeros(2, 8, 7),
        mask_BH=torch.ones(2, 8, dtype=torch.bool),
    )
    policy.loss_BH(batch).mean().backward()
    assert all(parameter.grad is not None for name, parameter in policy.named_parameters() if name.startswith("head"))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_saved_in_our_format_it_acts_the_same(
    written: Callable[..., Path], tmp_path: Path, dtype: torch.dtype | None
) -> None:
    policy = load_published(written(), dtype=dtype)
    assert {parameter.dtype for parameter in policy.parameters()} == {dtype or torch.float32}
    save_policy(tmp_path, policy)
    actions = actions_of(policy)
    assert np.unique(actions[..., :6]).size > 50
    if dtype is None:
        np.testing.assert_array_equal(actions_of(load_policy(tmp_path)), actions)


def test_building_takes_no_memory_for_weights() -> None:
    spec = PLATFORMS[7].spec
    rng = np.random.default_rng(0)
    transforms = Transforms.fit(spec, rng.normal(size=(9, 8)), rng.uniform(-1, 1, (9, 7)))
    with empty_weights():
        policy = openvla_oft_policy(
            spec=spec, transforms=transforms, cameras=("agentview", "wrist"), horizon=8, size="1b"
        )
    assert all(parameter.is_meta for parameter in policy.parameters())
    assert not any(buffer.is_meta for buffer in policy.buffers()), "no file fills those"
    assert not nn.Linear(2, 2).weight.is_meta, "only within"
