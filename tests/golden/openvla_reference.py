"""OpenVLA-OFT written out slowly in float64 from its description, on the tensors under their published names.

One observation at a time, loops over heads and patches, nothing of this repository and no model library: it is what the
fast network is compared with. Every stage has a function of its own, so that a difference can be located.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PATCH = 14
VIT_EPS, HEAD_EPS, RMS_EPS = 1e-6, 1e-5, 1e-6
ROPE_BASE = 10_000.0
STOP_ID = 2
LORA_SCALE = 0.5

type State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published folder: merged weights by name, components by name without `module.`, pixel statistics per tower."""

    tensors: State
    parts: Mapping[str, State]
    means: Sequence[Sequence[float]]
    stds: Sequence[Sequence[float]]
    tower_heads: int = 2
    language_heads: int = 4

    @property
    def vision(self) -> State:
        """The towers' tensors: with FiLM they come from a file of their own, not from the shards."""
        return self.parts.get("vision_backbone", self.tensors)


def read_checkpoint(folder: Path) -> Checkpoint:
    """All tensors of a folder as float64."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {file: load_file(folder / file) for file in set(index["weight_map"].values())}
    tensors = {name: shards[file][name].double() for name, file in index["weight_map"].items()}
    parts = {}
    for path in folder.glob("*_checkpoint.pt"):
        state = torch.load(path, weights_only=True)
        parts[path.name.split("--")[0]] = {name.removeprefix("module."): w.double() for name, w in state.items()}
    pixels = json.loads((folder / "preprocessor_config.json").read_text())
    return Checkpoint(tensors=tensors, parts=parts, means=pixels["means"], stds=pixels["stds"])


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """A layer with or without bias; where LoRA is not merged, base + 0.5 B A."""
    base = f"{name}.base_layer" if f"{name}.base_layer.weight" in state else name
    y = x @ _weight(state, name).flatten(1).T
    return y + state[f"{base}.bias"] if f"{base}.bias" in state else y


def _weight(state: State, name: str) -> Tensor:
    if f"{name}.base_layer.weight" not in state:
        return state[f"{name}.weight"]
    base = state[f"{name}.base_layer.weight"].flatten(1)
    down, up = state[f"{name}.lora_A.default.weight"].flatten(1), state[f"{name}.lora_B.default.weight"].flatten(1)
    return base + LORA_SCALE * (up @ down)


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """Normalised over the last axis, then scaled and shifted."""
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def rms_norm(state: State, name: str, x: Tensor) -> Tensor:
    """Divided by the root mean square of the last axis."""
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + RMS_EPS) * state[f"{name}.weight"]


def gelu(x: Tensor) -> Tensor:
    """The exact one, x times the normal distribution function."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(query_NC: Tensor, key_NC: Tensor, value_NC: Tensor) -> Tensor:
    """One head; every token sees every token."""
    rows = []
    for query_C in query_NC:
        logits_N = key_NC @ query_C / math.sqrt(len(query_C))
        odds_N = torch.exp(logits_N - logits_N.max())
        rows.append((odds_N / odds_N.sum()) @ value_NC)
    return torch.stack(rows)


def tower_tokens(
    checkpoint: Checkpoint, tower: str, image_HWC: Tensor, mean: Sequence[float], std: Sequence[float], condition_D=None
) -> Tensor:
    """Patch tokens (n, width) after the last block but one, not normalised, without class and register tokens."""
    state, name = checkpoint.vision, f"vision_backbone.{tower}"
    pixels_HWC = (image_HWC.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    patches = []
    for top in range(0, len(image_HWC), PATCH):
        for left in range(0, image_HWC.shape[1], PATCH):
            patch_HWC = pixels_HWC[top : top + PATCH, left : left + PATCH]
            patches.append(linear(state, f"{name}.patch_embed.proj", patch_HWC.permute(2, 0, 1).flatten()))
    x_ND = torch.stack(patches) + state[f"{name}.pos_embed"][0]
    prefix = [state[f"{name}.{token}"][0] for token in ("cls_token", "reg_token") if f"{name}.{token}" in state]
    x_ND = torch.cat([*prefix, x_ND])
    depth = 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"{name}.blocks."))
    for block in range(depth - 1):
        x_ND = _block(state, f"{name}.blocks.{block}", x_ND, checkpoint.tower_heads, condition_D)
    return x_ND[sum(len(tokens) for tokens in prefix) :]


def _block(state: State, name: str, x_ND: Tensor, heads: int, condition_D: Tensor | None) -> Tensor:
    inner = name if condition_D is None else f"{name}.block"
    width = x_ND.shape[1]
    qkv = linear(state, f"{inner}.attn.qkv", layer_norm(state, f"{inner}.norm1", x_ND, VIT_EPS))
    query, key, value = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
    size = width // heads
    parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
    mixed_ND = torch.cat([attend(query[:, part], key[:, part], value[:, part]) for part in parts], dim=1)
    x_ND = x_ND + _layer_scale(state, f"{inner}.ls1") * linear(state, f"{inner}.attn.proj", mixed_ND)
    if condition_D is not None:
        scale, shift = linear(state, f"{name}.scale", condition_D), linear(state, f"{name}.shift", condition_D)
        x_ND = x_ND * (1 + scale) + shift
    hidden = gelu(linear(state, f"{inner}.mlp.fc1", layer_norm(state, f"{inner}.norm2", x_ND, VIT_EPS)))
    return x_ND + _layer_scale(state, f"{inner}.ls2") * linear(state, f"{inner}.mlp.fc2", hidden)


def _layer_scale(state: State, name: str) -> Tensor | float:
    return state.get(f"{name}.scale_factor", 1.0)


def image_tokens(checkpoint: Checkpoint, image_HWC: Tensor, condition_D: Tensor | None = None) -> Tensor:
    """DINOv2 beside SigLIP (n, 32 + 48) of one uint8 image of the network's size."""
    towers = ("featurizer", "fused_featurizer")
    both = [
        tower_tokens(checkpoint, tower, image_HWC, mean, std, condition_D)
        for tower, mean, std in zip(towers, checkpoint.means, checkpoint.stds)
    ]
    return torch.cat(both, dim=1)


def project(checkpoint: Checkpoint, tokens_ND: Tensor) -> Tensor:
    """Image tokens to the language model's width: three layers, two GELUs."""
    state = checkpoint.tensors
    hidden = gelu(linear(state, "projector.fc1", tokens_ND))
    return linear(state, "projector.fc3", gelu(linear(state, "projector.fc2", hidden)))


def film_condition(checkpoint: Checkpoint, prompt_ids: Sequence[int]) -> Tensor:
    """The mean embedding (D,) of all that is not an action: beginning, prompt, 29871 and stop."""
    table_VD = checkpoint.tensors["language_model.model.embed_tokens.weight"]
    return torch.stack([table_VD[number] for number in [*prompt_ids, STOP_ID]]).mean(0)


def step_embedding(step: float, width: int) -> Tensor:
    """Sines, then cosines, of the diffusion step at frequencies from 1 down to 1 / 10000."""
    half = width // 2
    angles = torch.tensor([step * math.exp(-math.log(10_000) * i / (half - 1)) for i in range(half)]).double()
    return torch.cat([angles.sin(), angles.cos()])


def sequence(
    checkpoint: Checkpoint,
    images_KHWC: Tensor,
    state_S: Tensor,
    prompt_ids: Sequence[int],
    slots: int,
    noisy_HA: Tensor | None = None,
    step: float | None = None,
) -> tuple[Tensor, int]:
    """What the language model reads, (N, D), and the place of the last prompt token in it.

    Order: beginning, images, proprioception, diffusion step, rest of the prompt, action slots, stop.
    """
    table_VD = checkpoint.tensors["language_model.model.embed_tokens.weight"]
    condition_D = film_condition(checkpoint, prompt_ids) if "vision_backbone" in checkpoint.parts else None
    rows = [table_VD[prompt_ids[:1]]]
    rows += [project(checkpoint, image_tokens(checkpoint, image_HWC, condition_D)) for image_HWC in images_KHWC]
    if "proprio_projector" in checkpoint.parts:
        rows.append(_two_layers(checkpoint.parts["proprio_projector"], state_S.double())[None])
    if step is not None:
        rows.append(step_embedding(step, table_VD.shape[1])[None])
    rows.append(table_VD[prompt_ids[1:]])
    last_prompt = sum(len(row) for row in rows) - 1
    if noisy_HA is None:
        rows.append(torch.zeros(slots, table_VD.shape[1]).double())
    else:
        projector = checkpoint.parts["noisy_action_projector"]
        rows.append(torch.stack([_two_layers(projector, scalar[None].double()) for scalar in noisy_HA.flatten()]))
    rows.append(table_VD[[STOP_ID]])
    return torch.cat(rows), last_prompt


def _two_layers(state: State, x: Tensor) -> Tensor:
    return linear(state, "fc2", gelu(linear(state, "fc1", x)))


def hidden_states(checkpoint: Checkpoint, x_ND: Tensor) -> Tensor:
    """The language model's output (N, D) after its last norm, positions counted from 0."""
    state, name = checkpoint.tensors, "language_model.model"
    layers = 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"{name}.layers."))
    for layer in range(layers):
        x_ND = _layer(state, f"{name}.layers.{layer}", x_ND, checkpoint.language_heads)
    return rms_norm(state, f"{name}.norm", x_ND)


def _layer(state: State, name: str, x_ND: Tensor, heads: int) -> Tensor:
    normed = rms_norm(state, f"{name}.input_layernorm", x_ND)
    query, key, value = (linear(state, f"{name}.self_attn.{part}_proj", normed) for part in "qkv")
    size = x_ND.shape[1] // heads
    parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
    mixed_ND = torch.cat([attend(rotate(query[:, p]), rotate(key[:, p]), value[:, p]) for p in parts], dim=1)
    x_ND = x_ND + linear(state, f"{name}.self_attn.o_proj", mixed_ND)
    normed = rms_norm(state, f"{name}.post_attention_layernorm", x_ND)
    gate, up = linear(state, f"{name}.mlp.gate_proj", normed), linear(state, f"{name}.mlp.up_proj", normed)
    return x_ND + linear(state, f"{name}.mlp.down_proj", gate / (1 + torch.exp(-gate)) * up)


def rotate(x_NC: Tensor) -> Tensor:
    """Rotary positions: channels i and i + C/2 of token n turn together by n / base^(2i / C)."""
    half = x_NC.shape[1] // 2
    turned_NC = torch.empty_like(x_NC)
    for i in range(half):
        angle_N = torch.arange(len(x_NC)).double() * ROPE_BASE ** (-i / half)
        first_N, second_N = x_NC[:, i], x_NC[:, i + half]
        turned_NC[:, i] = first_N * angle_N.cos() - second_N * angle_N.sin()
        turned_NC[:, i + half] = second_N * angle_N.cos() + first_N * angle_N.sin()
    return turned_NC


def slot_features(
    checkpoint: Checkpoint,
    images_KHWC: Tensor,
    state_S: Tensor,
    prompt_ids: Sequence[int],
    *,
    horizon: int,
    action_dim: int,
    noisy_HA: Tensor | None = None,
    step: float | None = None,
) -> Tensor:
    """Features (H * A, D): those of a slot are the hidden state one position before it, time-major."""
    slots = horizon * action_dim
    x_ND, last_prompt = sequence(checkpoint, images_KHWC, state_S, prompt_ids, slots, noisy_HA, step)
    return hidden_states(checkpoint, x_ND)[last_prompt : last_prompt + slots]


def residual_mlp(state: State, prefix: str, x_HF: Tensor) -> Tensor:
    """The head (H, A): norm, layer, ReLU; two times x + ReLU(layer(norm(x))); norm, layer."""
    x = linear(state, f"{prefix}fc1", layer_norm(state, f"{prefix}layer_norm1", x_HF, HEAD_EPS)).clamp(min=0)
    for block in range(2):
        name = f"{prefix}mlp_resnet_blocks.{block}.ffn"
        x = x + linear(state, f"{name}.1", layer_norm(state, f"{name}.0", x, HEAD_EPS)).clamp(min=0)
    return linear(state, f"{prefix}fc2", layer_norm(state, f"{prefix}layer_norm2", x, HEAD_EPS))


def reference_actions(
    checkpoint: Checkpoint,
    images_KHWC: Tensor,
    state_S: Tensor,
    prompt_ids: Sequence[int],
    *,
    horizon: int,
    action_dim: int,
) -> Tensor:
    """Normalised actions (H, A) of the L1 head.

    Args:
        checkpoint: see the class.
        images_KHWC: uint8, of the network's size, in the order of the cameras.
        state_S: normalised.
        prompt_ids: with the beginning and the trailing 29871.
        horizon: H.
        action_dim: A.
    """
    features = slot_features(checkpoint, images_KHWC, state_S, prompt_ids, horizon=horizon, action_dim=action_dim)
    return residual_mlp(checkpoint.parts["action_head"], "model.", features.reshape(horizon, -1))


def reference_noise(
    checkpoint: Checkpoint,
    images_KHWC: Tensor,
    state_S: Tensor,
    prompt_ids: Sequence[int],
    *,
    noisy_HA: Tensor,
    step: float,
) -> Tensor:
    """The noise (H, A) that the diffusion head sees in `noisy_HA` at one of its steps 0 to 49."""
    horizon, action_dim = noisy_HA.shape
    sizes = {"horizon": horizon, "action_dim": action_dim}
    features = slot_features(checkpoint, images_KHWC, state_S, prompt_ids, **sizes, noisy_HA=noisy_HA, step=step)
    prefix = "noise_predictor.mlp_resnet."
    return residual_mlp(checkpoint.parts["action_head"], prefix, features.reshape(horizon, -1))


def reference_logits(
    checkpoint: Checkpoint,
    images_KHWC: Tensor,
    state_S: Tensor,
    prompt_ids: Sequence[int],
    *,
    horizon: int,
    action_dim: int,
) -> Tensor:
    """Logits (H * A, vocabulary) of the token variant, whose arg-max are the action ids."""
    features = slot_features(checkpoint, images_KHWC, state_S, prompt_ids, horizon=horizon, action_dim=action_dim)
    return linear(checkpoint.tensors, "language_model.lm_head", features)
