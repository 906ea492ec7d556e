"""Recorded steps as flat arrays: what reinforcement learning learns from.

Nothing about chunks is stored (sampling.py cuts them), so the horizon, the discount, the rewards and the padding can
change without playing again. Special here: rewards are columns with a provenance, which can be rewritten; Monte-Carlo
returns belong to one version of them and one discount; termination is kept apart from truncation, and the clock that
would have cut an episode apart from where it ended; a last observation that was not recorded is said to be missing.
Letters as in interfaces.py; N step, E episode, P longest prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from vla.core.errors import NonFiniteError, unknown_name
from vla.core.types import Float, Meta
from vla.rl.problem import ACTION_LIMIT

NO_CLOCK = 2**62  # the clock limit of an episode that no clock would have cut

type Bools = NDArray[np.bool_]
type Ints = NDArray[np.int64]
type AfterTruncation = Literal["unknown", "nothing", "forever"]

# Every array: its axes and its type. N, E, D, A and P must agree between them.
LAYOUT: dict[str, tuple[str, type]] = {
    "features_ND": ("ND", np.float32),
    "actions_NA": ("NA", np.float32),
    "episode_N": ("N", np.int64),
    "executed_N": ("N", np.bool_),
    "demo_N": ("N", np.bool_),
    "final_features_ED": ("ED", np.float32),
    "final_known_E": ("E", np.bool_),
    "terminated_E": ("E", np.bool_),
    "truncated_E": ("E", np.bool_),
    "clock_limit_E": ("E", np.int64),
    "success_E": ("E", np.bool_),
    "task_E": ("E", np.int64),
    "predicted_NPA": ("NPA", np.float32),
    "predicted_N": ("N", np.int64),
    "open_loop_N": ("N", np.int64),
}
OPTIONAL = ("predicted_NPA", "predicted_N", "open_loop_N")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewards:
    """One version of the rewards: reward_N (N,) float32, and where they come from (source, version, threshold ...)."""

    reward_N: Float
    provenance: Meta


@dataclass(frozen=True, kw_only=True, eq=False)
class Returns:
    """Monte-Carlo returns of one version of the rewards, return_N (N,) float32, NaN where unknown."""

    return_N: Float
    discount: float
    after_truncation: AfterTruncation


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """Episodes end to end; every array is checked on construction.

    features_ND        (N, D) float32     what was seen before each step
    actions_NA         (N, A) float32     executed; normalised as the policy's transforms do, clipped to +-1.05
    episode_N          (N,) int64         0, 0, ..., 1, ...: episodes in order, none empty
    executed_N         (N,) bool          False where the step was not carried out: chunks end before it
    demo_N             (N,) bool          the demonstrator's step, or a person's correction
    rewards            {version: Rewards}
    final_features_ED  (E, D) float32     what was seen after the last step; anything where not known
    final_known_E      (E,) bool
    terminated_E       (E,) bool          the task ended with the last step: nothing follows
    truncated_E        (E,) bool          time was up, or somebody stopped it
    clock_limit_E      (E,) int64         steps after which the clock would have cut the episode, had it not terminated;
                                          NO_CLOCK for a demonstration that stops at success. One that did not terminate
                                          was cut where it ends: its own length
    success_E          (E,) bool
    task_E             (E,) int64         index into `tasks`
    tasks              names
    predicted_NPA      (N, P, A) float32  the actions last planned for this step and those after it; or None
    predicted_N        (N,) int64         how many of the P were planned; or None
    open_loop_N        (N,) int64         steps from this one on that were to be played without looking again; or None
    returns            {version: Returns} made by `with_returns`
    """

    features_ND: Float
    actions_NA: Float
    episode_N: Ints
    executed_N: Bools
    demo_N: Bools
    rewards: Mapping[str, Rewards]
    final_features_ED: Float
    final_known_E: Bools
    terminated_E: Bools
    truncated_E: Bools
    clock_limit_E: Ints
    success_E: Bools
    task_E: Ints
    tasks: tuple[str, ...]
    predicted_NPA: Float | None = None
    predicted_N: Ints | None = None
    open_loop_N: Ints | None = None
    returns: Mapping[str, Returns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_episodes(self)
        _check_numbers(self)

    def __len__(self) -> int:
        return len(self.episode_N)

    @cached_property
    def begin_E(self) -> Ints:
        """First step of each episode."""
        return np.searchsorted(self.episode_N, np.arange(len(self.task_E)))

    @cached_property
    def end_E(self) -> Ints:
        """One past the last step of each episode."""
        return np.append(self.begin_E[1:], len(self))

    @cached_property
    def stop_N(self) -> Ints:
        """First step at or after each one that was not executed, or the end of its episode."""
        gaps = np.append(np.flatnonzero(~self.executed_N), len(self))
        return np.minimum(gaps[np.searchsorted(gaps, np.arange(len(self)))], self.end_E[self.episode_N])

    @cached_property
    def starts(self) -> Ints:
        """Steps that can start a chunk: those executed, the last ones of an episode too."""
        return np.flatnonzero(self.executed_N)

    def relabelled(self, version: str, rewards_N: NDArray, provenance: Meta) -> Self:
        """The same steps with one more version of the rewards, or another in its place; its old returns are dropped."""
        column = Rewards(reward_N=np.asarray(rewards_N, np.float32), provenance=dict(provenance))
        returns = {name: kept for name, kept in self.returns.items() if name != version}
        return replace(self, rewards={**self.rewards, version: column}, returns=returns)

    def with_returns(self, version: str, discount: float, after_truncation: AfterTruncation = "unknown") -> Self:
        """The same steps with Monte-Carlo returns of this version, by one backward pass.

        Args:
            version: of the rewards.
            discount: per step, in [0, 1].
            after_truncation: what follows an episode that did not terminate. "unknown": its returns are NaN.
                "nothing": the recorded sum. "forever": its last reward again and again, r / (1 - discount), as the
                reward of -1 until success asks for an attempt that failed.

        Before a step that was not executed, returns are NaN: its reward belongs to no recorded behaviour.
        """
        if after_truncation not in ("unknown", "nothing", "forever"):
            raise unknown_name("after_truncation", after_truncation, ("unknown", "nothing", "forever"))
        if not 0 <= discount <= 1 or (discount == 1 and after_truncation == "forever"):
            raise ValueError(f"discount is {discount}, expected 0..1, and below 1 with after_truncation='forever'")
        reward_N = self.reward(version)
        return_N = np.empty(len(self))
        for episode, (begin, end) in enumerate(zip(self.begin_E, self.end_E, strict=True)):
            after = 0.0
            if not self.terminated_E[episode] and after_truncation != "nothing":
                after = np.nan if after_truncation == "unknown" else float(reward_N[end - 1]) / (1 - discount)
            return_N[begin:end] = _backward(reward_N[begin:end], discount, after)
        return_N[self.stop_N < self.end_E[self.episode_N]] = np.nan
        column = Returns(return_N=return_N.astype(np.float32), discount=discount, after_truncation=after_truncation)
        return replace(self, returns={**self.returns, version: column})

    def reward(self, version: str) -> Float:
        """(N,) rewards of a version. Raises UnknownNameError with the nearest name."""
        if version not in self.rewards:
            raise unknown_name("reward version", version, self.rewards)
        return self.rewards[version].reward_N


def concatenate(replays: Sequence[Replay]) -> Replay:
    """Several replays as one. Tasks are matched by name; returns are left out, since they are quickly made again.

    Where one has no predictions, none were planned there.

    Raises:
        ValueError: other versions of the rewards in one than in another, or `open_loop_N` in some only.
    """
    first = replays[0]
    for other in replays[1:]:
        if other.rewards.keys() != first.rewards.keys():
            raise ValueError(
                f"rewards: versions {sorted(other.rewards)} and {sorted(first.rewards)}, expected the same"
            )
        if (other.open_loop_N is None) != (first.open_loop_N is None):
            raise ValueError(
                "open_loop_N: given in some replays only; it is 1 everywhere for a player who always looks"
            )
    tasks = tuple(dict.fromkeys(name for replay in replays for name in replay.tasks))
    parts = [_arrays_for_joining(replay, tasks, max(_planned(other) for other in replays)) for replay in replays]
    before = np.cumsum([0, *(len(replay.task_E) for replay in replays)])
    for part, offset in zip(parts, before, strict=False):
        part["episode_N"] = part["episode_N"] + offset
    rewards = {
        version: Rewards(
            reward_N=np.concatenate([replay.rewards[version].reward_N for replay in replays]),
            provenance=_joined([replay.rewards[version].provenance for replay in replays]),
        )
        for version in first.rewards
    }
    arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Replay(**arrays, rewards=rewards, tasks=tasks)


def _given(replay: Replay) -> list[str]:
    """Names of the arrays that this replay has."""
    return [name for name in LAYOUT if name not in OPTIONAL or getattr(replay, name) is not None]


def _planned(replay: Replay) -> int:
    return 0 if replay.predicted_NPA is None else replay.predicted_NPA.shape[1]


def _arrays_for_joining(replay: Replay, tasks: tuple[str, ...], planned: int) -> dict[str, NDArray]:
    arrays: dict[str, NDArray] = {name: getattr(replay, name) for name in _given(replay)}
    numbers = np.array([tasks.index(name) for name in replay.tasks], np.int64)
    arrays["task_E"] = numbers[replay.task_E]
    if planned:
        steps, action_dim = replay.actions_NA.shape
        wide = np.zeros((steps, planned, action_dim), np.float32)
        if replay.predicted_NPA is not None:
            wide[:, : _planned(replay)] = replay.predicted_NPA
        arrays["predicted_NPA"] = wide
        arrays.setdefault("predicted_N", np.zeros(steps, np.int64))
    return arrays


def _joined(provenances: Sequence[Meta]) -> Meta:
    """Each key's value, or all different ones as text, so that none is lost."""
    keys = dict.fromkeys(key for provenance in provenances for key in provenance)
    found = {key: list(dict.fromkeys(p[key] for p in provenances if key in p)) for key in keys}
    return {key: values[0] if len(values) == 1 else " | ".join(map(str, values)) for key, values in found.items()}


def _backward(rewards_T: NDArray, discount: float, after: float) -> NDArray[np.float64]:
    """G_t = r_t + discount G_{t+1} with G_T = after: a one-pole filter run from the end."""
    filtered, _ = lfilter([1.0], [1.0, -discount], rewards_T[::-1].astype(np.float64), zi=[discount * after])
    return filtered[::-1]


def _check_shapes(replay: Replay) -> None:
    if (replay.predicted_NPA is None) != (replay.predicted_N is None):
        raise ValueError("predicted_NPA and predicted_N: give both or none")
    sizes: dict[str, int] = {}
    arrays = {name: (getattr(replay, name), *LAYOUT[name]) for name in _given(replay)}
    columns = {f"rewards['{version}']": column.reward_N for version, column in replay.rewards.items()}
    columns |= {f"returns['{version}']": column.return_N for version, column in replay.returns.items()}
    arrays |= {name: (array, "N", np.float32) for name, array in columns.items()}
    for name, (array, letters, dtype) in arrays.items():
        if array.dtype != dtype or array.ndim != len(letters):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {dtype.__name__} ({', '.join(letters)})")
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{name} has shape {array.shape}, expected {letter} = {sizes[letter]} as elsewhere")
    if 0 in (sizes["N"], sizes["E"], sizes["A"], sizes["D"]):
        raise ValueError(f"an empty replay: {sizes}")


def _check_episodes(replay: Replay) -> None:
    steps = np.diff(replay.episode_N)
    if (
        replay.episode_N[0] != 0
        or ((steps != 0) & (steps != 1)).any()
        or replay.episode_N[-1] != len(replay.task_E) - 1
    ):
        raise ValueError(f"episode_N must run 0, 0, ..., 1, ..., {len(replay.task_E) - 1}, one number for each episode")
    length_E = replay.end_E - replay.begin_E
    wrong_E = np.where(replay.terminated_E, replay.clock_limit_E < length_E, replay.clock_limit_E != length_E)
    if wrong_E.any():
        e = int(np.flatnonzero(wrong_E)[0])
        raise ValueError(
            f"clock_limit_E: {replay.clock_limit_E[e]} for episode {e}, which took {length_E[e]} steps and "
            + ("terminated: expected at least that" if replay.terminated_E[e] else "did not terminate: expected that")
        )
    if replay.task_E.min() < 0 or replay.task_E.max() >= len(replay.tasks):
        raise ValueError(f"task_E must lie in 0..{len(replay.tasks) - 1}, the indices of tasks {replay.tasks}")
    planned = _planned(replay)
    if replay.predicted_N is not None and (replay.predicted_N.min() < 0 or replay.predicted_N.max() > planned):
        raise ValueError(f"predicted_N must lie in 0..{planned}, what predicted_NPA holds")
    if replay.open_loop_N is not None and replay.open_loop_N.min() < 1:
        raise ValueError("open_loop_N must be at least 1: the step itself")


def _check_numbers(replay: Replay) -> None:
    known_E1 = replay.final_known_E[:, None]
    arrays = {"features_ND": replay.features_ND, "actions_NA": replay.actions_NA}
    arrays["final_features_ED"] = np.where(known_E1, replay.final_features_ED, 0)
    if replay.predicted_NPA is not None:
        arrays["predicted_NPA"] = replay.predicted_NPA
    arrays |= {f"rewards['{version}']": column.reward_N for version, column in replay.rewards.items()}
    for name, array in arrays.items():
        finite_N = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite_N.all():
            raise NonFiniteError(f"{name} is not finite in row {int(np.flatnonzero(~finite_N)[0])}")
        if name in ("actions_NA", "predicted_NPA") and array.size and np.abs(array).max() > ACTION_LIMIT + 1e-6:
            raise ValueError(f"{name} reaches {np.abs(array).max():.3f}: normalise, then clip to +-{ACTION_LIMIT}")
