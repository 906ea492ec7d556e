"""How a chunk is played: the first actions of it, or an average of all chunks that overlap now.

Special: an executor is a setting and holds nothing of an episode; `start` gives a fresh player for each one.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float


class Player(Protocol):
    """One episode's state. Each call takes the newest chunk and gives the actions (n, A) to play before the next."""

    def __call__(self, chunk: ActionChunk) -> Float: ...


class Executor(Protocol):
    """A way to play chunks."""

    def start(self, spec: Embodiment) -> Player: ...


@dataclass(frozen=True)
class RecedingHorizon:
    """Plays the first `execute` actions of each chunk, then asks again. All H of them: open loop."""

    execute: int

    def __post_init__(self) -> None:
        if self.execute < 1:
            raise ValueError(f"execute must be at least 1, got {self.execute}")

    def start(self, spec: Embodiment) -> Player:
        return self._first

    def _first(self, chunk: ActionChunk) -> Float:
        horizon = len(chunk.actions_HA)
        if horizon < self.execute:
            raise ValueError(f"execute is {self.execute}, but the policy's chunks hold only {horizon} actions")
        return chunk.actions_HA[: self.execute]


@dataclass(frozen=True)
class TemporalEnsemble:
    """Asks at every step and plays the average of all predictions for it (ACT, Zhao et al. 2023, algorithm 2).

    The i-th oldest prediction weighs exp(-decay * i), i = 0 for the oldest: a small decay trusts new chunks more.
    Binary axes are averaged alike and then rounded to the nearer of their two values: a weighted vote.
    """

    decay: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.decay):
            raise ValueError(f"decay must be finite, got {self.decay}")

    def start(self, spec: Embodiment) -> Player:
        return _EnsemblePlayer(decay=self.decay, spec=spec)


@dataclass
class _EnsemblePlayer:
    decay: float
    spec: Embodiment
    chunks: deque[Float] = field(default_factory=deque)  # oldest first; chunks[-1 - age] was predicted `age` steps ago

    def __call__(self, chunk: ActionChunk) -> Float:
        self.chunks.append(chunk.actions_HA)
        while len(self.chunks) > len(self.chunks[0]):  # the oldest says nothing about this step any more
            self.chunks.popleft()
        newest = len(self.chunks) - 1
        predictions_NA = np.stack([actions_HA[newest - i] for i, actions_HA in enumerate(self.chunks)])
        weights_N = np.exp(-self.decay * np.arange(len(predictions_NA)))
        action_A = weights_N @ predictions_NA.astype(np.float64) / weights_N.sum()
        binary_A = self.spec.binary_A
        low, high = self.spec.action_low_A[binary_A], self.spec.action_high_A[binary_A]
        action_A[binary_A] = np.where(action_A[binary_A] >= (low + high) / 2, high, low)
        return action_A.astype(np.float32)[None]
