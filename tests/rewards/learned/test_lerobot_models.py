"""The adapter with a model whose answers are known, and lerobot's own processor for the shapes it is given."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rewards.learned.lerobot_models import IMAGE_KEY, TASK_KEY, LeRobotPotential, lerobot_potential
from vla.core.errors import MissingAssetError, SpecMismatchError, UnknownNameError
from vla.core.types import Episode

type Make = Callable[..., Episode]


class LastFrame:
    """Answers the brightness of the last frame it is shown, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def compute_reward(self, batch: dict[str, Any]) -> torch.Tensor:
        self.seen.append(batch)
        return batch[IMAGE_KEY][:, -1].float().mean((1, 2, 3))


def image(t: int) -> dict[str, np.ndarray]:
    return {"front": np.full((4, 6, 3), t, np.uint8)}


def test_frames_are_spread_over_what_has_been_seen(make_episode: Make):
    model = LastFrame()
    potential = LeRobotPotential(model=model, preprocess=lambda b: b, camera="front", frames=4, every=5, offset=1.0)
    values = potential(make_episode(12, images=image, instruction="push"))
    assert values.tolist() == [1.0] * 5 + [6.0] * 5 + [11.0] * 2 + [13.0], "0, 5, 10 and the last; held in between"
    assert [batch[IMAGE_KEY][0, :, 0, 0, 0].tolist() for batch in model.seen] == [
        [0, 0, 0, 0], [0, 2, 3, 5], [0, 3, 7, 10], [0, 4, 8, 12],
    ]  # fmt: skip
    assert model.seen[0][IMAGE_KEY].shape == (1, 4, 3, 4, 6) and model.seen[0][TASK_KEY] == ["push"]
    with pytest.raises(SpecMismatchError, match=r"'front' is missing in frame 0, got \['side'\]"):
        potential(make_episode(2, images=lambda t: {"side": image(t)["front"]}))


def test_lerobots_processors_take_our_batch():
    """Their own functions turn the video into what their models get: nothing is dropped, transposed or scaled."""
    robometer = pytest.importorskip("lerobot.rewards.robometer.processor_robometer")
    topreward = pytest.importorskip("lerobot.rewards.topreward.processor_topreward")
    video_1FCHW = torch.arange(8).view(1, 8, 1, 1, 1).expand(1, 8, 3, 4, 6).to(torch.uint8)
    frames = robometer._video_to_numpy(video_1FCHW[0], max_frames=8)
    assert frames.shape == (8, 4, 6, 3) and frames[:, 0, 0, 0].tolist() == list(range(8))
    assert torch.equal(topreward._prepare_video_batch(video_1FCHW, max_frames=16), video_1FCHW)


def test_models_that_are_not_there():
    with pytest.raises(UnknownNameError, match="Did you mean 'robometer'"):
        lerobot_potential(name="robometr", camera="front")
    with pytest.raises(MissingAssetError, match="needs lerobot"):  # HF_HUB_OFFLINE is set
        lerobot_potential(name="topreward", camera="front")
