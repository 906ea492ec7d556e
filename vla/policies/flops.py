"""Work by formula: floating-point operations of one chunk and bytes of weights, for policies such as OpenVLA-OFT's.

Counted is what matrix products need, two operations for each multiplication and addition; norms, activations and
resizing are left out (under 1 %). Attention among N tokens of width D costs 4 N^2 D in each layer.
"""

from torch import nn

from vla.core.errors import GrasplineError
from vla.policies.backbones.dinosiglip import DinoSiglip
from vla.policies.backbones.vlm import VLMBackbone
from vla.policies.vla import VLAPolicy

FILM = ("scale", "shift")


def chunk_flops(policy: VLAPolicy, *, prompt: int, training: bool = False) -> dict[str, float]:
    """Floating-point operations for one observation, by part: "vision", "projector", "language", "head".

    Args:
        policy: its weights may be on the meta device. Adapters count as the linear layers that they are.
        prompt: tokens of the instruction, the first (BOS) included.
        training: forward and backward: a product with weights costs two times (the gradient of its input), three times
            if they are trained; what gradient checkpointing computes again is not counted.

    Raises:
        GrasplineError: another backbone, or a head that asks for features more than once.
    """
    backbone, vision = _parts(policy)
    images, length = backbone.cameras, sequence_length(policy, prompt=prompt)
    pixels = backbone.num_seen
    config = backbone.language.config
    attention = 3 if training else 1
    seeing = sum(
        images * (_products(tower.blocks, _tokens(tower), training) + _stem(tower))
        + images * attention * _depth(tower) * _attention(_tokens(tower), tower.embed_dim)
        for tower in (vision.featurizer, vision.fused_featurizer)
    )
    numbers = _products(backbone.proprio_projector, 1, training) if backbone.proprio_projector is not None else 0.0
    reading = _products(backbone.language, length, training)
    reading += attention * config.num_hidden_layers * _attention(length, config.hidden_size)
    return {
        "vision": seeing,
        "projector": _products(backbone.projector, pixels, training) + numbers,
        "language": reading,
        "head": _products(policy.head, policy.horizon, training),
    }


def skipped_flops(policy: VLAPolicy, *, prompt: int) -> dict[str, float]:
    """What the published code computes beside `chunk_flops` and throws away: "last_blocks" and "lm_head".

    Arguments and errors as of `chunk_flops`.
    """
    backbone, vision = _parts(policy)
    blocks = sum(
        _products(tower.blocks, _tokens(tower), False) / _depth(tower) + _attention(_tokens(tower), tower.embed_dim)
        for tower in (vision.featurizer, vision.fused_featurizer)
    )
    vocabulary = backbone.language.embed_tokens.weight.numel()
    length = sequence_length(policy, prompt=prompt)
    return {"last_blocks": backbone.cameras * blocks, "lm_head": 2.0 * length * vocabulary}


def sequence_length(policy: VLAPolicy, *, prompt: int) -> int:
    """N, the tokens that the language model reads: prompt, images, state, slots and the stop token."""
    backbone, _ = _parts(policy)
    slots = backbone.horizon * backbone.slots_per_action
    return prompt + backbone.num_seen + (backbone.proprio_projector is not None) + slots + 1


def weight_bytes(policy: VLAPolicy) -> float:
    """Bytes of weights that each chunk has to read: all but the table of word embeddings."""
    backbone, _ = _parts(policy)
    return float(sum(each.nbytes for each in policy.parameters()) - backbone.language.embed_tokens.weight.nbytes)


def _parts(policy: VLAPolicy) -> tuple[VLMBackbone, DinoSiglip]:
    backbone = policy.backbone
    if not isinstance(backbone, VLMBackbone) or not isinstance(backbone.vision, DinoSiglip) or policy.head.denoises:
        raise GrasplineError(
            f"no formula for the work of this {policy.preset} policy, only for openvla_oft with head=l1"
        )
    return backbone, backbone.vision


def _products(module: nn.Module, tokens: int, training: bool) -> float:
    """Products with the weights of linear layers, at `tokens` places; FiLM's see one condition."""
    total = 0.0
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            places = 1 if not set(FILM).isdisjoint(name.split(".")) else tokens
            times = 2 + layer.weight.requires_grad if training else 1
            total += 2.0 * places * layer.weight.numel() * times
    return total


def _stem(tower: nn.Module) -> float:
    """The convolution that makes patches into tokens; no gradient flows on to pixels, and it is not adapted."""
    return 2.0 * tower.patch_embed.num_patches * tower.patch_embed.proj.weight.numel()  # pyright: ignore


def _tokens(tower: nn.Module) -> int:
    return tower.patch_embed.num_patches + tower.num_prefix_tokens  # pyright: ignore


def _depth(tower: nn.Module) -> int:
    return len(tower.blocks)  # pyright: ignore


def _attention(tokens: int, width: int) -> float:
    return 4.0 * tokens**2 * width
