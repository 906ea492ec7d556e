"""A run directory of graspline as a policy of lerobot.

Special: weights, normalisation and files are loaded by graspline, strictly and with their sha256, and the actions for
an observation are those of `VLAPolicy.act`. `export` writes a folder for `--policy.path`, which is a run directory too.
"""

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_graspline.configuration_graspline import GrasplineConfig
from lerobot_policy_graspline.processor_graspline import make_graspline_pre_post_processors, observations_of
from vla.policies.load import load_policy, save_policy
from vla.rollout.runner import act_seed


class GrasplinePolicy(PreTrainedPolicy):
    """Asks graspline's policy for a chunk and plays the first `n_action_steps` of it.

    Raises:
        ValueError: `config.run` is not given.
        MissingAssetError, CorruptFileError: there is no policy in `config.run`, or it is damaged.
    """

    config_class = GrasplineConfig  # pyright: ignore[reportAssignmentType] - lerobot declares both as None
    name = "graspline"  # pyright: ignore[reportAssignmentType]

    def __init__(self, config: GrasplineConfig, **_: Any) -> None:
        super().__init__(config)
        if config.run is None:
            raise ValueError("give --policy.run=<run directory of graspline>, or --policy.path=<exported folder>")
        self.config: GrasplineConfig = config
        self.policy = load_policy(config.run, str(config.device))
        self._queue: deque[Tensor] = deque()
        self._first_seed, self._rows, self._steps = config.seed, 0, 0

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **_: Any
    ) -> Self:
        """The policy in a folder that `save_pretrained` or `export` wrote."""
        config = config or PreTrainedConfig.from_pretrained(pretrained_name_or_path)
        if not isinstance(config, GrasplineConfig):
            raise ValueError(f"{pretrained_name_or_path}: type is '{config.type}', expected 'graspline'")
        config.run = str(pretrained_name_or_path)
        return cls(config).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        replace(self.config, run=None)._save_pretrained(save_directory)
        save_policy(save_directory, self.policy)

    def get_optim_params(self) -> dict:
        return {"params": self.policy.parameters()}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        raise NotImplementedError("a graspline policy is trained by graspline: python -m scripts.train")

    def reset(self) -> None:
        """A new batch of episodes begins, with seeds of its own."""
        self._queue.clear()
        self._first_seed += self._rows
        self._rows, self._steps = 0, 0

    def predict_action_chunk(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """Actions (B, H, A), in the units of the robot, for B observations. Row i draws from its own seed alone."""
        policy, time_s = self.policy, self._steps * self.policy.spec.dt_s
        observations = observations_of(batch, policy.spec, policy.cameras, self.config.cameras, time_s)
        self._rows = len(observations)
        seeds = [act_seed(self._first_seed + row, self._steps) for row in range(self._rows)]
        chunks = policy.act(observations, seeds)
        return torch.from_numpy(np.stack([chunk.actions_HA for chunk in chunks])).to(self.policy.device)

    def select_action(self, batch: dict[str, Tensor], **_: Any) -> Tensor:
        """The next actions (B, A). Looks at the batch only when the last chunk has been played."""
        if not self._queue:
            chunk_BHA = self.predict_action_chunk(batch)
            self._queue.extend(chunk_BHA[:, : self.config.n_action_steps].unbind(1))
        self._steps += 1
        return self._queue.popleft()


def export(run: str | Path, folder: str | Path, **options: Any) -> None:
    """Writes a run directory as a folder for `--policy.path`; `options` are fields of `GrasplineConfig`."""
    policy = GrasplinePolicy(GrasplineConfig(run=str(run), **options))
    policy.save_pretrained(folder)
    for pipeline in make_graspline_pre_post_processors(policy.config):
        pipeline.save_pretrained(folder)
