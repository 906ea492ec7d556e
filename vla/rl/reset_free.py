"""Practice without resets: attempts at two tasks by turns, ended by a judge, sometimes helped, as data to learn from.

    attempts      an endless stream of them; the caller learns between two
    Judge         says when an attempt is done: the simulator's predicates, or a classifier of pictures
    Helper        may take over for a while; its steps count as demonstrations (as DAgger's, Ross et al. 2011)
    Experience    demonstrations and attempts in one replay, half of each batch from either (RLPD, Ball et al. 2023)

Special: a judge's word is the reward and ends the attempt, right or wrong, and the simulator's word is kept beside it,
so what it cost can be counted. An attempt is followed by the other task unless that looks done already: then the thing
was not moved, and a success would be paid for nothing. An attempt in which the thing is lost ends as a failure, for
nothing that is worth anything follows; one whose time is up is cut.

Letters: T time in an attempt, D features, A action.
Source: RoboFuME (arXiv 2310.15145), section on online fine-tuning; departures: two features above, and the arm's own
drive home between attempts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vla.core.errors import CorruptFileError
from vla.core.protocols import Env
from vla.core.types import Float, Observation
from vla.rl.features import Features
from vla.rl.gather import REWARD, Act, Controller, Recording, Row, padded, physical, to_replay
from vla.rl.interfaces import ChunkBatch
from vla.rl.replay import Replay
from vla.rl.sampling import Sampler
from vla.rl.states import load_state, save_state

_ARRAYS = ("features_TD", "actions_TA", "plan_TPA", "planned_T", "open_loop_T", "success_T")


class PracticeEnv(Env, Protocol):
    """An env of two tasks that goes on without being reset; `sim.reset_free.ResetFreeEnv` is one."""

    def go_on(self, task: str, init_state: int) -> tuple[str, int]:
        """Begins an attempt where the last one ended, the hand at home.

        Returns why the scene was reset for it, "" where it was not, and the control steps that driving home took.
        """
        ...

    def holds(self, task: str) -> bool:
        """The simulator's word on whether a task is done now."""
        ...

    def stuck(self) -> bool:
        """Whether the thing is lost."""
        ...

    def where(self) -> Float:
        """Position (3,) [m] of the thing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who says that a task is done: asked every `every` steps, believed after `consecutive` times yes."""

    name: str
    looks_done: Callable[[PracticeEnv, str], bool]
    every: int = 1
    consecutive: int = 1


def predicates(env: PracticeEnv, task: str) -> bool:
    """The judge that knows."""
    return env.holds(task)


ORACLE = Judge(name="oracle", looks_done=predicates)


@dataclass(frozen=True, kw_only=True)
class Helper:
    """Somebody who watches and may take over.

    act         observation to an action (A,), physical units
    takes_over  asked before each step with the steps of this attempt so far and what is seen
    budget      steps in all
    """

    act: Callable[[Observation], Float]
    takes_over: Callable[[int, Observation], bool]
    budget: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempt:
    """One attempt and what is known of it besides.

    recording  its success is the judge's word, which ended it
    helped_T   (T,) bool       the helper's steps
    holds_T    (T,) bool       the simulator's word after each step, whoever judged
    where_T3   (T + 1, 3) [m]  of the thing
    reset      why the scene was reset before it, "" where it was not
    home       control steps of driving home before it
    version    updates behind the weights that played it
    lag        updates that the learner was ahead of them when it ended
    """

    recording: Recording
    helped_T: NDArray[np.bool_]
    holds_T: NDArray[np.bool_]
    where_T3: Float
    reset: str
    home: int = 0
    version: int = 0
    lag: int = 0

    def __len__(self) -> int:
        return len(self.recording)

    @property
    def rightly(self) -> bool:
        """Whether the task was done when the attempt ended."""
        return bool(self.holds_T[-1])


@dataclass(frozen=True, kw_only=True)
class Practice:
    """Who practises what: all that `attempts` needs.

    init_states  placements for true resets: the first, and how many
    """

    env: PracticeEnv
    controller: Controller
    features: Features
    judge: Judge
    seed: int
    init_states: tuple[int, int]
    helper: Helper | None = None


def attempts(practice: Practice, first: int = 0, helped: int = 0) -> Iterator[Attempt]:
    """Attempts without end, numbered from `first`: each follows from the ones before, the seed and its number.

    `helped` steps of the helper's budget are spent already.
    """
    names = list(practice.env.tasks)
    task, helper = names[first % 2], practice.helper
    if helper is not None:
        helper = replace(helper, budget=helper.budget - helped)
    for number in count(first):
        rng = np.random.default_rng([practice.seed, number])
        low, many = practice.init_states
        row = Row(task=task, init_state=low + int(rng.integers(many)), seed=number)
        attempt = play(practice, row, rng, helper)
        if helper is not None:
            helper = replace(helper, budget=helper.budget - int(attempt.helped_T.sum()))
        yield attempt
        other = names[1 - names.index(task)]
        if not practice.judge.looks_done(practice.env, other):
            task = other


def play(practice: Practice, row: Row, rng: np.random.Generator, helper: Helper | None) -> Attempt:
    """One attempt, from where the things lie."""
    env, features, judge = practice.env, practice.features, practice.judge
    horizon = env.tasks[row.task].horizon
    reset, home = env.go_on(row.task, row.init_state)
    act = practice.controller.start(env, rng)
    observation = env.observe(features.cameras)
    seen, where = [features(observation)], [env.where()]
    taken: list[_Taken] = []
    helping, yes, helped = False, 0, 0
    while True:
        wanted = helper is not None and helped < helper.budget and helper.takes_over(len(taken), observation)
        if helping and not wanted:
            act = practice.controller.start(env, rng)  # what it had planned is out of date
        helping = wanted
        helped += wanted
        by = _hand(helper, features) if helper is not None and helping else act
        plan_PA, blind = by(observation, seen[-1])
        step = env.step(physical(plan_PA[0], features))
        observation = env.observe(features.cameras)
        seen.append(features(observation))
        where.append(env.where())
        taken.append(_Taken(plan_PA, blind, features.transforms.actions(step.executed_A), helping, step.success))
        if len(taken) % judge.every == 0:
            yes = yes + 1 if judge.looks_done(env, row.task) else 0
        declared, lost = yes >= judge.consecutive, env.stuck()
        if declared or lost or len(taken) == horizon:
            ended = {"success": declared, "terminated": declared or lost, "truncated": not (declared or lost)}
            recording = _recording(row, seen, taken, demo=practice.controller.demo, clock_limit=horizon, **ended)
            return Attempt(
                recording=recording,
                helped_T=np.array([each.helped for each in taken]),
                holds_T=np.array([each.holds for each in taken]),
                where_T3=np.stack(where),
                reset=reset,
                home=home,
            )


@dataclass(frozen=True)
class _Taken:
    """One step: plan (P, A), how many of it were to be played blind, action (A,) as executed, whose, and the truth."""

    plan_PA: Float
    blind: int
    executed_A: Float
    helped: bool
    holds: bool


def _hand(helper: Helper, features: Features) -> Act:
    """The helper as one who plays: one action at a look."""

    def act(observation: Observation, features_D: Float) -> tuple[Float, int]:
        action_A = features.spec.clip(helper.act(observation))
        return features.transforms.actions(action_A)[None], 1

    return act


def _recording(row: Row, seen: Sequence[Float], taken: Sequence[_Taken], *, success: bool, **told: Any) -> Recording:
    longest = max(len(each.plan_PA) for each in taken)
    success_T = np.zeros(len(taken), np.float32)
    success_T[-1] = success
    return Recording(
        row=row,
        features_TD=np.stack(seen),
        actions_TA=np.stack([each.executed_A for each in taken]),
        plan_TPA=np.stack([padded(each.plan_PA, longest) for each in taken]),
        planned_T=np.array([len(each.plan_PA) for each in taken]),
        open_loop_T=np.array([each.blind for each in taken]),
        success_T=success_T,
        success=success,
        **told,
    )


def practice_replay(some: Sequence[Attempt], provenance: dict[str, str]) -> Replay:
    """Attempts as one replay, in which the helper's steps are demonstrations as a demonstrator's are.

    An attempt that was cut, by the clock alone, has the clock's limit; that of one that ended otherwise stays.
    """
    replay = to_replay([each.recording for each in some], provenance)
    return replace(replay, demo_N=replay.demo_N | np.concatenate([each.helped_T for each in some]))


class Experience:
    """What is learnt from: demonstrations, and attempts as they come in."""

    def __init__(
        self,
        demonstrations: Sequence[Attempt],
        *,
        judge: str,
        horizon: int,
        discount: float,
        batch: int,
        demo_share: float,
        seed: int,
    ) -> None:
        """`demo_share` of each batch starts at demonstrators' and helpers' steps, as long as there are others too."""
        self.all, self._told = list(demonstrations), {"source": judge}
        self._cut: dict[str, Any] = {"horizon": horizon, "discount": discount, "batch_size": batch, "seed": seed}
        self._share = demo_share
        self._sampler: Sampler | None = None

    def add(self, some: Sequence[Attempt]) -> None:
        if some:
            self.all.extend(some)
            self._sampler = None

    def batch(self, number: int) -> ChunkBatch:
        """Batch `number` out of what there is now."""
        if self._sampler is None:
            replay = practice_replay(self.all, self._told)
            replay = replay.with_returns(REWARD, self._cut["discount"], after_truncation="nothing")
            weights_N = half_and_half(replay.demo_N, self._share)
            self._sampler = Sampler(replay, version=REWARD, weights_N=weights_N, **self._cut)
        return self._sampler.batch(number)


def half_and_half(demo_N: NDArray[np.bool_], share: float) -> NDArray[np.float64]:
    """(N,) drawing weights that give demonstrations `share` of all draws; equal where there is one kind alone."""
    if demo_N.all() or not demo_N.any():
        return np.ones(len(demo_N))
    return np.where(demo_N, share / demo_N.sum(), (1 - share) / (~demo_N).sum())


def counted(some: Sequence[Attempt]) -> dict[str, Any]:
    """What practice cost, and what the judge's word was worth.

    Returns:
        resets            how many true ones, by cause
        helped_steps      the helper's
        declared          attempts that the judge called done; rightly_declared: that were, at that moment
        missed            attempts in which the task was done for a moment, but never called so
        done_by_quarter   share of attempts at whose end the task was done, for each quarter of them
        most_lag          see Attempt
    """
    declared = [each for each in some if each.recording.success]
    quarters = np.array_split(np.array([each.rightly for each in some]), 4)
    return {
        "attempts": len(some),
        "steps": sum(map(len, some)),
        "steps_home": sum(each.home for each in some),
        "resets": dict(Counter(each.reset for each in some if each.reset)),
        "helped_steps": sum(int(each.helped_T.sum()) for each in some),
        "declared": len(declared),
        "rightly_declared": sum(each.rightly for each in declared),
        "missed": sum(bool(each.holds_T.any()) and not each.recording.success for each in some),
        "done_by_quarter": [float(quarter.mean()) for quarter in quarters if len(quarter)],
        "most_lag": max(each.lag for each in some),
        "mean_lag": float(np.mean([each.lag for each in some])),
    }


def save_attempt(path: Path, attempt: Attempt) -> None:
    """Writes one attempt as safetensors, all of it or nothing."""
    recording = attempt.recording
    plain = {key: value for key, value in vars(recording).items() if key not in (*_ARRAYS, "row")}
    arrays = {name: torch.from_numpy(getattr(recording, name)) for name in _ARRAYS}
    own = {name: torch.from_numpy(getattr(attempt, name)) for name in ("helped_T", "holds_T", "where_T3")}
    told = {name: getattr(attempt, name) for name in ("reset", "home", "version", "lag")}
    save_state(path, {"recording": {**plain, **arrays, "row": vars(recording.row)}, **own, **told})


def load_attempt(path: Path) -> Attempt:
    """What `save_attempt` wrote. Raises MissingAssetError, CorruptFileError."""
    state = load_state(path)
    try:
        recording = state.pop("recording")
        arrays = {name: recording.pop(name).numpy() for name in _ARRAYS}
        row = Row(**recording.pop("row"))
        own = {name: state.pop(name).numpy() for name in ("helped_T", "holds_T", "where_T3")}
        return Attempt(recording=Recording(row=row, **arrays, **recording), **own, **state)
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path}: not an attempt ({error})") from error
