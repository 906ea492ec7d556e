"""What every learned judge sees: pictures turned into tokens by a frozen encoder, and a small reader that trains.

The encoder is a callable from outside (an ImageNet tower, DINOv2, anything), so this package depends on none. It never
trains; everything here that has weights does. Features of the training frames are computed once, for a few random crops
each, so that a step costs no encoding.

Letters: N frames, V views (random crops) of a frame, K cameras, P places, D width of a token, L latent width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla.core.errors import SpecMismatchError
from vla.core.spec import Camera
from vla.core.types import Image

ENCODE_AT_ONCE = 32  # pictures in one call of the encoder

type ImageEncoder = Callable[[Tensor], Tensor]  # uint8 (N, h, w, 3) -> (N, P, D), or (N, D) for one place


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoder:
    """A frozen encoder and the name by which a saved judge asks for it again."""

    name: str
    encode: ImageEncoder

    @torch.no_grad()
    def tokens(self, images_NHWC: Tensor) -> Tensor:
        """Tokens (N, P, D) float32. Raises ValueError if the encoder answers with something else."""
        parts = [self.encode(part) for part in images_NHWC.split(ENCODE_AT_ONCE)]
        tokens = torch.cat(parts).float()
        tokens_NPD = tokens[:, None] if tokens.ndim == 2 else tokens
        if tokens_NPD.ndim != 3 or len(tokens_NPD) != len(images_NHWC):
            raise ValueError(f"encoder '{self.name}' gave {tuple(tokens.shape)}, expected (N, P, D) or (N, D)")
        return tokens_NPD

    def frames(self, images_NKHWC: Tensor) -> Tensor:
        """Tokens (N, K, P, D) of every camera's picture; all of one size."""
        return self.tokens(images_NKHWC.flatten(0, 1)).unflatten(0, images_NKHWC.shape[:2])


def camera_images(frames: Sequence[Mapping[str, Image]], cameras: Sequence[Camera]) -> Tensor:
    """Pictures (N, K, h, w, 3) uint8 of the cameras that a judge was trained on, in their order.

    Raises:
        SpecMismatchError: one is missing or has another size: a judge of other pictures says nothing.
    """
    for number, images in enumerate(frames):
        for camera in cameras:
            wanted = (camera.height, camera.width, 3)
            if camera.name not in images:
                raise SpecMismatchError(
                    f"reward: trained on cameras {[each.name for each in cameras]}, "
                    f"'{camera.name}' is missing in frame {number}, which has {sorted(images)}"
                )
            if images[camera.name].shape != wanted:
                raise SpecMismatchError(
                    f"reward: camera '{camera.name}' was {wanted[0]} x {wanted[1]} px in training, "
                    f"is {images[camera.name].shape[0]} x {images[camera.name].shape[1]} in frame {number}"
                )
    stacks = [torch.stack([torch.as_tensor(images[camera.name]) for camera in cameras]) for images in frames]
    return torch.stack(stacks)


def random_crop(images_NHWC: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Each picture shifted by up to `pad` pixels, borders repeating the edge (DrQ, HIL-SERL)."""
    count, height, width, _ = images_NHWC.shape
    rows_NH = _shifted(count, height, pad, generator)
    columns_NW = _shifted(count, width, pad, generator)
    return images_NHWC[torch.arange(count)[:, None, None], rows_NH[:, :, None], columns_NW[:, None, :]]


def _shifted(count: int, size: int, pad: int, generator: torch.Generator) -> Tensor:
    """Indices (count, size) of pixels along one axis, shifted and kept inside."""
    shift_N = torch.randint(-pad, pad + 1, (count,), generator=generator)
    return (torch.arange(size) + shift_N[:, None]).clamp(0, size - 1)


class FrameReader(nn.Module):
    """Tokens of all cameras to one vector (B, K * latent): what is there, at each place, camera by camera."""

    def __init__(self, *, cameras: int, places: int, width: int, channels: int = 32, latent: int = 128) -> None:
        """Builds one reader for each camera.

        Args:
            cameras: K.
            places: P.
            width: D.
            channels: what is kept of a token.
            latent: numbers for each camera.
        """
        super().__init__()
        self.places = nn.ModuleList(nn.Sequential(nn.Linear(width, channels), nn.GELU()) for _ in range(cameras))
        self.wholes = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.1), nn.Linear(places * channels, latent), nn.LayerNorm(latent), nn.Tanh())
            for _ in range(cameras)
        )
        self.shape, self.latent = (cameras, places, width), cameras * latent

    def forward(self, tokens_BKPD: Tensor) -> Tensor:
        """Raises SpecMismatchError for tokens of another encoder."""
        if tokens_BKPD.shape[1:] != self.shape:
            raise SpecMismatchError(f"reward: tokens {tuple(tokens_BKPD.shape[1:])}, trained on {self.shape} (K, P, D)")
        per_camera = [
            whole(place(tokens_BPD).flatten(1))
            for place, whole, tokens_BPD in zip(self.places, self.wholes, tokens_BKPD.unbind(1), strict=True)
        ]
        return torch.cat(per_camera, dim=1)
