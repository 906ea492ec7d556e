"""The data that go round: Observation -> ActionChunk -> Episode -> TransitionChunk.

Frozen, keyword-only, numpy. Letters in array names, repo-wide:
B batch, T time in an episode, H chunk horizon, A action, S state, K camera, N token, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

type Float = NDArray[np.float32]
type Image = NDArray[np.uint8]
type Meta = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """What a robot senses at one instant.

    images      {camera: (h, w, 3) uint8}   RGB, upright as a person would hold the picture
    state_S     (S,) float32                laid out and in the units that the embodiment's `state` axes say
    instruction str                         the task in words
    time_s      float                       monotonic clock [s] (simulated time in a simulator)
    privileged  {name: array}               simulator truth for experts and rewards; never shown to a policy
    """

    images: Mapping[str, Image]
    state_S: Float
    instruction: str
    time_s: float
    privileged: Mapping[str, NDArray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionChunk:
    """H actions to be executed one after the other.

    actions_HA  (H, A) float32   physical units, as the embodiment's `action` axes say
    start_s     float            time [s] of the observation it answers
    dt_s        float            time [s] between two actions
    """

    actions_HA: Float
    start_s: float
    dt_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What one control step did. `terminated`: the task ended; `truncated`: the time was up (not the same).

    executed_A  (A,) float32   the action as the robot really took it, after clipping
    success     bool           the task's predicates hold now
    """

    executed_A: Float
    terminated: bool
    truncated: bool
    success: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """One attempt at a task, from reset to end.

    observations  T + 1             the last one is the state in which it ended
    actions_TA    (T, A) float32    as executed
    labels_TA     (T, A) float32    what should be imitated: the expert's clean action at the state reached; equal to
                                    `actions_TA` where no noise was injected
    rewards       {term: (T,)}      named terms, in float32
    meta                            task, init_state, seed, policy, commit, versions of the simulator
    columns       {name: (T, ...)}  what else was recorded at each step: verdicts, interventions, capture times
    """

    observations: Sequence[Observation]
    actions_TA: Float
    labels_TA: Float
    rewards: Mapping[str, Float]
    terminated: bool
    truncated: bool
    success: bool
    meta: Meta
    columns: Mapping[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = len(self.actions_TA)
        if len(self.observations) != steps + 1:
            raise ValueError(f"observations: {len(self.observations)} for {steps} actions, expected {steps + 1}")
        if self.labels_TA.shape != self.actions_TA.shape:
            raise ValueError(f"labels_TA has shape {self.labels_TA.shape}, actions_TA {self.actions_TA.shape}")
        for name, reward_T in self.rewards.items():
            if reward_T.shape != (steps,):
                raise ValueError(f"rewards['{name}'] has shape {reward_T.shape}, expected ({steps},)")
        for name, column in self.columns.items():
            if len(column) != steps:
                raise ValueError(f"columns['{name}'] has {len(column)} rows, expected {steps}")

    def __len__(self) -> int:
        return len(self.actions_TA)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransitionChunk:
    """A chunk as reinforcement learning sees it: h <= H steps really taken from `observation`.

    actions_HA        (H, A) float32   padded after the last valid step
    valid_H           (H,) bool        which steps were taken
    rewards_H         (H,) float32     zero where not valid
    next_observation  Observation      after the last valid step
    return_mc         float            discounted Monte-Carlo return from `observation`
    """

    observation: Observation
    actions_HA: Float
    valid_H: NDArray[np.bool_]
    rewards_H: Float
    next_observation: Observation
    terminated: bool
    truncated: bool
    return_mc: float
