"""lerobot's video reward models (Robometer, TOPReward) as potentials: frames so far and the instruction to a number.

Both are large vision-language models whose weights come from the Hub, used as they are. What lerobot's processors do
not do is done here: they keep the *last* frames of a video where the models were made for frames spread over it.
TOPReward answers a log-probability, at most 0: as a potential that is fine, since only differences count, but for
Phi = 0 at the end of an episode; `offset` moves it so that an unlikely success is near 0.

The third door to lerobot, opened in `lerobot_potential` alone, and only when called.
Sources: Robometer (arXiv 2603.02115); TOPReward (arXiv 2602.19313).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rewards.learned.progress import spread
from vla.core.errors import MissingAssetError, SpecMismatchError, unknown_name
from vla.core.types import Episode, Float

MODELS = {"robometer": 8, "topreward": 16}  # frames that each was made for
IMAGE_KEY, TASK_KEY = "observation.images.top", "task"  # what both processors read unless told otherwise


class RewardModel(Protocol):
    """The part of lerobot's `PreTrainedRewardModel` that is used."""

    def compute_reward(self, batch: dict[str, Any]) -> Tensor:
        """(B,)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LeRobotPotential:
    """A `Potential` of rewards/shaping.py.

    preprocess  lerobot's pipeline: frames (1, F, h, w, 3) uint8 and the task to the model's batch
    camera      whose pictures it sees
    frames      F, spread over the frames so far
    every       observations between two answers; in between the last one holds, which keeps shaping exact
    offset      added to what the model says
    """

    model: RewardModel
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    camera: str
    frames: int
    every: int = 8
    offset: float = 0.0

    @torch.no_grad()
    def __call__(self, episode: Episode) -> Float:
        """(T + 1,). Raises SpecMismatchError if the camera is missing."""
        for number, observation in enumerate(episode.observations):
            if self.camera not in observation.images:
                raise SpecMismatchError(
                    f"reward: camera '{self.camera}' is missing in frame {number}, got {sorted(observation.images)}"
                )
        count = len(episode.observations)
        asked = [*range(0, count - 1, self.every), count - 1]
        answers = [self._ask(episode, last) for last in asked]
        values = np.repeat(answers, np.diff([*asked, count]))
        return values.astype(np.float32) + np.float32(self.offset)

    def _ask(self, episode: Episode, last: int) -> float:
        chosen = [episode.observations[i].images[self.camera] for i in spread(last, self.frames).tolist()]
        video = torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2)[None]  # both processors take (1, F, 3, h, w)
        batch = self.preprocess({IMAGE_KEY: video, TASK_KEY: [episode.observations[0].instruction]})
        return float(self.model.compute_reward(batch)[0])


def lerobot_potential(
    *, name: str, camera: str, device: str = "cpu", every: int = 8, offset: float = 0.0
) -> LeRobotPotential:
    """One of MODELS with its published weights.

    Args:
        name: "robometer" or "topreward".
        camera: see `LeRobotPotential`.
        device: where the model runs; they have 4 and 8 billion weights.
        every: see `LeRobotPotential`.
        offset: see `LeRobotPotential`.

    Raises:
        UnknownNameError: another model.
        MissingAssetError: lerobot's extra is not installed, or the Hub cannot be reached.
    """
    if name not in MODELS:
        raise unknown_name("reward model", name, MODELS)
    try:
        from lerobot.rewards.factory import make_reward_model, make_reward_model_config, make_reward_pre_post_processors

        config = make_reward_model_config(name, device=device, image_key=IMAGE_KEY, max_frames=MODELS[name])
        preprocess, _ = make_reward_pre_post_processors(config)
        model = make_reward_model(config)
    except (ImportError, OSError) as error:
        raise MissingAssetError(f"reward model '{name}': {error}; it needs lerobot[{name}] and the Hub") from error
    return LeRobotPotential(
        model=model.eval(), preprocess=preprocess, camera=camera, frames=MODELS[name], every=every, offset=offset
    )
