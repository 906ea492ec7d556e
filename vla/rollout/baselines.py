"""The two policies that every evaluation should be compared with: one that does nothing and one that flails."""

from collections.abc import Sequence

import numpy as np

from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Observation


class ZeroPolicy:
    """Commands zero on every axis and the lower value (an open gripper) on binary ones. Blind."""

    cameras: tuple[str, ...] = ()

    def __init__(self, *, spec: Embodiment, horizon: int = 8) -> None:
        self.spec = spec
        self.horizon = horizon

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        action_A = np.where(self.spec.binary_A, self.spec.action_low_A, 0).astype(np.float32)
        actions_HA = np.tile(action_A, (self.horizon, 1))
        return [ActionChunk(actions_HA=actions_HA, start_s=each.time_s, dt_s=self.spec.dt_s) for each in observations]


class RandomPolicy:
    """Uniform actions within the bounds (within +-1 where there are none), drawn from the seed alone. Blind."""

    cameras: tuple[str, ...] = ()

    def __init__(self, *, spec: Embodiment, horizon: int = 8) -> None:
        self.spec = spec
        self.horizon = horizon

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        chunks = [self.spec.random_chunk(np.random.default_rng(seed), self.horizon) for seed in seeds]
        return [
            ActionChunk(actions_HA=chunk.actions_HA, start_s=each.time_s, dt_s=chunk.dt_s)
            for each, chunk in zip(observations, chunks, strict=True)
        ]
