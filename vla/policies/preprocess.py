"""Camera pictures as published OpenVLA-OFT weights saw them: JPEG round trip, Lanczos resize, centre crop.

Those weights were trained through TensorFlow's image operations, and each of the steps is worth points of success. This
is the same arithmetic in torch, on any device: uint8 (N, h, w, 3) in, uint8 (N, h', w', 3) out. Resizing is separable,
so it is a product with one small matrix per axis.
"""

import math
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

LANCZOS_RADIUS = 3


def jpeg_round_trip(images_NHWC: Tensor, quality: int = 95) -> Tensor:
    """The images after JPEG, baseline with halved colour resolution, as the published data were stored.

    Computed on the processor whatever the device, because a device's own encoder rounds differently. The same bytes as
    TensorFlow's encoder; TensorFlow decodes them with a faster, coarser inverse transform that no library offers here,
    so pixels differ from its own by about a grey level (up to nine under strong texture).
    """
    pictures = images_NHWC.cpu().permute(0, 3, 1, 2).contiguous()
    decoded = [decode_jpeg(encode_jpeg(picture, quality), mode=ImageReadMode.RGB) for picture in pictures]
    return torch.stack(cast(list[Tensor], decoded)).permute(0, 2, 3, 1).contiguous().to(images_NHWC.device)


def lanczos_resize(images_NHWC: Tensor, size: int) -> Tensor:
    """The images as (N, size, size, 3), each axis stretched alone, rounded to the nearest grey level.

    The filter is that of `tf.image.resize(..., method="lanczos3", antialias=True)`. PIL's filter of that name rounds
    and clips between the axes, so it differs by one grey level, and by more where a sharp edge saturates.
    """
    _, height, width, _ = images_NHWC.shape
    if height == width == size:
        return images_NHWC
    rows_OI = _lanczos_weights(height, size, images_NHWC.device)
    columns_OI = _lanczos_weights(width, size, images_NHWC.device)
    planes_NCHW = images_NHWC.permute(0, 3, 1, 2).float()
    resized_NCHW = (rows_OI @ planes_NCHW @ columns_OI.T).round_().clamp_(0, 255)
    return resized_NCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def centre_crop(images_NHWC: Tensor, area: float = 0.9) -> Tensor:
    """The middle of the images, `area` of their area, enlarged to their size: at test time, in place of a random crop.

    Raises:
        ValueError: area outside (0, 1].
    """
    if not 0 < area <= 1:
        raise ValueError(f"area is {area}, expected a part of the image in (0, 1]")
    side = math.sqrt(area)
    start_N = images_NHWC.new_full((len(images_NHWC),), (1 - side) / 2, dtype=torch.float32)
    return to_bytes(crop_and_resize(images_NHWC.float() / 255, start_N, start_N, side))


def crop_and_resize(images_NHWC: Tensor, top_N: Tensor, left_N: Tensor, side: float) -> Tensor:
    """One crop of each float image, enlarged to the image's size: `tf.image.crop_and_resize`, bilinear.

    Both ends of a crop fall on the centres of pixels: output row i reads row top * (h - 1) + i * side.

    Args:
        images_NHWC: float32.
        top_N: where each crop begins, in image heights, in [0, 1 - side].
        left_N: the same in image widths.
        side: of the crop, in image heights and widths.
    """
    _, height, width, _ = images_NHWC.shape
    left_NW, right_NW, across_NW = _neighbours(left_N, side, width)
    upper_NH, lower_NH, down_NH = _neighbours(top_N, side, height)
    left_NHWC = images_NHWC.take_along_dim(left_NW[:, None, :, None], 2)
    right_NHWC = images_NHWC.take_along_dim(right_NW[:, None, :, None], 2)
    rows_NHWC = left_NHWC.lerp_(right_NHWC, across_NW[:, None, :, None])
    upper_NHWC = rows_NHWC.take_along_dim(upper_NH[:, :, None, None], 1)
    lower_NHWC = rows_NHWC.take_along_dim(lower_NH[:, :, None, None], 1)
    return upper_NHWC.lerp_(lower_NHWC, down_NH[:, :, None, None])


def to_bytes(images_NHWC: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, the way TensorFlow converts: times 255.5, the fraction dropped."""
    return (images_NHWC.clamp(0, 1) * 255.5).to(torch.uint8)


def _neighbours(start_N: Tensor, side: float, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each output pixel (N, pixels): the two pixels it lies between, and how far it is from the first."""
    steps_I = torch.arange(pixels, dtype=torch.float32, device=start_N.device)
    at_NI = start_N[:, None] * (pixels - 1) + steps_I * side
    before_NI = at_NI.floor().clamp(0, pixels - 1)
    return before_NI.long(), (before_NI.long() + 1).clamp(max=pixels - 1), at_NI - before_NI


@lru_cache(maxsize=64)
def _lanczos_weights(pixels_in: int, pixels_out: int, device: torch.device) -> Tensor:
    """Weights (out, in): a windowed sinc about each output pixel's centre, widened where the image shrinks."""
    step = pixels_in / pixels_out
    centre_O = (np.arange(pixels_out) + 0.5) * step
    offset_OI = np.abs(np.arange(pixels_in) + 0.5 - centre_O[:, None]) / max(step, 1.0)
    weights_OI = np.sinc(offset_OI) * np.sinc(offset_OI / LANCZOS_RADIUS) * (offset_OI <= LANCZOS_RADIUS)
    weights_OI /= weights_OI.sum(1, keepdims=True)
    return torch.from_numpy(weights_OI.astype(np.float32)).to(device)
