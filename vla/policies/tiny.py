"""The policy that trains on a laptop: `backbones/tiny.py` with a head of one's choice."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla.core.errors import unknown_name
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.augment import Augmentation
from vla.policies.backbones.tiny import TinyBackbone
from vla.policies.heads.diffusion import DiffusionHead
from vla.policies.heads.flow import FlowHead
from vla.policies.heads.l1 import L1Head
from vla.policies.heads.tokens import TokensHead
from vla.policies.vla import VLAPolicy

DENOISING_HEADS = {"diffusion": DiffusionHead, "flow": FlowHead}
HEADS = (*DENOISING_HEADS, "l1", "tokens")


def tiny_policy(
    *,
    spec: Embodiment,
    transforms: Transforms,
    cameras: Sequence[str],
    horizon: int,
    width: int = 192,
    layers: int = 3,
    heads: int = 6,
    image_size: int = 96,
    channels: Sequence[int] = (32, 96),
    head: str = "l1",
    gripper_loss: str = "bce",
    gripper_weight: float = 0.1,
    shift: float = 0.04,
    contrast: float = 0.15,
    brightness: float = 0.1,
    state_noise: float = 0.05,
) -> VLAPolicy:
    """The policy with random weights.

    Defaults are those of configs/policy/tiny.yaml. Arguments after `horizon` are explained in `TinyBackbone`, `L1Head`
    (whose alone the gripper's loss and weight are) and `Augmentation`.

    Raises:
        UnknownNameError: a head or gripper loss that does not exist.
    """
    if head not in HEADS:
        raise unknown_name("head", head, HEADS)
    fine, coarse = channels
    backbone = TinyBackbone(
        cameras=len(cameras),
        state_dim=spec.state_dim,
        horizon=horizon,
        width=width,
        layers=layers,
        heads=heads,
        image_size=image_size,
        channels=(fine, coarse),
        noisy_action_dim=spec.action_dim if head in DENOISING_HEADS else None,
    )
    gripper = {"gripper_loss": gripper_loss, "gripper_weight": gripper_weight}
    strengths = {"shift": shift, "contrast": contrast, "brightness": brightness, "state_noise": state_noise}
    sizes = {"width": width, "layers": layers, "heads": heads, "image_size": image_size, "channels": [fine, coarse]}
    return VLAPolicy(
        spec=spec,
        transforms=transforms,
        cameras=cameras,
        horizon=horizon,
        backbone=backbone,
        head=_head(head, width=width, horizon=horizon, binary=spec.binary_A.tolist(), gripper=gripper),
        preset="tiny",
        arguments={**sizes, "head": head, **gripper, **strengths},
        augmentation=Augmentation(**strengths),
    )


def _head(
    name: str, *, width: int, horizon: int, binary: Sequence[bool], gripper: Mapping[str, Any]
) -> DiffusionHead | FlowHead | L1Head | TokensHead:
    """One of `HEADS`, over one feature vector per action."""
    if name in DENOISING_HEADS:
        return DENOISING_HEADS[name](width=width, horizon=horizon, binary=binary)
    if name == "tokens":
        return TokensHead(width=width, binary=binary)
    return L1Head(width=width, binary=binary, **gripper)
