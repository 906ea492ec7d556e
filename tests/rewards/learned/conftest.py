"""A toy world for judges: a bright square somewhere in one camera's picture means that the task is done."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rewards.learned.fit import LabelledFrames
from rewards.learned.frames import Encoder
from vla.core.spec import Camera

CAMERAS = (Camera(name="front", height=16, width=16), Camera(name="wrist", height=16, width=16))
TASKS = ("upper", "lower")  # where the square must be


def cells(images_NHWC: Tensor) -> Tensor:
    """A frozen encoder: means and colours of 4 x 4 cells, (N, 16, 6)."""
    planes_NCHW = images_NHWC.permute(0, 3, 1, 2).float() / 255 - 0.5
    mean = functional.avg_pool2d(planes_NCHW, 4)
    peak = functional.max_pool2d(planes_NCHW, 4)
    return torch.cat([mean, peak], dim=1).flatten(2).transpose(1, 2)


def picture(rng: np.random.Generator, where: str | None) -> np.ndarray:
    """Grey noise with a white square in the upper or lower half, or none."""
    image = rng.integers(60, 140, (16, 16, 3), np.uint8)
    if where is not None:
        top = int(rng.integers(0, 4)) + (9 if where == "lower" else 0)
        left = int(rng.integers(0, 12))
        image[top : top + 4, left : left + 4] = 255
    return image


@pytest.fixture(scope="session")
def toy_encoder() -> Encoder:
    return Encoder(name="cells", encode=cells)


@pytest.fixture(scope="session")
def toy_text():
    return lambda task: torch.eye(2)[TASKS.index(task)]


@pytest.fixture(scope="session")
def toy_cameras() -> tuple[Camera, ...]:
    return CAMERAS


@pytest.fixture(scope="session")
def toy_picture():
    return picture


@pytest.fixture(scope="session")
def toy_frames(toy_encoder: Encoder) -> LabelledFrames:
    """400 frames of both tasks, a third of them done; only the first camera shows it."""
    rng = np.random.default_rng(0)
    text_N = rng.integers(0, 2, 400)
    done_N = rng.random(400) < 1 / 3
    front = np.stack([picture(rng, TASKS[t] if done else None) for t, done in zip(text_N, done_N, strict=True)])
    wrist = np.stack([picture(rng, None) for _ in range(400)])
    images_NKHWC = torch.from_numpy(np.stack([front, wrist], axis=1))
    return LabelledFrames(
        tokens_VNKPD=toy_encoder.frames(images_NKHWC)[None].half(),
        done_N=torch.from_numpy(done_N),
        text_N=torch.from_numpy(text_N),
        texts=TASKS,
    )
