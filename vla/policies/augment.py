"""What training adds to observations so that a policy does not rely on exact pixels or exact proprioception.

Drawn from torch's global generator, which `vla/train/offline.py` seeds anew for each step: resuming repeats it exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Strengths of the augmentation; zero switches a part off.

    shift        largest shift, in image widths, drawn per image and camera; borders repeat the edge
    contrast     factor in [1 - contrast, 1 + contrast] about mid-grey, per image
    brightness   offset in [-brightness, brightness], in full scales (255 grey levels), per image
    state_noise  standard deviation added to the normalised state
    """

    shift: float = 0.04
    contrast: float = 0.15
    brightness: float = 0.1
    state_noise: float = 0.05

    def images(self, images_BKHWC: Tensor) -> Tensor:
        """Shifted and jittered images, same shape, uint8."""
        images_NHWC = images_BKHWC.flatten(0, 1)
        shifted_NHWC = self._shift(images_NHWC) if self.shift > 0 else images_NHWC
        if self.contrast > 0 or self.brightness > 0:
            shifted_NHWC = self._jitter(shifted_NHWC)
        return shifted_NHWC.view_as(images_BKHWC)

    def state(self, state_BS: Tensor) -> Tensor:
        """The normalised state with noise."""
        return state_BS + self.state_noise * torch.randn_like(state_BS)

    def _shift(self, images_NHWC: Tensor) -> Tensor:
        count, height, width, _ = images_NHWC.shape
        pad = round(self.shift * width)
        padded_NHWC = _repeat_edges(images_NHWC, pad)
        corners = torch.randint(0, 2 * pad + 1, (count, 2)).tolist()
        return torch.stack([padded_NHWC[i, y : y + height, x : x + width] for i, (y, x) in enumerate(corners)])

    def _jitter(self, images_NHWC: Tensor) -> Tensor:
        draws_N2 = torch.rand(len(images_NHWC), 2, device=images_NHWC.device) * 2 - 1
        gain_N, offset_N = 1 + self.contrast * draws_N2[:, 0], self.brightness * 255 * draws_N2[:, 1]
        bias_N = 127.5 * (1 - gain_N) + offset_N
        jittered_NHWC = images_NHWC.float().mul_(gain_N[:, None, None, None]).add_(bias_N[:, None, None, None])
        return jittered_NHWC.clamp_(0, 255).to(torch.uint8)


def _repeat_edges(images_NHWC: Tensor, pad: int) -> Tensor:
    """Images with `pad` more pixels on all sides; torch's own replication padding does not take bytes."""
    count, height, width, colours = images_NHWC.shape
    padded_NHWC = images_NHWC.new_empty(count, height + 2 * pad, width + 2 * pad, colours)
    padded_NHWC[:, pad : pad + height, pad : pad + width] = images_NHWC
    padded_NHWC[:, :pad] = padded_NHWC[:, pad : pad + 1]
    padded_NHWC[:, pad + height :] = padded_NHWC[:, pad + height - 1 : pad + height]
    padded_NHWC[:, :, :pad] = padded_NHWC[:, :, pad : pad + 1]
    padded_NHWC[:, :, pad + width :] = padded_NHWC[:, :, pad + width - 1 : pad + width]
    return padded_NHWC
