"""What every head of `vla/policies/heads` promises, on the tiny backbone. Adding a file there adds its tests."""

import copy
import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from agents.objectives.reduce import masked_mean
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.transforms import Transforms
from vla.policies import heads
from vla.policies.load import load_policy, save_policy
from vla.policies.tiny import tiny_policy
from vla.policies.vla import VLAPolicy

SMALL = {"width": 32, "layers": 1, "heads": 2, "image_size": 16, "channels": (4, 8)}
SHAPES = [(8, 7), (8, 14), (25, 7), (25, 14)]  # LIBERO's chunk and ALOHA's; one arm and two
ROWS = 3


def is_head(name: str) -> bool:
    module = importlib.import_module(f"vla.policies.heads.{name}")
    classes = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module.__name__]
    return any(hasattr(item, "denoises") for item in classes)


HEADS = [path.stem for path in sorted(Path(heads.__path__[0]).glob("*.py")) if is_head(path.stem)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def body(action_dim: int) -> Embodiment:
    """Arms of six joints and a gripper."""
    joint, gripper = Axis(name="joint", unit="rad", low=-1, high=1), Axis(name="gripper", unit="1", binary=True)
    action = (*[joint] * 6, gripper) * (action_dim // 7)
    state = tuple(Axis(name=name, unit="m") for name in "xyz")
    cameras = (Camera(name="front", height=16, width=16),)
    return Embodiment(name="arms", state=state, action=action, cameras=cameras, control_hz=20.0)


@cache
def policy_of(head: str, horizon: int = 8, action_dim: int = 7) -> VLAPolicy:
    spec, rng = body(action_dim), np.random.default_rng(0)
    actions_NA = np.where(spec.binary_A, rng.integers(0, 2, (50, 1)), rng.uniform(-1, 1, (50, action_dim)))
    transforms = Transforms.fit(spec, rng.standard_normal((50, 3)), actions_NA)
    torch.manual_seed(0)
    policy = tiny_policy(spec=spec, transforms=transforms, cameras=("front",), horizon=horizon, head=head, **SMALL)
    return policy.eval()


def features_of(policy: VLAPolicy, rows: list[int]) -> Callable[..., Tensor]:
    """The backbone after it has looked at these of ROWS different scenes."""
    rng = np.random.default_rng(1)
    images_BKHWC = torch.from_numpy(rng.integers(0, 256, (ROWS, 1, 16, 16, 3), np.uint8))
    state_BS = torch.from_numpy(rng.standard_normal((ROWS, 3), np.float32))
    texts = [f"pick up object {row}" for row in rows]
    return partial(policy.backbone, policy.backbone.encode(images_BKHWC[rows], state_BS[rows], texts))


def targets_of(policy: VLAPolicy) -> Tensor:
    actions_BHA = torch.rand(ROWS, policy.horizon, policy.spec.action_dim, generator=torch.Generator().manual_seed(2))
    actions_BHA = 2 * actions_BHA - 1
    return torch.where(torch.from_numpy(policy.spec.binary_A), actions_BHA.sign(), actions_BHA)


def slot_by_slot(features_BHD: Tensor) -> Callable[..., Tensor]:
    """Given features, in which a noisy action shows in its own slot alone."""

    def features(noisy_BHA: Tensor | None = None, time_B: Tensor | None = None) -> Tensor:
        if noisy_BHA is None:
            return features_BHD
        return features_BHD + functional.pad(noisy_BHA, (0, 32 - noisy_BHA.shape[-1])).to(features_BHD.dtype)

    return features


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def seeded_loss(policy: VLAPolicy, features: Callable[..., Tensor], actions_BHA: Tensor) -> Tensor:
    torch.manual_seed(3)
    return policy.head.loss_BH(features, actions_BHA)


def random_features(policy: VLAPolicy) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(ROWS, policy.horizon, 32)


@pytest.mark.parametrize(("horizon", "action_dim"), SHAPES)
@pytest.mark.parametrize("head", HEADS)
def test_shapes_types_and_binary_axes(head: str, horizon: int, action_dim: int):
    policy = policy_of(head, horizon, action_dim)
    features = features_of(policy, [0, 1, 2])
    loss_BH = policy.head.loss_BH(features, targets_of(policy))
    assert (loss_BH.shape, loss_BH.dtype) == ((ROWS, horizon), torch.float32)
    assert (loss_BH > 0).all() and loss_BH.isfinite().all()
    with torch.no_grad():
        actions_BHA = policy.head.sample(features, generators(0, 1, 2))
    assert (actions_BHA.shape, actions_BHA.dtype) == ((ROWS, horizon, action_dim), torch.float32)
    assert actions_BHA.isfinite().all()
    assert set(actions_BHA[..., policy.spec.binary_A].unique().tolist()) <= {-1.0, 1.0}
    assert not set(actions_BHA[..., ~policy.spec.binary_A].unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_weights_answer_in_single(head: str):
    policy = policy_of(head)
    rounded = copy.deepcopy(policy.head).to(torch.bfloat16)
    features = slot_by_slot(random_features(policy).to(torch.bfloat16))
    assert rounded.loss_BH(features, targets_of(policy)).dtype == torch.float32
    assert rounded.sample(features, generators(0, 1, 2)).dtype == torch.float32


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_an_action_is_its_own(head: str):
    """Given its features, it depends on its own target and on no other action's or row's."""
    policy = policy_of(head)
    features, targets_BHA = slot_by_slot(random_features(policy)), targets_of(policy)
    changed_BHA = targets_BHA.clone()
    changed_BHA[1, 5] *= -1
    same_BH = seeded_loss(policy, features, targets_BHA) == seeded_loss(policy, features, changed_BHA)
    assert (~same_BH).nonzero().tolist() == [[1, 5]]


@pytest.mark.parametrize("head", HEADS)
def test_masked_actions_give_no_gradient_to_their_features(head: str):
    policy = policy_of(head)
    features_BHD = random_features(policy).requires_grad_()
    mask_BH = torch.rand(ROWS, policy.horizon, generator=torch.Generator().manual_seed(5)) < 0.5
    masked_mean(seeded_loss(policy, slot_by_slot(features_BHD), targets_of(policy)), mask_BH).backward()
    assert features_BHD.grad is not None
    assert torch.equal(features_BHD.grad.abs().sum(-1) > 0, mask_BH)


@pytest.mark.parametrize("head", HEADS)
def test_rows_do_not_see_each_other(head: str):
    policy = policy_of(head)
    features, targets_BHA = features_of(policy, [0, 1, 2]), targets_of(policy)
    changed_BHA = targets_BHA.clone()
    changed_BHA[1] *= -1
    before_BH, after_BH = (seeded_loss(policy, features, targets) for targets in (targets_BHA, changed_BHA))
    assert torch.equal(before_BH[::2], after_BH[::2])
    assert not torch.equal(before_BH[1], after_BH[1])


@pytest.mark.parametrize("head", HEADS)
def test_gradient_reaches_every_weight(head: str):
    policy = policy_of(head)
    policy.zero_grad()
    seeded_loss(policy, features_of(policy, [0, 1, 2]), targets_of(policy)).mean().backward()
    without = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("head", HEADS)
def test_samples_are_seeded_and_independent_of_the_batch(head: str):
    policy = policy_of(head)
    with torch.no_grad():
        together_BHA = policy.head.sample(features_of(policy, [0, 1, 2]), generators(7, 8, 9))
        torch.manual_seed(12345)  # torch's own generator has no say
        again_BHA = policy.head.sample(features_of(policy, [0, 1, 2]), generators(7, 8, 9))
        assert torch.equal(together_BHA, again_BHA)
        for row, seed in enumerate((7, 8, 9)):
            alone_HA = policy.head.sample(features_of(policy, [row]), generators(seed))[0]
            # A denoiser's steps amplify how products round at another batch size; `act` avoids that.
            torch.testing.assert_close(alone_HA, together_BHA[row], rtol=0, atol=2e-3)
        reseeded_BHA = policy.head.sample(features_of(policy, [0, 1, 2]), generators(7, 99, 9))
    assert torch.equal(reseeded_BHA[::2], together_BHA[::2])
    assert torch.equal(reseeded_BHA[1], together_BHA[1]) == (not policy.head.denoises)


@pytest.mark.parametrize("head", HEADS)
def test_nan_comes_out_as_nan(head: str):
    """In features or targets, of one row: the answer and the loss say so, and the other rows are unharmed."""
    policy = policy_of(head)
    features_BHD, targets_BHA = random_features(policy), targets_of(policy)
    features_BHD[1] = torch.nan
    actions_BHA = policy.head.sample(slot_by_slot(features_BHD), generators(0, 1, 2))
    assert actions_BHA.isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert actions_BHA[::2].isfinite().all()
    targets_BHA[2, 3, 0] = torch.nan
    nan_BH = seeded_loss(policy, slot_by_slot(features_BHD), targets_BHA).isnan()
    assert nan_BH.nonzero().tolist() == [[1, h] for h in range(policy.horizon)] + [[2, 3]]


@pytest.mark.parametrize("head", HEADS)
def test_one_batch_can_be_overfitted(head: str):
    """What was seen is learnt by heart: not only is the loss low, the samples are near the targets (0.6 by chance)."""
    policy = copy.deepcopy(policy_of(head))
    policy.backbone.requires_grad_(False)  # looking costs the most, and is not what is tested
    for name in ("layers", "norm", "queries_HD", "noisy_action", "time"):
        if (part := getattr(policy.backbone, name, None)) is not None:
            part.requires_grad_()
    [context_BND] = features_of(policy, [0, 1, 2]).args
    copies, steps = (16, 350) if policy.head.denoises else (1, 150)  # each copy with its own noise
    features = partial(policy.backbone, context_BND.repeat(copies, 1, 1))
    targets_BHA = targets_of(policy)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    torch.manual_seed(0)
    losses = []
    for _ in range(steps):
        loss = policy.head.loss_BH(features, targets_BHA.repeat(copies, 1, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        actions_BHA = policy.head.sample(partial(policy.backbone, context_BND), generators(0, 1, 2))
    assert np.mean(losses[-20:]) < 0.05 * losses[0]
    assert (actions_BHA - targets_BHA).abs().mean() < 0.1


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded_it_acts_the_same(head: str, tmp_path: Path):
    policy = policy_of(head)
    save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    assert type(loaded.head) is type(policy.head)
    observation = policy.spec.random(np.random.default_rng(0))
    [expected], [got] = policy.act([observation], [5]), loaded.act([observation], [5])
    np.testing.assert_array_equal(got.actions_HA, expected.actions_HA)
