from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla.core.errors import GrasplineError
from vla.core.spec import Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies import load
from vla.policies.openvla_oft import openvla_oft_policy
from vla.policies.vla import VLAPolicy
from vla.train.checkpoint import latest_checkpoint
from vla.train.layers import checkpoint_activations, frozen_in_bf16, transformer_layers
from vla.train.lora import adapted_layers, add_lora, full_parameters, merge_lora

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_twin(toy_spec: Embodiment, toy_transforms: Transforms) -> Callable[..., VLAPolicy]:
    def make(seed: int = 0, **changes) -> VLAPolicy:
        torch.manual_seed(seed)
        parts = {"spec": toy_spec, "transforms": toy_transforms, "cameras": toy_spec.camera_names, "horizon": 4}
        return openvla_oft_policy(**{**parts, "size": "twin", "jpeg": False, **changes})

    return make


def actions(policy: VLAPolicy) -> np.ndarray:
    rng = np.random.default_rng(3)
    chunks = policy.act([policy.spec.random(rng, "push the cube") for _ in range(2)], [0, 0])
    return np.stack([chunk.actions_HA for chunk in chunks])


def gradients(policy: VLAPolicy, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    policy.zero_grad()
    policy(batch).mean().backward()
    return {name: each.grad.clone() for name, each in policy.named_parameters() if each.grad is not None}


def test_what_is_trained(make_twin: Callable[..., VLAPolicy]):
    policy = make_twin(film=True)
    linear = {name: each for name, each in policy.backbone.named_modules() if type(each) is torch.nn.Linear}
    small = {name for name in linear if "proprio_projector" in name or name.endswith((".scale", ".shift"))}
    assert len(small) == 2 + 2 * 2 * 2  # two linear layers of the projector; two of FiLM in two blocks of two towers
    # Per decoder layer 7; per block of a tower qkv, proj, fc1, fc2; three of the projector.
    assert len(linear.keys() - small) == 2 * 7 + 2 * 2 * 4 + 3
    expected = full_parameters(policy) + sum(
        8 * (each.in_features + each.out_features) for name, each in linear.items() if name not in small
    )
    before = actions(policy.eval())
    add_lora(policy, rank=8)
    assert np.array_equal(actions(policy), before), "adapters start without effect"
    trained = {name for name, each in policy.named_parameters() if each.requires_grad}
    assert sum(policy.get_parameter(name).numel() for name in trained) == expected
    assert {name for name in trained if "lora_" not in name} == {
        name
        for name, _ in policy.named_parameters()
        if name.startswith("head.") or {"proprio_projector", "scale", "shift"} & set(name.split("."))
    }
    with pytest.raises(GrasplineError, match="has adapters already"):
        add_lora(policy)
    with pytest.raises(GrasplineError, match=r"lora\.rank is 0"):
        add_lora(make_twin(), rank=0)


@pytest.mark.parametrize("size", ["tiny", "twin"])
def test_train_merge_save_load_gives_the_same_actions(
    tmp_path: Path,
    run: Callable,
    make_policy: Callable[..., VLAPolicy],
    make_twin: Callable[..., VLAPolicy],
    size: str,
):
    policy = make_policy() if size == "tiny" else make_twin()
    names, before = list(policy.state_dict()), actions(policy.eval())
    frozen = {name: each.weight.clone() for name, each in adapted_layers(policy.backbone).items()}
    add_lora(policy, rank=4, alpha=8)
    run(tmp_path, steps=3, policy=policy)
    trained = actions(policy)
    assert np.abs(trained - before).max() > 1e-3
    layer = next(iter(frozen))
    adapter = policy.backbone.get_submodule(layer)
    change = 8 / 4 * adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
    merge_lora(policy)
    torch.testing.assert_close(policy.backbone.get_submodule(layer).weight, frozen[layer] + change)
    assert list(policy.state_dict()) == names
    merged = actions(policy)
    np.testing.assert_allclose(merged, trained, atol=1e-5)
    load.save_policy(tmp_path, policy)
    assert np.array_equal(actions(load.load_policy(tmp_path)), merged)


def test_checkpoints_hold_what_is_trained_and_name_what_is_not(
    tmp_path: Path, run: Callable, make_policy: Callable[..., VLAPolicy]
):
    def adapted(seed: int) -> VLAPolicy:
        policy = make_policy(seed)
        torch.manual_seed(7)
        add_lora(policy, rank=4)
        return policy

    whole, _, _ = run(tmp_path / "whole", steps=4, policy=adapted(0))
    run(tmp_path / "halves", steps=4, stop=2, policy=adapted(0))
    halves, average, _ = run(tmp_path / "halves", steps=4, policy=adapted(0))
    for (name, weight), twin in zip(whole.named_parameters(), halves.parameters(), strict=True):
        assert torch.equal(weight, twin), name
    trained = {name for name, each in halves.named_parameters() if each.requires_grad}
    folder = latest_checkpoint(tmp_path / "halves")
    assert folder is not None
    assert load_file(folder / "model.safetensors").keys() == average.tensors.keys() == trained
    assert {key.partition("/")[0] for key in load_file(folder / "optimizer.safetensors")} <= trained
    with pytest.raises(GrasplineError, match=r"trained on frozen weights .* these are"):
        run(tmp_path / "halves", steps=6, policy=adapted(1))
    with pytest.raises(GrasplineError, match="these are none"):
        run(tmp_path / "halves", steps=6, policy=make_policy(0))


def test_recomputing_layers_changes_no_gradient(make_twin: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    plain, thrifty = make_twin(film=True), make_twin(film=True)
    for policy in (plain, thrifty):
        torch.manual_seed(7)
        add_lora(policy, rank=4)
        policy.train()
    assert checkpoint_activations(thrifty) == len(transformer_layers(plain)) == 2 * 2 + 2
    batch = make_batch(size=3)
    expected, found = gradients(plain, batch), gradients(thrifty, batch)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    kept = {name: [0] for name in ("plain", "thrifty")}
    for name, policy in (("plain", plain), ("thrifty", thrifty)):

        def note(tensor: torch.Tensor, total: list[int] = kept[name]) -> torch.Tensor:
            total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            policy(batch)
    assert kept["thrifty"][0] < 0.5 * kept["plain"][0]


def test_a_policy_without_layers_cannot_recompute_them():
    with pytest.raises(GrasplineError, match="no transformer layers"):
        checkpoint_activations(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_frozen_weights_in_bf16_train_nearly_alike(
    make_twin: Callable[..., VLAPolicy], make_batch: Callable[..., Batch], tmp_path: Path
):
    full, half = make_twin(), make_twin()
    for policy in (full, half):
        torch.manual_seed(7)
        add_lora(policy, rank=4)
        policy.train()
    frozen_in_bf16(half)
    kinds = {(each.requires_grad, each.dtype) for each in half.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    batch = make_batch(size=3)
    expected = gradients(full, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(half, batch)
    assert expected.keys() == found.keys()
    together, apart = (torch.cat([each[name].flatten() for name in expected]) for each in (expected, found))
    assert torch.cosine_similarity(together, apart, dim=0) > 0.99
    merge_lora(half)
    assert {each.dtype for each in half.backbone.language.parameters()} == {torch.bfloat16}
