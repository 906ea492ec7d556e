"""Plans against what torch allocates, against published figures, and what a refusal proposes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vla.core.errors import GrasplineError
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.openvla_oft import openvla_oft_policy
from vla.policies.vla import VLAPolicy
from vla.train.layers import frozen_in_bf16
from vla.train.lora import add_lora
from vla.train.measure import kept_by_one_sample
from vla.train.memory import GIB, Settings, available_bytes, check_memory, formula, plan
from vla.train.optim import Average, adamw

pytestmark = pytest.mark.usefixtures("one_thread")


def arm() -> Embodiment:
    return Embodiment(
        name="arm",
        state=tuple(Axis(name=f"s{i}", unit="m") for i in range(8)),
        action=tuple(Axis(name=f"a{i}", unit="m", low=-1, high=1) for i in range(7)),
        cameras=(Camera(name="front", height=64, width=64), Camera(name="wrist", height=64, width=64)),
        control_hz=20.0,
    )


def openvla(size: str, device: str, *, lora: bool) -> VLAPolicy:
    spec, rng = arm(), np.random.default_rng(0)
    transforms = Transforms.fit(spec, rng.standard_normal((50, 8)), rng.uniform(-1, 1, (50, 7)))
    with torch.device(device):
        policy = openvla_oft_policy(
            spec=spec, transforms=transforms, cameras=spec.camera_names, horizon=8, size=size, jpeg=False
        )
        if lora:
            add_lora(policy)
    return policy


@pytest.fixture(scope="module")
def lora_7b() -> VLAPolicy:
    return openvla("7b", "meta", lora=True)


@pytest.fixture(scope="module")
def full_7b() -> VLAPolicy:
    return openvla("7b", "meta", lora=False)


def test_weights_gradients_moments_and_average_are_what_torch_allocates(
    make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]
):
    policy = make_policy()
    policy.backbone.towers.requires_grad_(False)
    optimizer, average = adamw(policy, lr=1e-3), Average(policy, 0.9)
    policy(make_batch()).mean().backward()
    optimizer.step()
    wanted = plan(policy, Settings(batch=8), available=1e9)
    assert wanted.weights == sum(each.nbytes for each in policy.parameters())
    assert wanted.gradients == sum(each.grad.nbytes for each in policy.parameters() if each.grad is not None)
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert wanted.optimizer == sum(each.nbytes for each in moments)
    assert wanted.average == sum(each.nbytes for each in average.tensors.values())
    assert wanted.fits and wanted.total == pytest.approx(sum(wanted.parts.values()))


def test_measured_activations_grow_as_the_batch_does(
    make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]
):
    policy = make_policy().train()
    kept = kept_by_one_sample(policy, bf16=False)
    weights = {each.untyped_storage().data_ptr() for each in policy.parameters()}
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_BH = policy(make_batch(size=8))
    assert kept.bytes(8, checkpointing=False) == pytest.approx(sum(storages.values()), rel=0.05)
    assert loss_BH.requires_grad
    assert 0 < kept.bytes(8, checkpointing=True) < kept.bytes(8, checkpointing=False)


@pytest.mark.parametrize(("lora", "bf16"), [(False, False), (False, True), (True, True)])
def test_the_formula_agrees_with_measuring(lora: bool, bf16: bool):
    policy = openvla("10m", "cpu", lora=lora)
    if bf16:
        frozen_in_bf16(policy)
    measured, estimated = kept_by_one_sample(policy, bf16), formula(policy, bf16)
    assert estimated.inputs == pytest.approx(measured.inputs, rel=0.3)
    assert estimated.bytes(8, False) == pytest.approx(measured.bytes(8, False), rel=0.35)


@pytest.mark.parametrize(("rows", "published_gb"), [(1, 25), (8, 62)])
def test_openvla_oft_takes_what_its_authors_report(lora_7b: VLAPolicy, rows: int, published_gb: float):
    """Their run keeps no average of the weights and does not recompute."""
    wanted = plan(lora_7b, Settings(batch=rows, bf16=True), available=80 * GIB)
    assert (wanted.total - wanted.average) / 1e9 == pytest.approx(published_gb, rel=0.12)


def test_full_fine_tuning_of_7b_on_24_gib_is_refused_with_the_remedy(full_7b: VLAPolicy):
    settings = Settings(batch=64, accumulate=8, bf16=True)
    with pytest.raises(GrasplineError, match=r"needs .* GiB of memory in each process and has 24\.0") as refusal:
        check_memory(full_7b, settings, available=24 * GIB)
    message = str(refusal.value)
    assert "\n" not in message
    remedy = message.partition("fit with: ")[2]
    assert remedy.startswith("lora.rank=32") and "gradient_checkpointing=true" in remedy
    assert "parallel=fsdp2" in remedy and "processes" in remedy


def test_a_proposed_setting_is_accepted(lora_7b: VLAPolicy):
    settings = Settings(batch=64, accumulate=8, bf16=True)
    with pytest.raises(GrasplineError, match=r"fit with: accumulate=(\d+)") as refusal:
        check_memory(lora_7b, settings, available=40 * GIB)
    accumulate = int(str(refusal.value).partition("accumulate=")[2].split(",")[0].split()[0])
    assert accumulate > 8
    assert check_memory(lora_7b, Settings(batch=64, accumulate=accumulate, bf16=True), available=40 * GIB).fits
    table = str(plan(lora_7b, Settings(batch=8, bf16=True), available=80 * GIB))
    assert "weights" in table and "activations" in table and "80.00 GiB" in table


def test_slices_shrink_with_the_number_of_processes(full_7b: VLAPolicy):
    whole = plan(full_7b, Settings(batch=8, bf16=True), available=0)
    eight = plan(full_7b, Settings(batch=8, bf16=True, processes=8, parallel="fsdp2"), available=0)
    assert eight.optimizer == whole.optimizer / 8
    assert 0 < eight.gathered < whole.weights / 4
    copied = plan(full_7b, Settings(batch=8, bf16=True, processes=8), available=0)
    assert copied.gradients == 2 * whole.gradients  # DDP's buckets


def test_a_limit_limits(make_policy: Callable[..., VLAPolicy]):
    policy = make_policy()
    assert available_bytes(torch.device("cpu"), policy, limit_gib=0.25) == 0.25 * GIB
    assert available_bytes(torch.device("cpu"), policy) > 0.25 * GIB
    with pytest.raises(GrasplineError, match="this run needs"):
        check_memory(policy, Settings(batch=8), available=1e6)
