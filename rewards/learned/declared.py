"""A judge of single frames as a reward: success is declared once, after several frames in a row above a threshold.

How a frame is scored (a small head, a language model asked yes or no) is a function from outside; which pictures it may
be shown, how often it looks and when it is believed are the same for all, and stand here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rewards.debounce import first_declared
from rewards.learned import store
from rewards.learned.frames import Encoder, camera_images
from vla.core.errors import SpecMismatchError
from vla.core.spec import Camera
from vla.core.types import Episode, Float

TERM = "declared_success"  # not `success`, which is what the env or a person recorded
_FIELDS = ("cameras", "encoder", "threshold", "consecutive", "every", "provenance")

type FrameScore = Callable[[Tensor, str], Float]  # tokens (N, K, P, D) and the instruction -> (N,), higher is more done


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameJudge:
    """Implements `vla.core.protocols.Reward`.

    score        of frames
    cameras      whose pictures it was trained on, with their sizes
    encoder      the frozen one
    threshold    on the score
    consecutive  judged frames in a row above it before success is declared
    every        steps between two judged frames
    provenance   of the data and the training
    """

    score: FrameScore
    cameras: tuple[Camera, ...]
    encoder: Encoder
    threshold: float
    consecutive: int
    every: int
    provenance: Mapping[str, Any]

    def __call__(self, episode: Episode) -> Mapping[str, Float]:
        """1 at the step after which success is declared, else 0. An online loop ends the episode there.

        Raises:
            SpecMismatchError: pictures of other cameras or sizes than in training.
        """
        reward_T = np.zeros(len(episode), np.float32)
        seen = episode.observations[self.every :: self.every]
        if seen:
            images_NKHWC = camera_images([each.images for each in seen], self.cameras)
            scores_N = self.score(self.encoder.frames(images_NKHWC), seen[0].instruction)
            if (frame := first_declared(scores_N >= self.threshold, self.consecutive)) is not None:
                reward_T[self.every * (frame + 1) - 1] = 1.0
        return {TERM: reward_T}


def save_judge(
    folder: Path, judge: FrameJudge, kind: str, parts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Writes a judge with what its kind adds: `parts` for the JSON and the trained tensors."""
    fields = {
        "cameras": store.cameras_to_json(judge.cameras),
        "encoder": judge.encoder.name,
        "threshold": judge.threshold,
        "consecutive": judge.consecutive,
        "every": judge.every,
        "provenance": dict(judge.provenance),
    }
    store.save(folder, kind, {**fields, **parts}, tensors)


def load_parts(
    folder: Path, kind: str, parts: tuple[str, ...], encoder: Encoder
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Arguments of a `FrameJudge` but for its score, the fields `parts`, and the tensors.

    Raises:
        MissingAssetError: none there.
        CorruptFileError: not what `save_judge` wrote.
        SpecMismatchError: it was trained on features of another encoder.
    """
    fields, tensors = store.load(folder, kind, (*_FIELDS, *parts))
    if fields["encoder"] != encoder.name:
        raise SpecMismatchError(
            f"{folder}: trained on features of '{fields['encoder']}', the encoder given is '{encoder.name}'"
        )
    arguments = {
        "cameras": store.cameras_from_json(fields["cameras"], folder),
        "encoder": encoder,
        "threshold": float(fields["threshold"]),
        "consecutive": int(fields["consecutive"]),
        "every": int(fields["every"]),
        "provenance": fields["provenance"],
    }
    return arguments, {name: fields[name] for name in parts}, tensors
