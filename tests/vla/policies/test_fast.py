"""Fast policies against plain ones; graphs on a CPU, by a recorder that repeats operations at fixed addresses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vla.core.errors import GrasplineError
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies import flops
from vla.policies.fast import accelerate, shared_copy
from vla.policies.heads.tokens import TokensHead
from vla.policies.openvla_oft import FIRST_ACTION_ID, openvla_oft_policy
from vla.policies.vla import VLAPolicy
from vla.train.lora import add_lora

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ("push", "pick up the mug", "put the red bowl on the plate beside the stove")


@pytest.fixture
def make_twin(toy_spec: Embodiment, toy_transforms: Transforms) -> Callable[..., VLAPolicy]:
    def make(seed: int = 0, **changes) -> VLAPolicy:
        torch.manual_seed(seed)
        parts = {"spec": toy_spec, "transforms": toy_transforms, "cameras": toy_spec.camera_names, "horizon": 4}
        policy = openvla_oft_policy(**{**parts, "size": "twin", **changes}).eval()
        if isinstance(policy.head, TokensHead):  # else random weights choose words, all of which mean the same action
            policy.head.choices, policy.head.first_id = slice(FIRST_ACTION_ID, FIRST_ACTION_ID + 256), 0
        return policy

    return make


class Recorder(TorchDispatchMode):
    """Stands in for torch.cuda.CUDAGraph: repeats what was done, on the same tensors, and returns nothing.

    Like a capture, it refuses what makes the processor wait, or brings numbers of its own.
    """

    FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if any(name in str(func) for name in self.FORBIDDEN):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.tape:
            for kept, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

    def pool(self) -> str:
        return "pool"


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Puts the recorder in torch.cuda's place; the pools that graphs were given."""
    given: list[str | None] = []

    @contextmanager
    def graph(recorder: Recorder, pool: str | None = None) -> Iterator[None]:
        given.append(pool)
        with recorder:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    replaced = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: nullcontext()}
    for name, replacement in {**replaced, "CUDAGraph": Recorder, "graph": graph}.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return given


def chunks(policy: VLAPolicy, seed: int = 0) -> np.ndarray:
    """Chunks (3, H, A) for three observations of one seed."""
    rng = np.random.default_rng(seed)
    observations = [policy.spec.random(rng, text) for text in TEXTS]
    return np.stack([chunk.actions_HA for chunk in policy.act(observations, [0, 1, 2])])


# Of byte prompts, 59 to 102 tokens: one is padded, one fits exactly, one is longer than every bucket.
LENGTHS = [len(f"In: What action should the robot take to {text}?\nOut:") + 2 for text in TEXTS]
BUCKETS = (LENGTHS[0] + 3, LENGTHS[1])


@pytest.mark.parametrize("changes", [{}, {"film": True}, {"proprio": False}, {"head": "tokens"}], ids=str)
def test_the_same_chunks(changes: dict, make_twin: Callable[..., VLAPolicy]):
    plain = make_twin(**changes)
    fast = accelerate(plain, buckets=BUCKETS)
    np.testing.assert_allclose(chunks(fast), chunks(plain), atol=1e-5)
    fast.compute_batch = 3
    np.testing.assert_allclose(chunks(fast), chunks(plain), atol=1e-5)


@pytest.mark.parametrize("head", ["l1", "flow", "tokens"])
def test_recorded_graphs_give_the_same_chunks(head: str, make_twin: Callable[..., VLAPolicy], pools: list[str | None]):
    plain = make_twin(head=head, film=True)
    fast = accelerate(plain, buckets=BUCKETS)
    fast.captures = True
    first = chunks(fast)
    captured = len(pools)
    assert captured == 3 * (2 if head == "flow" else 1)  # shapes: one exact, one padded, one too long
    np.testing.assert_allclose(first, chunks(plain), atol=1e-5)
    np.testing.assert_allclose(chunks(fast, 1), chunks(plain, 1), atol=1e-5)  # other inputs through the same graphs
    assert len(pools) == captured and pools == [None] + ["pool"] * (captured - 1)
    if head != "tokens":  # random weights may choose the same tokens twice
        assert np.abs(chunks(plain, 1) - chunks(plain)).max() > 1e-4


def test_a_wait_for_the_device_would_be_found(make_twin: Callable[..., VLAPolicy], pools: list[str | None]):
    """The recorder refuses what a real capture would."""
    fast = accelerate(make_twin(), buckets=BUCKETS)
    fast.captures = True
    before = fast.backbone.vision.preprocess
    fast.backbone.vision.preprocess = lambda images: before(images + int(images.sum()) * 0)
    with pytest.raises(RuntimeError, match="capturing"):
        chunks(fast)


def test_jpeg_happens_once_or_not_at_all(make_twin: Callable[..., VLAPolicy]):
    plain = make_twin()
    assert plain.backbone.vision.jpeg
    skipped = chunks(accelerate(plain, buckets=BUCKETS, jpeg=False))
    assert plain.backbone.vision.jpeg, "the policy it was made from stays as it is"
    np.testing.assert_allclose(skipped, chunks(make_twin(jpeg=False)), atol=1e-5)
    assert np.abs(skipped - chunks(plain)).max() > 1e-5


def test_weights_are_shared(make_twin: Callable[..., VLAPolicy]):
    plain = make_twin()
    fast = accelerate(plain)
    with torch.no_grad():
        plain.head.out[1].bias += 0.25
    plain.double().float()  # weights are replaced in place, so both see it
    assert [each.data_ptr() for each in plain.parameters()] == [each.data_ptr() for each in fast.parameters()]
    np.testing.assert_allclose(chunks(fast), chunks(plain), atol=1e-5)
    assert fast.backbone.prompt is plain.backbone.prompt


@pytest.mark.slow
def test_compiled(make_twin: Callable[..., VLAPolicy]):
    plain = make_twin(film=True)
    np.testing.assert_allclose(chunks(accelerate(plain, buckets=BUCKETS, compile=True)), chunks(plain), atol=1e-5)


def test_refusals(make_policy: Callable[..., VLAPolicy], make_twin: Callable[..., VLAPolicy], make_batch: Callable):
    with pytest.raises(GrasplineError, match="language model"):
        accelerate(make_policy())
    twin = make_twin()
    with pytest.raises(GrasplineError, match="rising"):
        accelerate(twin, buckets=(48, 32))
    with pytest.raises(RuntimeError, match="no gradients"):
        accelerate(twin).loss_BH(make_batch(size=1))
    with pytest.raises(GrasplineError, match="no formula"):
        flops.chunk_flops(make_twin(head="flow"), prompt=8)


def counted(run: Callable[[], object]) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def observed(policy: VLAPolicy, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images of the network's own size, so that resizing costs nothing, on the policy's device."""
    side, device = policy.backbone.vision.image_size, policy.device
    images_BKHWC = torch.zeros(batch, len(policy.cameras), side, side, 3, dtype=torch.uint8, device=device)
    return images_BKHWC, torch.zeros(batch, policy.spec.state_dim, device=device), [TEXTS[0]] * batch


@pytest.mark.parametrize("changes", [{}, {"film": True, "proprio": False}, {"cameras": ("front",)}], ids=str)
def test_flops_against_torchs_counter(changes: dict, make_twin: Callable[..., VLAPolicy]):
    policy = make_twin(jpeg=False, crop=False, **changes)
    found = counted(lambda: policy.sample(*observed(policy, 2), []))
    work = flops.chunk_flops(policy, prompt=LENGTHS[0])
    assert found == pytest.approx(2 * sum(work.values()), rel=1e-3)  # the counter includes rotary angles


def test_training_flops_against_torchs_counter(make_twin: Callable[..., VLAPolicy]):
    policy = make_twin(jpeg=False, crop=False)
    add_lora(policy, rank=4)
    images_BKHWC, state_BS, texts = observed(policy, 2)
    batch = Batch(
        images_BKHWC=images_BKHWC,
        state_BS=state_BS,
        instructions=texts,
        actions_BHA=torch.zeros(2, 4, 3),
        mask_BH=torch.ones(2, 4, dtype=torch.bool),
    )
    found = counted(lambda: policy.loss_BH(batch).sum().backward())
    work = sum(flops.chunk_flops(policy, prompt=LENGTHS[0], training=True).values())
    assert found == pytest.approx(2 * work, rel=0.03)  # the first blocks' inputs need no gradient
    assert 2 < work / sum(flops.chunk_flops(policy, prompt=LENGTHS[0]).values()) < 3


def test_flops_of_the_published_size():
    """8.88 TFLOP for 606 tokens (language 8.04, vision 0.77, other 0.07), which include the unused last blocks."""
    spec = Embodiment(
        name="arm",
        state=tuple(Axis(name=f"s{i}", unit="m") for i in range(8)),
        action=tuple(Axis(name=f"a{i}", unit="m", low=-1, high=1) for i in range(7)),
        cameras=(Camera(name="front", height=224, width=224), Camera(name="wrist", height=224, width=224)),
        control_hz=20.0,
    )
    rng = np.random.default_rng(0)
    transforms = Transforms.fit(spec, rng.standard_normal((9, 8)), rng.uniform(-1, 1, (9, 7)))
    with torch.device("meta"):
        policy = openvla_oft_policy(spec=spec, transforms=transforms, cameras=spec.camera_names, horizon=8)
    work, skipped = flops.chunk_flops(policy, prompt=36), flops.skipped_flops(policy, prompt=36)
    assert flops.sequence_length(policy, prompt=36) == 606
    assert work["language"] == pytest.approx(8.04e12, abs=5e9)
    assert work["vision"] + skipped["last_blocks"] == pytest.approx(0.77e12, abs=5e9)
    assert work["projector"] + work["head"] == pytest.approx(0.07e12, abs=6e9)
    assert sum(work.values()) + skipped["last_blocks"] == pytest.approx(8.88e12, abs=6e9)
    assert skipped["lm_head"] == pytest.approx(0.16e12, abs=5e9)
    assert flops.weight_bytes(policy) / 2 == pytest.approx(14.8e9, rel=0.02)  # the policy is in float32


def test_a_shared_copy_can_be_changed_alone():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    again = shared_copy(module)
    again.append(torch.nn.ReLU())
    assert len(module) == 2 and again[0].weight is module[0].weight
    assert again[1].running_mean is module[1].running_mean
