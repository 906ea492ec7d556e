"""Training samples by row number, and endless batches of them in an order that depends on (seed, step) alone."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla.core.errors import unknown_name
from vla.core.spec import Embodiment
from vla.data.cache import FrameCache
from vla.data.lerobot import LeRobotSource
from vla.data.mixture import WeightedOrder
from vla.data.transforms import Transforms
from vla.data.windows import chunk_windows, gripper_change_weights

_AHEAD = 2  # batches prepared while the network works on one


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What a policy is trained on.

    images_BKHWC  (B, K, h, w, 3) uint8   cameras in the dataset's `cameras` order
    state_BS      (B, S) float32          normalised
    instructions  B strings
    actions_BHA   (B, H, A) float32       normalised; the last valid action repeated as padding
    mask_BH       (B, H) bool             True where the action is inside the episode
    """

    images_BKHWC: Tensor
    state_BS: Tensor
    instructions: list[str]
    actions_BHA: Tensor
    mask_BH: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            images_BKHWC=self.images_BKHWC.to(device, non_blocking=True),
            state_BS=self.state_BS.to(device, non_blocking=True),
            actions_BHA=self.actions_BHA.to(device, non_blocking=True),
            mask_BH=self.mask_BH.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.instructions)


class ChunkDataset:
    """Every frame of a dataset as a sample: what was sensed, and the chunk of actions that followed.

    transforms  fitted on exactly these episodes, unless given
    weights_N   relative drawing weight of each row
    """

    def __init__(
        self,
        *,
        source: LeRobotSource,
        horizon: int,
        cameras: Sequence[str] | None = None,
        episodes: Sequence[int] | None = None,
        target: Literal["expert_action", "action"] = "expert_action",
        oversampling: float = 4.0,
        transforms: Transforms | None = None,
    ) -> None:
        """Decodes the dataset's images on first use.

        Args:
            source: the recorded episodes.
            horizon: H, actions in a chunk.
            cameras: K cameras in the order of `images_BKHWC`; all when None.
            episodes: numbers of those to use; all when None.
            target: which column to imitate.
            oversampling: how many times as often frames near a gripper change are drawn; 1 for evenly.
            transforms: those of a policy to be trained further; fitted to the data when None.

        Raises:
            ValueError: an episode that is not there, or another target.
            UnknownNameError: a camera that the dataset does not have.
        """
        if target not in ("expert_action", "action"):
            raise ValueError(f"target is '{target}', expected 'expert_action' or 'action'")
        self.cameras = tuple(source.spec.camera_names if cameras is None else cameras)
        for camera in self.cameras:
            if camera not in source.spec.camera_names:
                raise unknown_name("camera", camera, source.spec.camera_names)
        columns = source.columns()
        self._frames_N = _frames_of(columns.episode_N, len(source), episodes)
        episode_N = columns.episode_N[self._frames_N]
        states_NS = columns.states_NS[self._frames_N]
        targets_NA = (columns.labels_NA if target == "expert_action" else columns.actions_NA)[self._frames_N]
        self.spec: Embodiment = source.spec
        self.transforms = transforms or Transforms.fit(source.spec, states_NS, targets_NA)
        self.weights_N = gripper_change_weights(targets_NA, source.spec.binary_A, episode_N, factor=oversampling)
        self._windows_NH, self._mask_NH = chunk_windows(episode_N, horizon)
        self._states_NS = self.transforms.observation(states_NS)
        self._targets_NA = self.transforms.actions(targets_NA)
        self._task_N, self._tasks = columns.task_N[self._frames_N], columns.tasks
        self._cache = FrameCache.open(source)

    def __len__(self) -> int:
        return len(self._frames_N)

    def batch(self, rows_B: NDArray[np.integer]) -> Batch:
        """The samples of these rows, in their order."""
        return Batch(
            images_BKHWC=torch.from_numpy(self._cache.images(self._frames_N[rows_B], self.cameras)),
            state_BS=torch.from_numpy(self._states_NS[rows_B]),
            instructions=[self._tasks[task] for task in self._task_N[rows_B]],
            actions_BHA=torch.from_numpy(self._targets_NA[self._windows_NH[rows_B]]),
            mask_BH=torch.from_numpy(self._mask_NH[rows_B]),
        )


def batches(dataset: ChunkDataset, *, batch_size: int, seed: int, start_step: int = 0) -> Iterator[Batch]:
    """Endless batches, prepared by one thread in the background.

    Batch `step` is a function of (dataset, batch_size, seed, step), so starting at step n continues a run that stopped
    there.
    """
    order = WeightedOrder(dataset.weights_N, seed)
    pool = ThreadPoolExecutor(1, "batches")
    jobs = (pool.submit(dataset.batch, order.rows(step, batch_size)) for step in count(start_step))
    try:
        ahead = deque(islice(jobs, _AHEAD))
        while True:
            yield ahead.popleft().result()
            ahead.append(next(jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _frames_of(episode_N: NDArray, total: int, episodes: Sequence[int] | None) -> NDArray[np.int64]:
    if episodes is None:
        return np.arange(len(episode_N))
    unknown = sorted(set(episodes) - set(range(total)))
    if unknown or not episodes:
        raise ValueError(f"episodes {unknown} are not in 0..{total - 1}, or none was named")
    return np.flatnonzero(np.isin(episode_N, list(episodes)))
