"""The fast OpenVLA-OFT against a slow one written from the description, on random checkpoints in the published layout.

The slow one computes in float64; its towers and its language model are checked against timm and transformers in turn.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from tests.golden import openvla_reference as slow
from tests.golden.openvla_twin import IMAGE, MEANS, STATISTICS_KEY, STDS, prompt_ids, write_twin
from vla.core.types import Observation
from vla.policies.preprocess import centre_crop, jpeg_round_trip, lanczos_resize
from vla.policies.published import load_published
from vla.policies.vla import VLAPolicy

SHORT, LONG = "push", "Put the black bowl next to the cream cheese on top of the wooden cabinet"
DIFFUSION_STEPS = 50

assert_close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a twin, written once for each set of arguments."""
    folders: dict[str, Path] = {}

    def folder(**arguments) -> Path:
        key = json.dumps(arguments)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("twin") / "checkpoint"
            write_twin(folders[key], **arguments)
        return folders[key]

    return folder


def observed(policy: VLAPolicy, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (B, K, 40, 40, 3) with edges and shades, and states as if normalised (B, S)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (size, len(policy.cameras), 5, 5, 3))
    images = np.clip(np.kron(coarse, np.ones((1, 1, 8, 8, 1))) + rng.normal(0, 8, (40, 40, 1)), 0, 255)
    state_BS = rng.uniform(-1, 1, (size, policy.spec.state_dim)).astype(np.float32)
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(state_BS)


def as_seen(images_KHWC: Tensor) -> Tensor:
    return centre_crop(lanczos_resize(jpeg_round_trip(images_KHWC), IMAGE))


def published_gripper(outputs_BHA: Tensor) -> Tensor:
    """Our head's gripper output as the published one: ours is positive to close, theirs is 1 to open and 0 to close."""
    return torch.cat([outputs_BHA[..., :-1], (1 - outputs_BHA[..., -1:]) / 2], dim=-1)


def test_the_tokenizer_has_the_published_ids(twin: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_file(str(twin() / "tokenizer.json"))
    text = f"In: What action should the robot take to {LONG.lower()}?\nOut:"
    assert [*tokenizer.encode(text).ids, 29871] == prompt_ids(LONG)
    assert [tokenizer.token_to_id(token) for token in ("<s>", "</s>", "▁", "<PAD>")] == [1, 2, 29871, 32000]


@pytest.mark.parametrize("tower", [0, 1])
def test_the_slow_towers_are_timms(twin: Callable[..., Path], tower: int) -> None:
    """timm's own models, narrowed by arguments, take the published keys strictly and give the same tokens."""
    name = ("featurizer", "fused_featurizer")[tower]
    model_id = json.loads((twin() / "config.json").read_text())["timm_model_ids"][tower]
    sizes: dict[str, Any] = {"img_size": IMAGE, "embed_dim": (32, 48)[tower], "depth": 3, "num_heads": 2}
    vit = timm.create_model(model_id, num_classes=0, **sizes).double().eval()
    assert isinstance(vit, VisionTransformer)
    checkpoint, prefix = slow.read_checkpoint(twin()), f"vision_backbone.{name}."
    state = {key.removeprefix(prefix): w for key, w in checkpoint.tensors.items() if key.startswith(prefix)}
    vit.load_state_dict({key.replace("scale_factor", "gamma"): weight for key, weight in state.items()})
    image_HWC = torch.randint(0, 256, (IMAGE, IMAGE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels_HWC = (image_HWC.double() / 255 - torch.tensor(MEANS[tower])) / torch.tensor(STDS[tower])
    with torch.no_grad():
        (theirs_1ND,) = vit.get_intermediate_layers(pixels_HWC.permute(2, 0, 1)[None], n=[1])
    ours_ND = slow.tower_tokens(checkpoint, name, image_HWC, MEANS[tower], STDS[tower])
    torch.testing.assert_close(ours_ND, theirs_1ND[0], rtol=1e-6, atol=1e-6)  # the constants are float32 in theirs


def test_the_slow_language_model_is_a_bidirectional_llama(twin: Callable[..., Path]) -> None:
    """transformers' Llama under a mask that hides nothing; the published config leaves all else at its defaults."""
    text: dict[str, Any] = json.loads((twin() / "config.json").read_text())["text_config"]
    text["attn_implementation"] = "eager"
    llama = LlamaModel(LlamaConfig(**text)).double().eval()
    checkpoint, prefix = slow.read_checkpoint(twin()), "language_model.model."
    llama.load_state_dict({k.removeprefix(prefix): w for k, w in checkpoint.tensors.items() if k.startswith(prefix)})
    tokens_ND = torch.randn(30, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        theirs = llama(inputs_embeds=tokens_ND[None], attention_mask=torch.zeros(1, 1, 30, 30).double())
    ours_ND = slow.hidden_states(checkpoint, tokens_ND)
    assert_close(ours_ND, theirs.last_hidden_state[0])  # angles are float32


@pytest.mark.parametrize("film", [False, True])
def test_images_are_seen_alike(twin: Callable[..., Path], film: bool) -> None:
    policy, checkpoint = load_published(twin(film=film)), slow.read_checkpoint(twin(film=film))
    images_BKHWC, _ = observed(policy, size=1)
    condition_D = slow.film_condition(checkpoint, prompt_ids(SHORT)) if film else None
    tokens_ND = slow.image_tokens(checkpoint, as_seen(images_BKHWC[0])[1], condition_D)
    condition_ND = condition_D[None].expand(2, -1).float() if condition_D is not None else None
    with torch.no_grad():
        fast_NTD = policy.backbone.vision(images_BKHWC[0], condition_ND)  # pyright: ignore[reportCallIssue]
        fast_TD = policy.backbone.projector(fast_NTD)[1]  # pyright: ignore[reportCallIssue]
    assert_close(fast_NTD[1].double(), tokens_ND)
    assert_close(fast_TD.double(), slow.project(checkpoint, tokens_ND))


@pytest.mark.parametrize(
    ("arguments", "loading", "instructions"),
    [
        ({}, {}, (LONG,)),
        ({}, {"horizon": 2}, (SHORT, LONG)),
        ({}, {"horizon": 3, "cameras": ("agentview",)}, (SHORT,)),
        ({}, {"horizon": 1, "cameras": ("wrist", "agentview")}, (LONG, SHORT)),
        ({"seed": 1, "film": True}, {"horizon": 2}, (SHORT, LONG)),
        ({"action_dim": 14, "proprio_dim": 14}, {"horizon": 3}, (LONG,)),
    ],
    ids=["libero", "padded", "one camera", "order of cameras", "film", "aloha"],
)
def test_l1_actions_agree(
    twin: Callable[..., Path], arguments: dict, loading: dict, instructions: Sequence[str]
) -> None:
    """Features and actions, one observation at a time in the slow network, all at once in the fast one."""
    folder = twin(**arguments)
    policy, checkpoint = load_published(folder, **loading), slow.read_checkpoint(folder)
    images_BKHWC, state_BS = observed(policy, size=len(instructions))
    with torch.no_grad():
        context = policy.backbone.encode(images_BKHWC, state_BS, instructions)  # pyright: ignore[reportCallIssue]
        features_BHF = policy.backbone(context)
        outputs_BHA = policy.head(features_BHF)
    if policy.spec.binary_A.any():
        outputs_BHA = published_gripper(outputs_BHA)
    sizes = {"horizon": policy.horizon, "action_dim": policy.spec.action_dim}
    for row, instruction in enumerate(instructions):
        seen = (as_seen(images_BKHWC[row]), state_BS[row], prompt_ids(instruction))
        features_ND = slow.slot_features(checkpoint, *seen, **sizes)
        actions_HA = slow.reference_actions(checkpoint, *seen, **sizes)
        assert_close(features_BHF[row].double(), features_ND.reshape(policy.horizon, -1))
        assert_close(outputs_BHA[row].double(), actions_HA)


def test_commands_are_the_published_ones(twin: Callable[..., Path]) -> None:
    """From an observation in physical units to a command: normalised by quantiles, and the gripper by its sign."""
    policy, checkpoint = load_published(twin()), slow.read_checkpoint(twin())
    numbers = json.loads((twin() / "dataset_statistics.json").read_text())[STATISTICS_KEY]
    images, observations = [], []
    for seed in range(2):
        images_1KHWC = np.random.default_rng(seed).integers(0, 256, (1, 2, 256, 256, 3), np.uint8)
        images.append(as_seen(torch.from_numpy(images_1KHWC[0])))
        views = dict(zip(policy.cameras, images_1KHWC[0]))
        state_S = np.random.default_rng(seed).standard_normal(8, np.float32)
        observations.append(Observation(images=views, state_S=state_S, instruction=SHORT, time_s=0.0))
    chunks = policy.act(observations, seeds=[0, 0])
    for images_KHWC, observation, chunk in zip(images, observations, chunks):
        low_S, high_S = np.array(numbers["proprio"]["q01"]), np.array(numbers["proprio"]["q99"])
        state_S = np.clip(2 * (observation.state_S - low_S) / (high_S - low_S + 1e-8) - 1, -1, 1)
        actions_HA = slow.reference_actions(
            checkpoint, images_KHWC, torch.from_numpy(state_S), prompt_ids(SHORT), horizon=8, action_dim=7
        ).numpy()
        low_A, high_A = np.array(numbers["action"]["q01"]), np.array(numbers["action"]["q99"])
        commands_HA = 0.5 * (actions_HA + 1) * (high_A - low_A + 1e-8) + low_A
        commands_HA[:, 6] = -np.sign(2 * actions_HA[:, 6] - 1)
        np.testing.assert_allclose(chunk.actions_HA, np.clip(commands_HA, -1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [0, 7, 49])
def test_the_predicted_noise_agrees(twin: Callable[..., Path], step: int) -> None:
    folder = twin(head="diffusion")
    policy, checkpoint = load_published(folder, horizon=2), slow.read_checkpoint(folder)
    images_BKHWC, state_BS = observed(policy, size=1)
    noisy_HA = torch.randn(2, 7, generator=torch.Generator().manual_seed(step))
    with torch.no_grad():
        context = policy.backbone.encode(images_BKHWC, state_BS, [SHORT])  # pyright: ignore[reportCallIssue]
        time_B = torch.tensor([step / DIFFUSION_STEPS])
        noise_BHA = policy.head(policy.backbone(context, noisy_HA[None], time_B))
    seen = (as_seen(images_BKHWC[0]), state_BS[0], prompt_ids(SHORT))
    noise_HA = slow.reference_noise(checkpoint, *seen, noisy_HA=noisy_HA, step=step)
    assert_close(noise_BHA[0].double(), noise_HA)


def test_the_tokens_logits_agree(twin: Callable[..., Path]) -> None:
    """One camera and no proprioception, as token checkpoints are published; all 32064 logits."""
    folder = twin(head="discrete", proprio_dim=0)
    policy = load_published(folder, horizon=2, head="tokens", cameras=("agentview",))
    checkpoint = slow.read_checkpoint(folder)
    images_BKHWC, state_BS = observed(policy, size=1)
    with torch.no_grad():
        context = policy.backbone.encode(images_BKHWC, state_BS, [LONG])  # pyright: ignore[reportCallIssue]
        logits_BHAV = policy.head(policy.backbone(context))
    seen = (as_seen(images_BKHWC[0]), state_BS[0], prompt_ids(LONG))
    logits_NV = slow.reference_logits(checkpoint, *seen, horizon=2, action_dim=7)
    assert_close(logits_BHAV[0].double().flatten(0, 1), logits_NV)
