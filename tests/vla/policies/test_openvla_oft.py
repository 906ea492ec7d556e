from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vla.core.errors import UnknownNameError
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies import load
from vla.policies.heads.l1 import L1Head
from vla.policies.openvla_oft import HEADS, SIZES, openvla_oft_policy
from vla.policies.vla import VLAPolicy

pytestmark = pytest.mark.usefixtures("one_thread")


def body(action_dim: int, state_dim: int) -> Embodiment:
    """LIBERO's arm or ALOHA's, as far as the network is concerned."""
    return Embodiment(
        name="arm",
        state=tuple(Axis(name=f"s{i}", unit="m") for i in range(state_dim)),
        action=tuple(Axis(name=f"a{i}", unit="m", low=-1, high=1) for i in range(action_dim)),
        cameras=(Camera(name="front", height=40, width=40), Camera(name="wrist", height=40, width=40)),
        control_hz=20.0,
    )


def on_meta(*, action_dim: int = 7, state_dim: int = 8, horizon: int = 8, **changes) -> VLAPolicy:
    spec, rng = body(action_dim, state_dim), np.random.default_rng(0)
    data = rng.standard_normal((50, state_dim)), rng.uniform(-1, 1, (50, action_dim))
    parts = {"spec": spec, "transforms": Transforms.fit(spec, *data), "cameras": spec.camera_names}
    with torch.device("meta"):
        return openvla_oft_policy(**parts, horizon=horizon, **changes)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def make_twin(toy_spec: Embodiment, toy_transforms: Transforms) -> Callable[..., VLAPolicy]:
    def make(seed: int = 0, **changes) -> VLAPolicy:
        torch.manual_seed(seed)
        parts = {"spec": toy_spec, "transforms": toy_transforms, "cameras": toy_spec.camera_names, "horizon": 4}
        return openvla_oft_policy(**{**parts, "size": "twin", **changes}).eval()

    return make


@pytest.fixture(scope="module")
def published() -> VLAPolicy:
    return on_meta(size="7b")


def test_published_parameter_counts(published: VLAPolicy):
    policy = published
    backbone = policy.backbone
    lm_head = SIZES["7b"].vocabulary * SIZES["7b"].width  # published, not built
    assert count(backbone.language) + lm_head == pytest.approx(6.74e9, abs=0.005e9)
    assert count(backbone.projector) == pytest.approx(71.4e6, abs=0.05e6)
    assert count(backbone.proprio_projector) == pytest.approx(16.8e6, abs=0.05e6)
    assert count(policy.head) == 151_117_831
    assert backbone.language.config.rms_norm_eps == 1e-6
    with torch.device("meta"):
        aloha = L1Head(width=14 * 4096, hidden=4096, binary=[False] * 14)
    assert count(aloha) == pytest.approx(268.6e6, abs=5e4)


def test_published_lora_counts(published: VLAPolicy):
    """Adapters of rank 32 on every linear layer have (in + out) * 32 numbers each; OpenVLA logs their sums."""
    backbone = published.backbone

    def lora(module: nn.Module) -> int:
        linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
        return 32 * sum(linear.in_features + linear.out_features for linear in linears)

    assert lora(backbone.language) == 79_953_920
    assert lora(backbone.projector) == 1_019_904
    assert lora(backbone.vision.featurizer) * 24 == 12_582_912 * 23  # the last block is not built
    assert lora(backbone.vision.fused_featurizer) * 27 == 15_399_936 * 26


@pytest.mark.parametrize(
    ("size", "least", "most"), [("twin", 1e6, 5e6), ("10m", 8e6, 12e6), ("100m", 80e6, 120e6), ("1b", 0.9e9, 1.3e9)]
)
def test_sizes_are_what_they_are_called(size: str, least: float, most: float):
    assert least < count(on_meta(size=size)) < most


def test_names_that_published_weights_have():
    """Less prefixes, these are the names in the published files."""
    keys = on_meta(size="twin", film=True).backbone.state_dict().keys()
    for key in (
        "vision.featurizer.reg_token",
        "vision.featurizer.blocks.1.ls2.gamma",
        "vision.featurizer.blocks.0.scale.weight",
        "vision.fused_featurizer.blocks.0.attn.qkv.bias",
        "projector.fc3.bias",
        "language.embed_tokens.weight",
        "language.layers.1.self_attn.q_proj.weight",
        "language.layers.1.post_attention_layernorm.weight",
        "language.norm.weight",
        "proprio_projector.fc2.bias",
    ):
        assert key in keys
    assert not any("lm_head" in key or "rotary" in key for key in keys)


@pytest.mark.parametrize("changes", [{}, {"film": True}, {"proprio": False}, {"cameras": ("front",)}], ids=str)
def test_a_chunk_depends_on_its_own_observation_alone(changes: dict, make_twin: Callable[..., VLAPolicy]):
    policy, rng = make_twin(**changes), np.random.default_rng(0)
    observations = [policy.spec.random(rng, text) for text in ("push", "pick up the mug", "open the drawer")]
    together = policy.act(observations, [0, 1, 2])
    for observation, seed, chunk in zip(observations, (5, 6, 7), together, strict=True):
        assert chunk.actions_HA.shape == (4, 3)
        np.testing.assert_array_equal(policy.act([observation], [seed])[0].actions_HA, chunk.actions_HA)
    assert np.abs(together[0].actions_HA - together[1].actions_HA).max() > 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_acts(head: str, make_twin: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    policy = make_twin(head=head, film=True).train()
    policy.loss_BH(make_batch(size=2)).mean().backward()
    idle = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    observation = policy.spec.random(np.random.default_rng(0), "push")
    chunks = [policy.eval().act([observation], [seed])[0].actions_HA for seed in (3, 3)]
    assert chunks[0].shape == (4, 3)
    np.testing.assert_array_equal(*chunks)


def test_it_tells_observations_apart(make_twin: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    """Better than the best answer that ignores them, after a few steps."""
    policy, batch = make_twin(jpeg=False), make_batch(size=2)  # in evaluation mode: no augmentation
    blind = (batch.actions_BHA[0] - batch.actions_BHA[1]).abs().mean() / 2
    policy.backbone.language.embed_tokens.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=3e-4)
    for _ in range(50):
        optimizer.zero_grad()
        policy.loss_BH(batch).mean().backward()
        optimizer.step()
    assert policy.loss_BH(batch).mean() < 0.9 * blind


def test_saved_and_loaded(tmp_path: Path, make_twin: Callable[..., VLAPolicy]):
    policy = make_twin(film=True, dino_mean=[0.484375, 0.455078125, 0.40625], crop=False)
    load.save_policy(tmp_path, policy)
    again, observation = load.load_policy(tmp_path), policy.spec.random(np.random.default_rng(0), "push")
    assert again.arguments == policy.arguments
    chunks = [one.act([observation], [0])[0].actions_HA for one in (policy, again)]
    np.testing.assert_array_equal(*chunks)


def test_weights_put_into_a_policy_without_any(make_twin: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]):
    """How 7 B are loaded: built without memory, then given tensors. Nothing that no file holds may be missing."""
    filled, batch = make_twin(), make_batch(size=2)
    with torch.device("meta"):
        empty = make_twin()
    empty.load_state_dict(filled.state_dict(), assign=True)
    inputs = (batch.images_BKHWC, batch.state_BS, ["push", "pick up the mug"])
    with torch.no_grad():
        features = [policy.backbone(policy.backbone.encode(*inputs)) for policy in (filled, empty)]
    assert torch.equal(*features)


def test_unknown_size_and_head_name_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown size '7B'\. Did you mean '7b'"):
        on_meta(size="7B")
    with pytest.raises(UnknownNameError, match=r"unknown head 'l2'\. Did you mean 'l1'"):
        on_meta(size="twin", head="l2")
