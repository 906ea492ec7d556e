"""VLAPolicy = transforms + backbone + head: `loss_BH` to train it, `act` to run it.

The result for one observation must not depend on the batch in which it comes: an evaluation that runs sixteen
simulators side by side has to reproduce, bit for bit, what it would see with one. Matrix products round differently at
different batch sizes and thread counts, so `act` computes groups of a fixed size on one thread.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla.core.errors import NonFiniteError, unknown_name
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation
from vla.data.batch import Batch
from vla.data.transforms import Transforms
from vla.policies.augment import Augmentation
from vla.policies.interfaces import Augments, Features
from vla.policies.threads import single_thread


class VLAPolicy(nn.Module):
    """A policy of vla/core/protocols.py that can be trained.

    Attributes:
        spec: the embodiment it reads and drives.
        transforms: numbers to the network and back, the same object as in training.
        cameras: names of the K cameras it looks at, in the order of the image tensor.
        horizon: H.
        preset, arguments, files: how vla/policies/load.py builds the network again.
    """

    def __init__(
        self,
        *,
        spec: Embodiment,
        transforms: Transforms,
        cameras: Sequence[str],
        horizon: int,
        backbone: nn.Module,
        head: nn.Module,
        preset: str,
        arguments: Mapping[str, Any],
        files: Mapping[str, bytes] | None = None,
        augmentation: Augments | None = None,
        compute_batch: int = 1,
    ) -> None:
        """Joins the parts.

        Args:
            spec: see the class.
            transforms: see the class.
            cameras: see the class.
            horizon: see the class.
            backbone: a `Backbone` of vla/policies/interfaces.py.
            head: a `Head` of the same.
            preset: a name in vla/policies/presets.py.
            arguments: of that preset, plain values.
            files: {name: content} that the preset needs beside weights, such as a tokenizer; saved with the policy.
            augmentation: applied to observations in training mode; the default strengths when None.
            compute_batch: observations computed together by `act`, the last group padded. Only 1 is exact by
                construction; more is faster on an accelerator.

        Raises:
            UnknownNameError: a camera that the embodiment does not have.
        """
        super().__init__()
        for camera in cameras:
            if camera not in spec.camera_names:
                raise unknown_name("camera", camera, spec.camera_names)
        self.spec, self.transforms = spec, transforms
        self.cameras, self.horizon = tuple(cameras), horizon
        self.backbone, self.head = backbone, head
        self.preset, self.arguments, self.files = preset, dict(arguments), dict(files or {})
        self.augmentation: Augments = augmentation or Augmentation()
        self.compute_batch = compute_batch

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def loss_BH(self, batch: Batch) -> Tensor:
        """The loss (B, H) of each action of each chunk: not reduced, and not masked."""
        images_BKHWC, state_BS = batch.images_BKHWC, batch.state_BS
        if self.training:
            images_BKHWC, state_BS = self.augmentation.images(images_BKHWC), self.augmentation.state(state_BS)
        features = self._features(images_BKHWC, state_BS, batch.instructions)
        return self.head.loss_BH(features, batch.actions_BHA)  # pyright: ignore[reportCallIssue]

    def forward(self, batch: Batch) -> Tensor:
        """`loss_BH`, under the name that data-parallel wrappers call."""
        return self.loss_BH(batch)

    def sample(
        self,
        images_BKHWC: Tensor,
        state_BS: Tensor,
        instructions: Sequence[str],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Normalised actions (B, H, A), binary axes at -1 or +1. Row i draws from generator i alone."""
        features = self._features(images_BKHWC, state_BS, instructions)
        return self.head.sample(features, generators)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation, in physical units, within the embodiment's bounds.

        Chunk i depends on observation i and seed i alone, whatever else is in the batch.

        Raises:
            SpecMismatchError: an observation does not fit the embodiment.
            NonFiniteError: the state or the network's output holds NaN or infinity.
        """
        if len(observations) != len(seeds):
            raise ValueError(f"seeds: {len(seeds)} for {len(observations)} observations, expected one each")
        for observation in observations:
            self.spec.validate(observation, self.cameras)
        chunks: list[ActionChunk] = []
        with single_thread():
            for start in range(0, len(observations), self.compute_batch):
                group = slice(start, start + self.compute_batch)
                actions_BHA = self._actions(observations[group], seeds[group])
                chunks += [
                    ActionChunk(actions_HA=actions_HA, start_s=observation.time_s, dt_s=self.spec.dt_s)
                    for actions_HA, observation in zip(actions_BHA, observations[group], strict=True)
                ]
        return chunks

    def reset(self) -> None:
        """Nothing to forget: the policy keeps no state between calls."""

    def _features(self, images_BKHWC: Tensor, state_BS: Tensor, instructions: Sequence[str]) -> Features:
        context = self.backbone.encode(images_BKHWC, state_BS, instructions)  # pyright: ignore[reportCallIssue]
        return partial(self.backbone, context)

    def _actions(self, observations: Sequence[Observation], seeds: Sequence[int]) -> Float:
        """Actions (b, H, A) in physical units of b <= compute_batch observations, computed as compute_batch rows."""
        padding = self.compute_batch - len(observations)
        rows = [*observations, *[observations[-1]] * padding]
        images_BKHWC = np.stack([[row.images[camera] for camera in self.cameras] for row in rows])
        state_BS = self.transforms.observation(np.stack([row.state_S for row in rows]))
        generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *[seeds[-1]] * padding]]
        scaled_BHA = self.sample(
            torch.from_numpy(images_BKHWC).to(self.device),
            torch.from_numpy(state_BS).to(self.device),
            [row.instruction for row in rows],
            generators,
        )
        scaled_bHA = scaled_BHA[: len(observations)].cpu().numpy()
        if not np.isfinite(scaled_bHA).all():
            bad = [row.instruction for row, scaled in zip(rows, scaled_bHA) if not np.isfinite(scaled).all()]
            raise NonFiniteError(f"the policy's actions are not finite for '{bad[0]}': its weights are damaged")
        actions_bHA = self.transforms.inverse_actions(scaled_bHA)
        return np.clip(actions_bHA, self.spec.action_low_A, self.spec.action_high_A).astype(np.float32)
