"""Which episodes a judge of success is trained and tested on: half of them the expert's, half mistakes of all ways."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards.mistakes import WAYS, play
from vla.core.errors import unknown_name
from vla.core.protocols import Env, Policy, Task
from vla.core.types import Episode


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What to record where there is no dataset yet; the keys of `collect` in configs/train_reward.yaml."""

    tasks: Sequence[str]
    unseen_tasks: Sequence[str] = ()
    episodes: int = 150
    test_episodes: int = 80
    other_tasks: Sequence[str | None] = ()
    linger: int = 10
    max_steps: int = 100
    seed: int = 0

    def other(self, task: str) -> str | None:
        """The task in the same scene that the expert does by mistake."""
        return dict(zip([*self.tasks, *self.unseen_tasks], self.other_tasks)).get(task)


@dataclass(frozen=True)
class Row:
    """One episode to record; `name` is that of its staged file."""

    task: str
    init_state: int
    seed: int
    way: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.init_state}-{self.seed}-{self.way}"


def rows_of(env: Env, plan: Collection, *, test: bool) -> list[Row]:
    """Every second episode of a task is clean; the others go through the mistakes. Test: held-out initial states alone.

    Raises:
        UnknownNameError: a task that the suite does not have.
    """
    tasks = [*plan.tasks, *(plan.unseen_tasks if test else ())]
    for name in (*tasks, *filter(None, plan.other_tasks)):
        if name not in env.tasks:
            raise unknown_name("task", name, env.tasks)
    episodes, rows = plan.test_episodes if test else plan.episodes, []
    for name in tasks:
        mistakes = [way for way in WAYS[1:] if way != "other_task" or plan.other(name)]
        for number in range(episodes // len(tasks)):
            way = "clean" if number % 2 == 0 else mistakes[number // 2 % len(mistakes)]
            seed = _seed(plan.seed, 2 * number + test)
            rows.append(Row(name, _state(env.tasks[name], number // 2, test=test), seed, way))
    return rows


def play_row(env: Env, expert: Policy, row: Row, plan: Collection) -> Episode:
    """Records one planned episode."""
    other = plan.other(row.task)
    told = None if other is None else env.tasks[other].instruction
    return play(
        env,
        expert,
        task=row.task,
        init_state=row.init_state,
        seed=row.seed,
        way=row.way,
        other_instruction=told,
        linger=plan.linger,
        max_steps=plan.max_steps,
    )


def _state(task: Task, number: int, *, test: bool) -> int:
    """Clean and mistaken episodes share their initial states, so that no judge can tell them by the start."""
    if test:
        return task.num_train_states + number % (task.num_init_states - task.num_train_states)
    state = number % (task.num_train_states + task.num_extra_states)
    return state if state < task.num_train_states else state + task.num_init_states - task.num_train_states


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))
