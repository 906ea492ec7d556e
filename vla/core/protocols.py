"""Five small protocols: Env, Policy, Reward, EpisodeSource, EpisodeSink. Everything above the waist speaks these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Episode, Float, Observation, Step


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of a suite.

    instruction       what the policy is told
    horizon           control steps after which an episode is truncated
    num_init_states   fixed initial states, numbered from 0
    num_train_states  the first so many may be seen in training; the rest are held out for evaluation
    num_extra_states  further placements, numbered from `num_init_states` on, that a suite makes for training alone
    """

    name: str
    instruction: str
    horizon: int
    num_init_states: int
    num_train_states: int
    num_extra_states: int = 0


class Env(Protocol):
    """One simulated or real scene. Physics (`step`) and pixels (`observe`) are separate calls.

    Construction is cheap: nothing is compiled or rendered before the first `reset`. After `reset` everything that
    follows is a function of (task, init_state, seed, actions) alone, never of earlier episodes.
    """

    @property
    def spec(self) -> Embodiment: ...

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The suite's tasks by name, in their official order."""
        ...

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode. Raises UnknownNameError for a task, ValueError for a state out of range.

        Env-side randomness (none in LIBERO) may only come from `seed`.
        """
        ...

    def step(self, action_A: np.ndarray) -> Step:
        """Executes one action (A,), physical units. Raises NonFiniteError on NaN, before anything moves."""
        ...

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation, rendering only `cameras` (None: all; (): none, which costs no pixels)."""
        ...

    def snapshot(self) -> bytes:
        """Everything that `restore` needs to continue bit for bit, within the same task."""
        ...

    def restore(self, snapshot: bytes) -> None: ...

    def close(self) -> None: ...


class Policy(Protocol):
    """Observations in, action chunks out; keeps no per-episode state.

    `act` gets one seed per observation. A policy that samples draws from `np.random.default_rng(seed)` (or a torch
    generator seeded with it), and chunk i depends on observation i and seed i alone: not on the rest of the batch.
    """

    @property
    def spec(self) -> Embodiment: ...

    @property
    def horizon(self) -> int:
        """H, the number of actions in a chunk."""
        ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras it looks at; () for a scripted expert."""
        ...

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]: ...


class Reward(Protocol):
    """Episode to named reward terms. Pure, so the same reward relabels a dataset, drives RL and runs on a robot."""

    def __call__(self, episode: Episode) -> Mapping[str, Float]:
        """Returns {term: (T,) float32}."""
        ...


class EpisodeSource(Protocol):
    """Episodes that were recorded."""

    @property
    def spec(self) -> Embodiment: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...

    def __iter__(self) -> Iterator[Episode]: ...


class EpisodeSink(Protocol):
    """Where finished episodes go. After `write` returns, the episode survives a kill."""

    def write(self, episode: Episode) -> None: ...

    def close(self) -> None: ...
