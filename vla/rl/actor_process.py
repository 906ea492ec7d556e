"""An actor in a process of its own, and a learner that never runs further ahead of it than a bound.

Weights and attempts are safetensors files that appear whole or not at all; shared counters say who is where:

    updates    made by the learner                      playing  those behind the weights that the actor plays
    published  those behind the newest weights on disk  steps    that the actor has taken
    stop       1: the actor shall leave

Each has one writer at a time and no lock, which an actor that is killed could take with it.

The learner waits before an update that would put it more than `most_behind` updates ahead of what is being played, and
the actor waits before an attempt for which the learner owes more than that: so neither learns from, nor plays, what is
long out of date. An actor that dies is replaced; its scene is lost, which counts as a reset.

`learn_in_turn` is the same without a second process: one attempt, its updates, the next; then a run is a function of
its seed.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch

from vla.core.errors import GrasplineError
from vla.rl.learner import Learner
from vla.rl.reset_free import Attempt, Experience, Practice, attempts, load_attempt, save_attempt
from vla.rl.states import load_state, save_state

PAUSE_S = 0.002  # between two looks at the counters
MAX_DEATHS = 3  # in a row, without one attempt in between
ACTOR = "graspline-actor"  # name of its process
_SPAWN = get_context("spawn")

type Acting = tuple[Practice, Learner]
"""Who practises, and the learner whose networks its controller plays with."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much is played and learnt.

    steps        that are played, all attempts together; the last attempt is finished
    per_step     updates a step
    warm_up      steps before the first update
    most_behind  updates that the weights being played may be old
    publish      updates between two versions of the weights
    """

    steps: int
    per_step: float
    warm_up: int = 0
    most_behind: int = 200
    publish: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.publish <= self.most_behind:
            raise ValueError(f"publish is {self.publish}, expected 1 to most_behind = {self.most_behind}")

    def owed(self, steps: int) -> int:
        """Updates that belong to so many steps."""
        return int(self.per_step * max(0, steps - self.warm_up))


@dataclass(frozen=True)
class Board:
    """The shared counters."""

    updates: ctypes.c_longlong
    published: ctypes.c_longlong
    playing: ctypes.c_longlong
    steps: ctypes.c_longlong
    stop: ctypes.c_longlong


type OnAttempt = Callable[[Attempt, int], None]
"""Told of each attempt as it comes in, and of the updates made so far."""


def learn_in_turn(acting: Acting, experience: Experience, pace: Pace, on_attempt: OnAttempt) -> int:
    """Plays and learns by turns in this process. Returns the updates made."""
    practice, learner = acting
    steps, updates = 0, 0
    for attempt in attempts(practice):
        steps += len(attempt)
        experience.add([attempt])
        on_attempt(replace(attempt, version=updates), updates)
        while updates < pace.owed(steps):
            learner.update(experience.batch(updates))
            updates += 1
        if steps >= pace.steps:
            return updates
    raise AssertionError("attempts do not end")


def learn_apart(
    learner: Learner,
    experience: Experience,
    pace: Pace,
    on_attempt: OnAttempt,
    *,
    make_acting: Callable[[], Acting],
    folder: Path,
) -> dict[str, int]:
    """Learns here while an actor plays in another process.

    Args:
        learner: its networks are what is played.
        experience: grows.
        pace: how much of both.
        on_attempt: told of each attempt.
        make_acting: builds the actor's side over there; picklable.
        folder: gets `weights.safetensors` and `attempts/`, both empty before.

    Returns:
        updates, deaths of actors, and how often the learner waited lest it ran too far ahead.

    Raises:
        GrasplineError: actors died MAX_DEATHS times in a row.
    """
    board = Board(*(_SPAWN.RawValue(ctypes.c_longlong, 0) for _ in range(5)))
    publish(folder, learner, 0)
    source = _Source(folder)
    actor = _Actor(make_acting, folder, board, pace, source)
    updates = waits = 0
    try:
        while source.steps < pace.steps or updates < pace.owed(source.steps):
            if some := source.new(pace.steps):
                experience.add(some)
                for attempt in some:
                    on_attempt(attempt, updates)
            playing = source.steps < pace.steps
            if playing:
                actor.keep_alive()
            board.stop.value = int(not playing)
            owing = updates < pace.owed(source.steps)
            if owing and not (playing and updates - board.playing.value >= pace.most_behind):
                learner.update(experience.batch(updates))
                updates += 1
                board.updates.value = updates
                if updates % pace.publish == 0:
                    publish(folder, learner, updates)
                    board.published.value = updates
            else:
                waits += owing
                time.sleep(PAUSE_S)
    finally:
        actor.end()
    return {"updates": updates, "deaths": actor.deaths, "waits": waits}


class _Actor:
    """The other process, replaced when it dies."""

    def __init__(
        self, make_acting: Callable[[], Acting], folder: Path, board: Board, pace: Pace, source: "_Source"
    ) -> None:
        self._told, self._board, self._source = (make_acting, folder, board, pace), board, source
        self.deaths, self._in_a_row, self._last = 0, 0, -1
        self._start()

    def keep_alive(self) -> None:
        if self._process.is_alive() or self._source.waiting:
            return
        self._in_a_row = self._in_a_row + 1 if self._last == self._source.count else 1
        self._last = self._source.count
        self.deaths += 1
        if self._in_a_row > MAX_DEATHS:
            code = self._process.exitcode
            raise GrasplineError(f"the actor died {self._in_a_row} times in a row (exit status {code}); giving up")
        self._start()

    def end(self) -> None:
        self._board.stop.value = 1
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        self._board.steps.value = self._source.steps
        arguments = (*self._told, self._source.count, self._source.helped)
        self._process = _SPAWN.Process(target=_act, args=arguments, daemon=True, name=ACTOR)
        self._process.start()


class _Source:
    """Attempts in the order of their numbers, as they appear in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.count, self.steps, self.helped = folder / "attempts", 0, 0, 0

    @property
    def waiting(self) -> bool:
        """Whether the next one is there to be taken."""
        return _numbered(self._folder, self.count).exists()

    def new(self, enough: int) -> list[Attempt]:
        """Those that came in, up to the one that makes the steps `enough`."""
        found = []
        while self.steps < enough and self.waiting:
            found.append(load_attempt(_numbered(self._folder, self.count)))
            self.count += 1
            self.steps += len(found[-1])
            self.helped += int(found[-1].helped_T.sum())
        return found


def publish(folder: Path, learner: Learner, version: int) -> None:
    """Puts the networks where an actor looks for them."""
    networks = {name: network.state_dict() for name, network in learner.networks().items()}
    save_state(folder / "weights.safetensors", {"version": version, "networks": networks})


def adopt(folder: Path, learner: Learner) -> int:
    """Takes the newest networks over. Returns their version."""
    state = load_state(folder / "weights.safetensors")
    for name, network in learner.networks().items():
        network.load_state_dict(state["networks"][name])
    return state["version"]


def _act(make_acting: Callable[[], Acting], folder: Path, board: Board, pace: Pace, first: int, helped: int) -> None:
    """The actor's life: until it is told to stop, or the learner is gone."""
    torch.set_num_threads(1)
    practice, learner = make_acting()
    version = board.playing.value = adopt(folder, learner)
    for number, attempt in enumerate(attempts(practice, first, helped), start=first):
        told = replace(attempt, version=version, lag=board.updates.value - version)
        save_attempt(_numbered(folder / "attempts", number), told)
        board.steps.value += len(attempt)
        while True:
            if board.stop.value or not _learner_lives():
                return
            if version != board.published.value:
                version = board.playing.value = adopt(folder, learner)
            if pace.owed(board.steps.value) - board.updates.value <= pace.most_behind:
                break
            time.sleep(PAUSE_S)


def _learner_lives() -> bool:
    parent = parent_process()
    return parent is not None and parent.is_alive()


def _numbered(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"
