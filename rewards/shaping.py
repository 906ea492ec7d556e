"""Potential-based shaping: the only way here in which a dense signal (progress, distance) becomes a reward.

    r'_t = r_t + gamma * Phi(s_{t+1}) - Phi(s_t),     Phi = 0 in terminal states

It tells the learner where to go and cannot change what is best: along any path the added terms telescope to
gamma^n Phi(s_n) - Phi(s_0). A potential paid as it is would reward staying where it is high, next to the goal.
A time limit is no terminal state: there Phi keeps its value, as the bootstrap keeps its own.
Source: Ng, Harada, Russell 1999; terminal states as in Grzes 2017.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rewards.success import first_success
from vla.core.protocols import Reward
from vla.core.types import Episode, Float

type Potential = Callable[[Episode], Float]  # (T + 1,), one for each observation


def shaping(potentials: Float, *, gamma: float, end: int | None) -> Float:
    """What shaping adds to each of T steps.

    Args:
        potentials: (T + 1,) of the states, the one in which the episode ended included.
        gamma: the discount of the learner; another one breaks the guarantee.
        end: number of the first terminal state, from which Phi = 0; None if the episode was only cut off.
    """
    phi = np.array(potentials, np.float32)
    if end is not None:
        phi[end:] = 0.0
    return np.asarray(np.float32(gamma) * phi[1:] - phi[:-1], np.float32)


def terminal_state(episode: Episode) -> int | None:
    """The number of the observation in which the task ended; None if it was cut off.

    Steps recorded after success are after the end.
    """
    if not episode.terminated:
        return None
    step = first_success(episode)
    return len(episode) if step is None else step + 1


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """A reward with a term `shaping` beside its own."""

    reward: Reward
    potential: Potential
    gamma: float

    def __call__(self, episode: Episode) -> Mapping[str, Float]:
        """Raises ValueError if the potential is not finite, or not one number for each observation."""
        potentials = self.potential(episode)
        if potentials.shape != (len(episode) + 1,) or not np.isfinite(potentials).all():
            raise ValueError(
                f"potential: shape {potentials.shape}, expected {len(episode) + 1} finite numbers, one per observation"
            )
        added_T = shaping(potentials, gamma=self.gamma, end=terminal_state(episode))
        return {**self.reward(episode), "shaping": added_T}
