"""Sparse rewards from an episode's own success: 1 once, or -1 a step until it is there.

The predicate comes from the env (or a person); these only say where in time it counts. Episodes may go on for a few
steps after success, so that a policy learns to let go: those steps are after the end, earn nothing and cost nothing.
Paying for each of them would multiply the reward by their number and change what is best (CO-RFT duplicates them).
"""

from collections.abc import Mapping

import numpy as np

from vla.core.types import Episode, Float

TERM = "success"  # of an episode's rewards: whether the task was done after each step, as recorded


def first_success(episode: Episode) -> int | None:
    """The number of the step that first made the task done, or None.

    Where no step was recorded to have done it, but the episode counts as a success, it is the last one.
    """
    steps = np.flatnonzero(episode.rewards.get(TERM, np.zeros(0)) > 0.5)
    if len(steps):
        return int(steps[0])
    return len(episode) - 1 if episode.success else None


class SparseSuccess:
    """1 at the step that makes the task done, 0 elsewhere. With that step terminal, values lie in [0, 1]."""

    def __call__(self, episode: Episode) -> Mapping[str, Float]:
        reward_T = np.zeros(len(episode), np.float32)
        if (step := first_success(episode)) is not None:
            reward_T[step] = 1.0
        return {TERM: reward_T}


class StepCost:
    """-1 for every step that leaves the task undone, 0 from the one that does it: -(1 - gamma^n) / (1 - gamma) in all.

    Asks for speed by itself. A truncated failure must be bootstrapped: its return is not the sum of its rewards.
    """

    def __call__(self, episode: Episode) -> Mapping[str, Float]:
        reward_T = np.full(len(episode), -1.0, np.float32)
        if (step := first_success(episode)) is not None:
            reward_T[step:] = 0.0
        return {"step_cost": reward_T}
