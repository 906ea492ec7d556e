"""Whole policies by name. A saved policy names one of these; nothing in a file can name other code."""

from collections.abc import Callable, Mapping, Sequence

from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.augment import Augmentation
from vla.policies.backbones.tiny import TinyBackbone
from vla.policies.heads.l1 import L1Head
from vla.policies.vla import VLAPolicy


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
    gripper_loss: str = "bce",
    gripper_weight: float = 0.1,
    shift: float = 0.04,
    contrast: float = 0.15,
    brightness: float = 0.1,
    state_noise: float = 0.05,
) -> VLAPolicy:
    """The policy that trains on a laptop: `backbones/tiny.py` with the L1 head.

    Defaults are those of configs/policy/tiny.yaml. Arguments after `horizon` are explained in `TinyBackbone`, `L1Head`
    and `Augmentation`.
    """
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
    )
    head = L1Head(width=width, binary=spec.binary_A.tolist(), gripper_loss=gripper_loss, gripper_weight=gripper_weight)
    strengths = {"shift": shift, "contrast": contrast, "brightness": brightness, "state_noise": state_noise}
    sizes = {"width": width, "layers": layers, "heads": heads, "image_size": image_size, "channels": [fine, coarse]}
    return VLAPolicy(
        spec=spec,
        transforms=transforms,
        cameras=cameras,
        horizon=horizon,
        backbone=backbone,
        head=head,
        preset="tiny",
        arguments={**sizes, "gripper_loss": gripper_loss, "gripper_weight": gripper_weight, **strengths},
        augmentation=Augmentation(**strengths),
    )


PRESETS: Mapping[str, Callable[..., VLAPolicy]] = {"tiny": tiny_policy}
