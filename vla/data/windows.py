"""Episodes cut to what a learner needs: chunk windows, drawing weights, transition chunks. Pure functions of arrays."""

import numpy as np
from numpy.typing import NDArray

from vla.core.types import Episode, Float, TransitionChunk

type Indices = NDArray[np.int64]
type Mask = NDArray[np.bool_]


def chunk_windows(episode_N: NDArray, horizon: int) -> tuple[Indices, Mask]:
    """The frames whose actions make the chunk that starts at each frame.

    Tails are kept: past the end of an episode the index stays at its last frame (so the last action is repeated) and
    the mask is False.

    Args:
        episode_N: (N,) episode of each frame; the frames of an episode follow each other.
        horizon: H >= 1.

    Returns:
        indices_NH (N, H) int64 and mask_NH (N, H) bool, True where the step lies inside the episode.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}, expected at least 1")
    wanted_NH = np.arange(len(episode_N))[:, None] + np.arange(horizon)[None]
    last_N1 = _last_frames(episode_N)[:, None]
    return np.minimum(wanted_NH, last_N1), wanted_NH <= last_N1


def gripper_change_weights(
    labels_NA: NDArray,
    binary_A: NDArray[np.bool_],
    episode_N: NDArray,
    *,
    before: int = 10,
    after: int = 6,
    factor: float = 4.0,
) -> NDArray[np.float64]:
    """Relative drawing weights: `factor` within -before..+after frames of a change of a binary action, else 1.

    Opening and closing are a few per cent of the frames and decide the episode. A change at frame t means that a binary
    action differs between t - 1 and t; its surroundings stop at the episode's ends.

    Returns:
        weights_N (N,) float64.
    """
    episode_N = np.asarray(episode_N)
    weights_N = np.ones(len(episode_N))
    binary_Nb = np.asarray(labels_NA)[:, binary_A]
    changed = (binary_Nb[1:] != binary_Nb[:-1]).any(axis=1) & (episode_N[1:] == episode_N[:-1])
    for t in np.flatnonzero(changed) + 1:
        near = slice(max(0, t - before), t + after + 1)
        weights_N[near][episode_N[near] == episode_N[t]] = factor
    return weights_N


def transition_chunks(episode: Episode, horizon: int, discount: float) -> list[TransitionChunk]:
    """One TransitionChunk for each frame of an episode, tails included.

    The reward is the sum of the episode's terms. `terminated` (`truncated`) is set where the episode ended so and the
    chunk's last valid step is the episode's last. Actions after it are zero: the same whatever the outcome, as a critic
    needs (repeating the last action would tell it). `return_mc` runs to the end of the recording, without a bootstrap.

    Args:
        episode: T steps.
        horizon: H >= 1.
        discount: per step, in [0, 1].
    """
    steps = len(episode)
    rewards_T = sum(episode.rewards.values(), np.zeros(steps, np.float32))
    returns_T = _discounted(rewards_T, discount)
    indices_TH, valid_TH = chunk_windows(np.zeros(steps), horizon)
    chunks = []
    for t in range(steps):
        valid_H, end = valid_TH[t], min(t + horizon, steps)
        chunks.append(
            TransitionChunk(
                observation=episode.observations[t],
                actions_HA=np.where(valid_H[:, None], episode.actions_TA[indices_TH[t]], np.float32(0)),
                valid_H=valid_H,
                rewards_H=np.where(valid_H, rewards_T[indices_TH[t]], np.float32(0)),
                next_observation=episode.observations[end],
                terminated=episode.terminated and end == steps,
                truncated=episode.truncated and end == steps,
                return_mc=float(returns_T[t]),
            )
        )
    return chunks


def _last_frames(episode_N: NDArray) -> Indices:
    """(N,) index of the last frame of each frame's episode."""
    episode_N = np.asarray(episode_N)
    if len(episode_N) == 0:
        return np.zeros(0, np.int64)
    ends = np.append(np.flatnonzero(episode_N[1:] != episode_N[:-1]), len(episode_N) - 1)
    return ends[np.searchsorted(ends, np.arange(len(episode_N)))]


def _discounted(rewards_T: Float, discount: float) -> NDArray[np.float64]:
    returns_T = np.zeros(len(rewards_T))
    following = 0.0
    for t in reversed(range(len(rewards_T))):
        returns_T[t] = following = float(rewards_T[t]) + discount * following
    return returns_T
