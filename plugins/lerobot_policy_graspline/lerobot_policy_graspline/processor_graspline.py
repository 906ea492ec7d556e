"""lerobot's observations to ours. Normalisation is the policy's own affair, so lerobot's pipelines only move data.

Agreed with lerobot's LIBERO, so passed on as they are: images turned upright, state (position, rotation vector, two
fingers), seven actions with the gripper at -1 open and +1 closed. Not agreed: camera names, image sizes (it renders
360 px unless told otherwise), and images as float channels first.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.factory import make_policy_processor_pipelines
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor
from torch.nn.functional import interpolate

from vla.core.errors import unknown_name
from vla.core.spec import Camera, Embodiment
from vla.core.types import Image, Observation


def make_graspline_pre_post_processors(
    config: PreTrainedConfig, dataset_stats: Mapping[str, Any] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """The two pipelines that lerobot asks for, by this name. `dataset_stats` are not used."""
    before = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device=str(config.device)),
    ]
    return make_policy_processor_pipelines(input_steps=before, output_steps=[DeviceProcessorStep(device="cpu")])


def observations_of(
    batch: Mapping[str, Any], spec: Embodiment, cameras: Sequence[str], names: Mapping[str, str], time_s: float
) -> list[Observation]:
    """The B observations in a batch of lerobot's.

    Args:
        batch: `observation.images.<name>` (B, 3, h, w) in [0, 1], `observation.state` (B, S), `task`: B texts.
        spec: of the policy.
        cameras: those it looks at.
        names: {camera: lerobot's name}; a camera that is not in it keeps its name.
        time_s: when.

    Raises:
        UnknownNameError: the batch has no images of a camera.
    """
    views = {camera.name: camera for camera in spec.cameras if camera.name in cameras}
    images: dict[str, Image] = {}
    for name, camera in views.items():
        key = f"{OBS_IMAGES}.{names.get(name, name)}"
        if key not in batch:
            raise unknown_name(f"image for camera '{name}'", key, [each for each in batch if OBS_IMAGES in each])
        images[name] = _pixels(batch[key], camera)
    states_BS = batch[OBS_STATE].detach().cpu().float().numpy()
    tasks = batch.get("task") or [""] * len(states_BS)
    return [
        Observation(
            images={name: image_BHWC[row] for name, image_BHWC in images.items()},
            state_S=state_S,
            instruction=tasks[row],
            time_s=time_s,
        )
        for row, state_S in enumerate(states_BS)
    ]


def _pixels(image_BCHW: Tensor, camera: Camera) -> Image:
    """(B, h, w, 3) uint8 of the camera's size. Exact where the size is already right: lerobot divided by 255."""
    size = (camera.height, camera.width)
    if tuple(image_BCHW.shape[-2:]) != size:
        _say_once(
            f"images are {tuple(image_BCHW.shape[-2:])} px, the policy saw {size} in training: they are resized. "
            f"--env.observation_height={camera.height} --env.observation_width={camera.width} avoids it"
        )
        image_BCHW = interpolate(image_BCHW, size, mode="bilinear", antialias=True, align_corners=False)
    levels = (image_BCHW * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@cache
def _say_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)
