"""The augmentation under which published OpenVLA-OFT weights were trained: a crop of fixed area, then colours.

What differs from augment.py is that the strengths are published and the arithmetic is TensorFlow's: a crop of exactly
90 % of the area, which `preprocess.centre_crop` stands for at test time, then brightness, contrast, saturation and hue
in this order, the values clipped to [0, 1] after each. Drawn from torch's global generator, once for each image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla.policies.preprocess import crop_and_resize, to_bytes


@dataclass(frozen=True, kw_only=True)
class OpenVLAAugmentation:
    """Strengths; zero switches a part off, `area` 1 the crop. Used where augment.py's `Augmentation` is.

    area         of the square crop, as a part of the image's; it is enlarged to the image's size
    brightness   offset in [-brightness, brightness], in full scales (255 grey levels)
    contrast     factor in [1 - contrast, 1 + contrast] about each colour's mean over the image
    saturation   factor in [1 - saturation, 1 + saturation]
    hue          turn in [-hue, hue], in whole turns of the colour circle
    state_noise  standard deviation added to the normalised state; nothing is, as published
    """

    area: float = 0.9
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    state_noise: float = 0.0

    def images(self, images_BKHWC: Tensor) -> Tensor:
        """Cropped and recoloured images, same shape, uint8; every image of every camera by its own draw."""
        images_NHWC = images_BKHWC.flatten(0, 1).float() / 255
        top_N, left_N, *draws = torch.rand(len(images_NHWC), 6, device=images_BKHWC.device).unbind(1)
        brightness_N, contrast_N, saturation_N, hue_N = (2 * draw_N - 1 for draw_N in draws)
        side = math.sqrt(self.area)
        images_NHWC = crop_and_resize(images_NHWC, top_N * (1 - side), left_N * (1 - side), side)
        images_NHWC = (images_NHWC + _each(self.brightness * brightness_N)).clamp(0, 1)
        images_NHWC = adjust_contrast(images_NHWC, 1 + self.contrast * contrast_N).clamp(0, 1)
        images_NHWC = adjust_saturation(images_NHWC, 1 + self.saturation * saturation_N).clamp(0, 1)
        return to_bytes(adjust_hue(images_NHWC, self.hue * hue_N)).view_as(images_BKHWC)

    def state(self, state_BS: Tensor) -> Tensor:
        """The normalised state, with noise if there is any."""
        return state_BS + self.state_noise * torch.randn_like(state_BS) if self.state_noise > 0 else state_BS


def adjust_contrast(images_NHWC: Tensor, factor_N: Tensor) -> Tensor:
    """Each colour's distance from its mean over the image times a factor, like `tf.image.adjust_contrast`."""
    mean_N11C = images_NHWC.mean((1, 2), keepdim=True)
    return mean_N11C + _each(factor_N) * (images_NHWC - mean_N11C)


def adjust_saturation(images_NHWC: Tensor, factor_N: Tensor) -> Tensor:
    """The saturation of HSV times a factor, at most 1, like `tf.image.adjust_saturation`; values in [0, 1].

    Hue and value stay, so a colour's distance from the largest one grows by the factor by which the saturation does.
    """
    high_NHW1, low_NHW1 = images_NHWC.amax(-1, keepdim=True), images_NHWC.amin(-1, keepdim=True)
    most_NHW1 = high_NHW1 / (high_NHW1 - low_NHW1)  # infinite on greys, which have no distance to enlarge
    growth_NHW1 = torch.minimum(_each(factor_N), most_NHW1.nan_to_num(posinf=1.0))
    return high_NHW1 - growth_NHW1 * (high_NHW1 - images_NHWC)


def adjust_hue(images_NHWC: Tensor, turn_N: Tensor) -> Tensor:
    """The hue of HSV turned by part of the colour circle, like `tf.image.adjust_hue`; values in [0, 1]."""
    red_NHW, green_NHW, blue_NHW = images_NHWC.unbind(-1)
    high_NHW, low_NHW = images_NHWC.amax(-1), images_NHWC.amin(-1)
    chroma_NHW = high_NHW - low_NHW
    safe_NHW = chroma_NHW.where(chroma_NHW > 0, 1)
    sixth_NHW = torch.where(
        high_NHW == red_NHW,
        (green_NHW - blue_NHW) / safe_NHW,
        torch.where(high_NHW == green_NHW, 2 + (blue_NHW - red_NHW) / safe_NHW, 4 + (red_NHW - green_NHW) / safe_NHW),
    )
    sixth_NHW = sixth_NHW + 6 * turn_N[:, None, None]
    # A colour is at its lowest within one sixth of a turn of the hue opposite to it, at its highest two sixths away.
    opposite_C = torch.tensor([5.0, 3.0, 1.0], device=images_NHWC.device)
    around_NHWC = (sixth_NHW[..., None] + opposite_C) % 6
    depth_NHWC = torch.minimum(around_NHWC, 4 - around_NHWC).clamp(0, 1)
    return high_NHW[..., None] - chroma_NHW[..., None] * depth_NHWC


def _each(number_N: Tensor) -> Tensor:
    return number_N[:, None, None, None]
