"""OpenVLA-OFT: the published 7 B policy, its random twins of every size, and OFT+ (FiLM), from one function.

The network keeps the published names of its parts (`backbone.vision.featurizer`, `backbone.projector.fc1`,
`backbone.language.layers.0...`), so that vla/policies/published.py maps weights almost one to one. Source: Kim, Finn,
Liang 2025, "Fine-Tuning Vision-Language-Action Models: Optimizing Speed and Success" (arXiv 2502.19645).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import LlamaModel

from vla.core.errors import MissingAssetError, unknown_name
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.augment_openvla import OpenVLAAugmentation
from vla.policies.backbones.dinosiglip import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    DinoSiglip,
    Projector,
    Tower,
)
from vla.policies.backbones.language import llama
from vla.policies.backbones.prompt import Prompt, byte_tokenizer
from vla.policies.backbones.vlm import VLMBackbone
from vla.policies.heads.diffusion import DiffusionHead
from vla.policies.heads.flow import FlowHead
from vla.policies.heads.l1 import L1Head
from vla.policies.heads.tokens import TokensHead
from vla.policies.vla import VLAPolicy

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Geometry of the network: two vision towers, image side [px], and the language model."""

    dino: Tower
    siglip: Tower
    image_size: int
    width: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int = 32064  # Llama's 32000 and a padding token, rounded up to a multiple of 64


SIZES: Mapping[str, Size] = {
    "7b": Size(
        dino=Tower(width=1024, depth=24, heads=16),
        siglip=Tower(width=1152, depth=27, heads=16),
        image_size=224,
        width=4096,
        layers=32,
        heads=32,
        mlp=11008,
    ),
    "1b": Size(
        dino=Tower(width=768, depth=12, heads=12),
        siglip=Tower(width=768, depth=12, heads=12),
        image_size=224,
        width=2048,
        layers=16,
        heads=32,
        mlp=5632,
    ),
    "100m": Size(
        dino=Tower(width=384, depth=12, heads=6),
        siglip=Tower(width=384, depth=12, heads=6),
        image_size=224,
        width=512,
        layers=8,
        heads=8,
        mlp=1408,
    ),
    "10m": Size(
        dino=Tower(width=192, depth=6, heads=3),
        siglip=Tower(width=192, depth=6, heads=3),
        image_size=112,
        width=128,
        layers=4,
        heads=4,
        mlp=352,
    ),
    "twin": Size(
        dino=Tower(width=32, depth=3, heads=2),
        siglip=Tower(width=48, depth=3, heads=2),
        image_size=28,
        width=64,
        layers=2,
        heads=4,
        mlp=128,
    ),
}

HEADS = ("l1", "diffusion", "tokens", "flow")
FIRST_ACTION_ID = 31744  # of the 256 tokens that mean a bin of an action
OPEN_CLOSED = (1.0, 0.0)  # how the published data say a gripper's commands -1 and +1


def openvla_oft_policy(
    *,
    spec: Embodiment,
    transforms: Transforms,
    cameras: Sequence[str],
    horizon: int,
    files: Mapping[str, bytes] | None = None,
    size: str = "7b",
    head: str = "l1",
    film: bool = False,
    proprio: bool = True,
    jpeg: bool = True,
    crop: bool = True,
    dino_mean: Sequence[float] = DINO_MEAN,
    dino_std: Sequence[float] = DINO_STD,
    siglip_mean: Sequence[float] = SIGLIP_MEAN,
    siglip_std: Sequence[float] = SIGLIP_STD,
) -> VLAPolicy:
    """The policy with random weights. Under `torch.device("meta")` it allocates none, so 7 B can be built for loading.

    Args:
        spec: the embodiment.
        transforms: numbers to the network and back.
        cameras: in the order of training: scene first, then wrists.
        horizon: H.
        files: {"tokenizer.json": content}; None takes bytes for tokens, for a network trained from nothing.
        size: a name in SIZES.
        head: a name in HEADS.
        film: whether the instruction steers the vision towers (OFT+).
        proprio: whether the state is a token.
        jpeg: see `DinoSiglip`, as for the arguments that follow.
        crop: see `DinoSiglip`.
        dino_mean: see `DinoSiglip`.
        dino_std: see `DinoSiglip`.
        siglip_mean: see `DinoSiglip`.
        siglip_std: see `DinoSiglip`.

    Raises:
        UnknownNameError: no such size or head.
        MissingAssetError: files without a tokenizer.
        CorruptFileError: the tokenizer's file is damaged.
        GrasplineError: the installed transformers runs the language model causally.
    """
    geometry = _geometry(size)
    width = geometry.width
    action_head = _action_head(head, geometry, spec, horizon)
    colours = {"dino_mean": dino_mean, "dino_std": dino_std, "siglip_mean": siglip_mean, "siglip_std": siglip_std}
    files = _with_tokenizer(files)
    vision = DinoSiglip(
        dino=geometry.dino,
        siglip=geometry.siglip,
        image_size=geometry.image_size,
        condition=width if film else None,
        jpeg=jpeg,
        crop=crop,
        **colours,
    )
    backbone = VLMBackbone(
        vision=vision,
        language=_language(geometry),
        prompt=Prompt(tokenizer=files[TOKENIZER]),
        cameras=len(cameras),
        state_dim=spec.state_dim,
        action_dim=spec.action_dim,
        horizon=horizon,
        slots_per_action=spec.action_dim,
        projector=Projector(vision=vision.width, width=width),
        proprio=proprio,
        denoises=bool(action_head.denoises),
        film=film,
    )
    switches = {"size": size, "head": head, "film": film, "proprio": proprio, "jpeg": jpeg, "crop": crop}
    return VLAPolicy(
        spec=spec,
        transforms=transforms,
        cameras=cameras,
        horizon=horizon,
        backbone=backbone,
        head=action_head,
        preset="openvla_oft",
        arguments={**switches, **{name: list(values) for name, values in colours.items()}},
        files=files,
        augmentation=OpenVLAAugmentation(),
    )


def _geometry(size: str) -> Size:
    if size not in SIZES:
        raise unknown_name("size", size, SIZES)
    return SIZES[size]


def _with_tokenizer(files: Mapping[str, bytes] | None) -> Mapping[str, bytes]:
    files = {TOKENIZER: byte_tokenizer()} if files is None else files
    if TOKENIZER not in files:
        raise MissingAssetError(f"files: {TOKENIZER} is missing, got {sorted(files)}")
    return files


def _language(size: Size) -> LlamaModel:
    return llama(width=size.width, layers=size.layers, heads=size.heads, mlp=size.mlp, vocabulary=size.vocabulary)


def _action_head(name: str, geometry: Size, spec: Embodiment, horizon: int) -> nn.Module:
    """A head on features of A slots side by side; its residual blocks are as wide as one slot."""
    binary, width = spec.binary_A.tolist(), spec.action_dim * geometry.width
    match name:
        case "l1":
            return L1Head(width=width, binary=binary, hidden=geometry.width, gripper_loss="l1")
        case "diffusion":
            return DiffusionHead(
                width=width, binary=binary, hidden=geometry.width, horizon=horizon, binary_codes=OPEN_CLOSED
            )
        case "tokens":
            return TokensHead(
                width=width,
                binary=binary,
                slots_per_action=spec.action_dim,
                vocabulary=geometry.vocabulary,
                first_id=FIRST_ACTION_ID,
                binary_codes=OPEN_CLOSED,
            )
        case "flow":
            return FlowHead(width=width, binary=binary, hidden=geometry.width, horizon=horizon)
    raise unknown_name("head", name, HEADS)
