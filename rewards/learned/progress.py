"""How far a task is, from the frames so far and the instruction: a small transformer, after ReWiND.

    frames 0..t -> F of them, evenly spread -> FrameReader -> causal transformer, text as its first token -> progress

Successes alone say little about failing, so a video is also rewound: after some frame it runs backwards for a while,
and progress with it. And with another task's text the progress is 0 throughout. Only the first frame is marked as such;
the others carry no number, or counting them would do.

Progress is not a reward: paid each step, it would reward staying. `ProgressPotential` is for rewards/shaping.py.
Source: ReWiND (arXiv 2505.10911). Departures: frozen ImageNet tokens instead of DINOv2's, prefixes instead of segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.learned import store
from rewards.learned.frames import Encoder, FrameReader, camera_images
from rewards.learned.success import TextEncoder
from vla.core.errors import CorruptFileError, SpecMismatchError
from vla.core.spec import Camera
from vla.core.types import Episode, Float

KIND = "progress"
_FIELDS = ("cameras", "encoder", "sizes", "provenance")


class ProgressModel(nn.Module):
    """Frames (B, F, K, P, D) and text (B, E) to progress (B, F) in [0, 1], each from the frames up to it."""

    def __init__(
        self, *, cameras: int, places: int, width: int, text: int, frames: int = 16, latent: int = 64, layers: int = 2
    ) -> None:
        """Builds the model.

        Args:
            cameras: K.
            places: P.
            width: D.
            text: E.
            frames: F, most frames in a sequence.
            latent: see `FrameReader`; the transformer is K times as wide.
            layers: of the transformer.
        """
        super().__init__()
        self.reader = FrameReader(cameras=cameras, places=places, width=width, latent=latent)
        joint = self.reader.latent
        self.first = nn.Parameter(0.02 * torch.randn(joint))
        self.words = nn.Linear(text, joint)
        layer = nn.TransformerEncoderLayer(joint, 4, 4 * joint, 0.1, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.out = nn.Linear(joint, 1)
        self.frames = frames
        self.sizes = {"cameras": cameras, "places": places, "width": width, "text": text}
        self.sizes |= {"frames": frames, "latent": latent, "layers": layers}

    def forward(self, tokens_BFKPD: Tensor, text_BE: Tensor) -> Tensor:
        read_BFL = self.reader(tokens_BFKPD.flatten(0, 1)).unflatten(0, tokens_BFKPD.shape[:2])
        marked_BFL = torch.cat([read_BFL[:, :1] + self.first, read_BFL[:, 1:]], dim=1)
        x_BSL = torch.cat([self.words(text_BE)[:, None], marked_BFL], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(x_BSL.shape[1], device=x_BSL.device)
        states_BSL = self.transformer(x_BSL, mask=mask, is_causal=True)
        return self.out(states_BSL[:, 1:])[..., 0].sigmoid()


def spread(last: int, count: int) -> Tensor:
    """`count` frame numbers from 0 to `last`, evenly spread, repeated where there are fewer frames."""
    return torch.linspace(0, last, count).round().long()


def rewound(steps: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A video of a success that runs to some frame and then backwards: frames (count,) and progress (count,).

    Args:
        steps: T of the episode; frame t has progress t / (T - 1).
        count: F.
        generator: of the turning point and of how far it goes back.
    """
    turn = int(torch.randint(steps // 4, steps, (1,), generator=generator))
    back = int(torch.randint(1, max(2, turn), (1,), generator=generator))
    path = torch.cat([torch.arange(turn + 1), torch.arange(turn - 1, turn - back - 1, -1).clamp(min=0)])
    frames_F = path[spread(len(path) - 1, count)]
    return frames_F, frames_F / max(1, steps - 1)


def forward_prefix(steps: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A video of a success up to some frame: frames (count,) and progress (count,)."""
    last = int(torch.randint(0, steps, (1,), generator=generator))
    frames_F = spread(last, count)
    return frames_F, frames_F / max(1, steps - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstrations:
    """Successes to learn progress from.

    tokens    of each episode (T, K, P, D), up to the frame in which it was done
    text_N    (N,) int64, of each episode: row of texts_XE
    texts_XE  (X, E) float32, X of at least two tasks
    """

    tokens: Sequence[Tensor]
    text_N: Tensor
    texts_XE: Tensor


def fit_progress(
    model: ProgressModel,
    data: Demonstrations,
    *,
    steps: int = 400,
    batch: int = 16,
    lr: float = 3e-4,
    rewind: float = 0.5,
    mismatched: float = 0.2,
    seed: int = 0,
) -> list[float]:
    """Trains in place, squared error on every frame; returns the losses.

    Args:
        model: left in evaluation mode.
        data: successes.
        steps: of AdamW.
        batch: videos.
        lr: at the start of half a cosine.
        rewind: share of the videos that run back.
        mismatched: share of the videos that get another task's text, and no progress.
        seed: of everything random.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    losses = []
    for _ in range(steps):
        videos = [_video(data, model.frames, rewind, mismatched, generator) for _ in range(batch)]
        tokens_BFKPD, text_B, progress_BF = (torch.stack(part) for part in zip(*videos, strict=True))
        loss = functional.mse_loss(model(tokens_BFKPD.float(), data.texts_XE[text_B]), progress_BF)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def _video(
    data: Demonstrations, count: int, rewind: float, mismatched: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    number = int(torch.randint(0, len(data.tokens), (1,), generator=generator))
    chance_rewind, chance_mismatch = torch.rand(2, generator=generator).tolist()
    make = rewound if chance_rewind < rewind else forward_prefix
    frames_F, progress_F = make(len(data.tokens[number]), count, generator)
    text, texts = data.text_N[number], len(data.texts_XE)
    if chance_mismatch < mismatched and texts > 1:
        text = (text + torch.randint(1, texts, (), generator=generator)) % texts
        progress_F = torch.zeros(count)
    return data.tokens[number][frames_F], text, progress_F


@torch.no_grad()
def predict(model: ProgressModel, tokens_TKPD: Tensor, text_E: Tensor, *, at_once: int = 32) -> Float:
    """Progress (T,) at every frame, each from the frames up to it."""
    steps = len(tokens_TKPD)
    frames_TF = torch.stack([spread(last, model.frames) for last in range(steps)])
    parts = [
        model(tokens_TKPD[part_BF].float(), text_E.expand(len(part_BF), -1))[:, -1]
        for part_BF in frames_TF.split(at_once)
    ]
    return torch.cat(parts).numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class ProgressPotential:
    """A `Potential` of rewards/shaping.py: `scale` times the predicted progress of each observation."""

    model: ProgressModel
    cameras: tuple[Camera, ...]
    encoder: Encoder
    text: TextEncoder
    provenance: Mapping[str, Any]
    scale: float = 1.0

    def __call__(self, episode: Episode) -> Float:
        """(T + 1,). Raises SpecMismatchError for pictures of other cameras than in training."""
        images_NKHWC = camera_images([each.images for each in episode.observations], self.cameras)
        tokens_NKPD = self.encoder.frames(images_NKHWC)
        return self.scale * predict(self.model, tokens_NKPD, self.text(episode.observations[0].instruction))


def save_progress(folder: Path, potential: ProgressPotential) -> None:
    """Writes `folder`; the scale is not part of it."""
    fields = {
        "cameras": store.cameras_to_json(potential.cameras),
        "encoder": potential.encoder.name,
        "sizes": potential.model.sizes,
        "provenance": dict(potential.provenance),
    }
    store.save(folder, KIND, fields, potential.model.state_dict())


def load_progress(*, folder: str | Path, encoder: Encoder, text: TextEncoder, scale: float = 1.0) -> ProgressPotential:
    """What `save_progress` wrote. Raises as `load_classifier` does."""
    folder = Path(folder)
    fields, tensors = store.load(folder, KIND, _FIELDS)
    if fields["encoder"] != encoder.name:
        raise SpecMismatchError(f"{folder}: trained on features of '{fields['encoder']}', given '{encoder.name}'")
    try:
        model = ProgressModel(**fields["sizes"])
    except (TypeError, RuntimeError) as error:
        raise CorruptFileError(f"{folder / store.JSON}: sizes are {fields['sizes']!r} ({error})") from error
    store.fill(model.state_dict(), tensors, folder)
    cameras = store.cameras_from_json(fields["cameras"], folder)
    provenance = fields["provenance"]
    return ProgressPotential(
        model=model.eval(), cameras=cameras, encoder=encoder, text=text, provenance=provenance, scale=scale
    )
