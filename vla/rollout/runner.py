"""Plays planned episodes with a policy, in one env or in a pool of them.

Special: the outcome of a row is a function of (policy, task, init state, seed) alone. A slot that ends an episode
starts the next at once, the policy answers all slots that wait, and its random seeds come from the row and the step: so
neither the number of slots and workers nor the order of the plan can change a result.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vla.core.protocols import Env, Policy
from vla.core.types import Observation, Step
from vla.rollout.answers import answers
from vla.rollout.executor import Executor, Player


@dataclass(frozen=True)
class EpisodePlan:
    """One episode to play."""

    task: str
    init_state: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What became of a planned episode. A row with an `error` is a failure whose steps are those that were seen.

    wall_s = physics_s + render_s + policy_s + the time [s] in which the episode waited for a core, a pipe or the batch.
    """

    task: str
    init_state: int
    seed: int
    success: bool
    steps: int
    terminated: bool
    truncated: bool
    error: str | None
    wall_s: float
    physics_s: float
    render_s: float
    policy_s: float


class Reply(Protocol):
    """What a pool's slot says after a command; `sim.vector.Reply` documents the fields."""

    @property
    def slot(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def step(self) -> Step | None: ...
    @property
    def observation(self) -> Observation | None: ...
    @property
    def value(self) -> Any: ...
    @property
    def error(self) -> str | None: ...
    @property
    def physics_s(self) -> float: ...
    @property
    def render_s(self) -> float: ...


class EnvPool(Protocol):
    """Slots that play episodes side by side; `sim.vector.EnvPool` is one."""

    num_slots: int

    def reset(self, slot: int, task: str, init_state: int, seed: int, cameras: Sequence[str]) -> None: ...
    def play(self, slot: int, actions_HA: np.ndarray, cameras: Sequence[str]) -> None: ...
    def call(self, slot: int, function: Callable[..., Any], *arguments: Any) -> None: ...
    def wait(self) -> Sequence[Reply]: ...


type OnResult = Callable[[EpisodeResult], None]


def act_seed(seed: int, step: int) -> int:
    """The seed in 0..2^63-1 that a policy gets for the observation after `step` steps of the row with `seed`."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def run_episode(env: Env, policy: Policy, row: EpisodePlan, executor: Executor) -> EpisodeResult:
    """One episode in one env, in this process: what every other way of playing it must agree with."""
    episode = _Running(row, executor.start(env.spec))
    env.reset(row.task, row.init_state, row.seed)
    while True:
        seen = time.perf_counter()
        observation = env.observe(policy.cameras)
        asked = time.perf_counter()
        [chunk] = policy.act([observation], [act_seed(row.seed, episode.steps)])
        episode.render_s += asked - seen
        episode.policy_s += time.perf_counter() - asked
        for action_A in episode.player(chunk):
            moved = time.perf_counter()
            step = env.step(action_A)
            episode.physics_s += time.perf_counter() - moved
            episode.steps += 1
            if step.terminated or step.truncated:
                return episode.result(step=step)


def run_episodes(
    pool: EnvPool, policy: Policy, plan: Iterable[EpisodePlan], executor: Executor, on_result: OnResult
) -> None:
    """Plays the whole plan, calling `on_result` with each row as it finishes.

    An episode that an env, a dying worker or the policy spoils becomes a row with an error; the others go on.
    """
    queue = _Queue(plan)
    running: dict[int, _Running] = {}

    def start_next(slot: int) -> None:
        running.pop(slot, None)
        if (row := queue.take(slot)) is not None:
            running[slot] = _Running(row, executor.start(policy.spec))
            pool.reset(slot, row.task, row.init_state, row.seed, policy.cameras)

    for slot in range(pool.num_slots):
        start_next(slot)
    while running:
        waiting: dict[int, Observation] = {}
        for reply in pool.wait():
            episode = running.get(reply.slot)
            if episode is None:  # a worker died under an episode that was given up before
                continue
            episode.add(reply)
            if reply.observation is not None:
                waiting[reply.slot] = reply.observation
            else:
                on_result(episode.result(step=reply.step, error=reply.error))
                start_next(reply.slot)
        if waiting:
            asked = time.perf_counter()
            seeds = [act_seed(running[slot].row.seed, running[slot].steps) for slot in waiting]
            answered = answers(policy, list(waiting.values()), seeds)
            share_s = (time.perf_counter() - asked) / len(waiting)
            for slot, answer in zip(waiting, answered, strict=True):
                running[slot].policy_s += share_s
                if isinstance(answer, str):
                    on_result(running[slot].result(error=answer))
                    start_next(slot)
                else:
                    pool.play(slot, running[slot].player(answer), policy.cameras)


def run_in_workers(
    pool: EnvPool,
    make_policy: Callable[[Env], Policy],
    plan: Iterable[EpisodePlan],
    executor: Executor,
    on_result: OnResult,
) -> None:
    """As `run_episodes`, for a policy that belongs beside the env: an expert that acts on privileged state.

    Args:
        pool: as in `run_episodes`.
        make_policy: builds the policy for an env; picklable.
        plan: the rows to play.
        executor: how chunks are played.
        on_result: called with each row as it finishes.
    """
    queue = _Queue(plan)
    running: dict[int, _Running] = {}

    def start_next(slot: int) -> None:
        running.pop(slot, None)
        if (row := queue.take(slot)) is not None:
            running[slot] = _Running(row, player=None)
            pool.call(slot, _run_here, make_policy, row, executor)

    for slot in range(pool.num_slots):
        start_next(slot)
    while running:
        for reply in pool.wait():
            on_result(reply.value if reply.error is None else running[reply.slot].result(error=reply.error))
            start_next(reply.slot)


def _run_here(env: Env, make_policy: Callable[[Env], Policy], row: EpisodePlan, executor: Executor) -> EpisodeResult:
    return run_episode(env, make_policy(env), row, executor)


class _Running:
    """An episode that is being played."""

    def __init__(self, row: EpisodePlan, player: Player | None) -> None:
        self.row = row
        self._player = player
        self.steps = 0
        self.physics_s = self.render_s = self.policy_s = 0.0
        self._began = time.perf_counter()

    @property
    def player(self) -> Player:
        assert self._player is not None, "a called episode is played in its worker"
        return self._player

    def add(self, reply: Reply) -> None:
        self.steps += reply.steps
        self.physics_s += reply.physics_s
        self.render_s += reply.render_s

    def result(self, *, step: Step | None = None, error: str | None = None) -> EpisodeResult:
        row = self.row
        return EpisodeResult(
            task=row.task,
            init_state=row.init_state,
            seed=row.seed,
            success=error is None and step is not None and step.success,
            steps=self.steps,
            terminated=step is not None and step.terminated,
            truncated=step is not None and step.truncated,
            error=error and f"task '{row.task}', init state {row.init_state}: {error}",
            wall_s=time.perf_counter() - self._began,
            physics_s=self.physics_s,
            render_s=self.render_s,
            policy_s=self.policy_s,
        )


class _Queue:
    """The rows still to start. A slot stays with its task as long as it can: another task may mean another model."""

    def __init__(self, plan: Iterable[EpisodePlan]) -> None:
        self._rows: dict[str, deque[EpisodePlan]] = {}
        for row in plan:
            self._rows.setdefault(row.task, deque()).append(row)
        self._task_of: dict[int, str] = {}

    def take(self, slot: int) -> EpisodePlan | None:
        """The next row for a slot, or None when all have started."""
        task = self._task_of.pop(slot, None)
        if not self._rows.get(task or ""):
            task = self._neediest(Counter(self._task_of.values()))
        if task is None:
            return None
        self._task_of[slot] = task
        return self._rows[task].popleft()

    def _neediest(self, slots_on: Mapping[str, int]) -> str | None:
        """The task with the most rows left for each slot that would be on it."""
        left = {task: len(rows) / (slots_on.get(task, 0) + 1) for task, rows in self._rows.items() if rows}
        return max(left, key=left.__getitem__) if left else None
