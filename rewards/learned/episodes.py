"""Recorded episodes as a judge is trained on them: which frames, with which label, and who may be trained on what.

Frame t of a dataset holds the observation before step t, so it shows what steps 0..t-1 did: the task is done there if
it was done after step t - 1. Taking the label of step t would call a frame a success one step before it is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewards.learned.declared import FrameScore
from rewards.learned.fit import LabelledFrames
from rewards.learned.progress import Demonstrations
from rewards.learned.success import TextEncoder
from rewards.metrics import Judged
from vla.core.types import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenEpisode:
    """An episode whose judged frames (every so many steps) went through the frozen encoder.

    tokens_TKPD  (T, K, P, D)  in half precision: they are layer-normed, and there are many
    done_T       (T,) bool     whether the task was done at the frame
    frame_T      (T,) int64    number of the frame in its dataset
    way          how it was played, for the report
    """

    tokens_TKPD: Tensor
    done_T: NDArray[np.bool_]
    frame_T: NDArray[np.int64]
    instruction: str
    task: str
    init_state: int
    way: str

    def judged(self, score: FrameScore) -> Judged:
        """The episode as a judge scores it."""
        return Judged(scores_T=score(self.tokens_TKPD, self.instruction), done_T=self.done_T)


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """The frames of an episode that a judge of frames is trained on.

    rows          which of its T judged frames
    tokens_VNKPD  (V, N, K, P, D)  features of V random crops of each
    """

    rows: NDArray[np.int64]
    tokens_VNKPD: Tensor


def labelled(pairs: Sequence[tuple[SeenEpisode, Views]]) -> LabelledFrames:
    """The chosen frames of all these episodes together."""
    texts = tuple(sorted({episode.instruction for episode, _ in pairs}))
    return LabelledFrames(
        tokens_VNKPD=torch.cat([view.tokens_VNKPD for _, view in pairs], dim=1),
        done_N=torch.from_numpy(np.concatenate([episode.done_T[view.rows] for episode, view in pairs])),
        text_N=torch.tensor([texts.index(episode.instruction) for episode, view in pairs for _ in view.rows]),
        texts=texts,
    )


def demonstrations(episodes: Sequence[SeenEpisode], text: TextEncoder) -> Demonstrations:
    """The successes among these episodes, each up to the frame in which it was done."""
    done = [episode for episode in episodes if episode.done_T.any()]
    texts = sorted({episode.instruction for episode in done})
    return Demonstrations(
        tokens=[episode.tokens_TKPD[: int(episode.done_T.argmax()) + 1] for episode in done],
        text_N=torch.tensor([texts.index(episode.instruction) for episode in done]),
        texts_XE=torch.stack([text(each) for each in texts]),
    )


def done_frames(success_T: Float | None, *, success: bool, steps: int) -> NDArray[np.bool_]:
    """Whether the task was done at each of the T frames of a recorded episode.

    Args:
        success_T: the recorded term; None where none was, and then the last frame of a success alone counts.
        success: of the episode.
        steps: T.
    """
    done_T = np.zeros(steps, bool)
    if success_T is None:
        done_T[-1] = success
    else:
        done_T[1:] = success_T[:-1] > 0.5
    return done_T


def choose_frames(
    done_T: NDArray[np.bool_], count: int, rng: np.random.Generator, *, before: int = 5
) -> NDArray[np.int64]:
    """At most `count` frames to train on: some that show success, those just before it or the end, a spread of others.

    Frames just before success look most like it, and so do the last ones of an episode that failed.
    """
    steps = len(done_T)
    first = int(done_T.argmax()) if done_T.any() else steps
    near = np.arange(max(0, first - before), first)
    done = np.flatnonzero(done_T)
    done = rng.permutation(done)[: count // 3]
    others = rng.permutation(max(0, first - before))[: max(0, count - len(near) - len(done))]
    return np.sort(np.concatenate([near, done, others]).astype(np.int64))


def split_by_start(
    episodes: Sequence[SeenEpisode], heldout: float, seed: int
) -> tuple[list[SeenEpisode], list[SeenEpisode]]:
    """Episodes to train on and to choose the threshold on; those that start alike are never on both sides."""
    starts = sorted({(each.task, each.init_state) for each in episodes})
    order = np.random.default_rng(seed).permutation(len(starts))
    kept = {starts[index] for index in order[: round(heldout * len(starts))]}
    inside = [each for each in episodes if (each.task, each.init_state) not in kept]
    outside = [each for each in episodes if (each.task, each.init_state) in kept]
    return inside, outside
