"""Which episodes an evaluation plays: a pure function of tasks, episodes, init states and seed.

Special: a row's seed comes from the task's name and its own number, so two policies meet the same episodes, and so does
one policy that is evaluated on fewer tasks.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Task
from vla.rollout.runner import EpisodePlan

type InitStates = Literal["heldout", "train", "all"]


def select_tasks(tasks: Mapping[str, Task], wanted: str | Sequence[str]) -> list[Task]:
    """The tasks that `wanted` means, in the suite's order.

    Args:
        tasks: the suite's.
        wanted: `all`, a task's name, a prefix (`spatial`: every task called `spatial_...`), or a list of those.

    Raises:
        UnknownNameError: a name that matches nothing.
    """
    chosen: set[str] = set()
    for name in [wanted] if isinstance(wanted, str) else wanted:
        matches = [task for task in tasks if name in ("all", task) or task.startswith(f"{name}_")]
        if name in tasks:
            matches = [name]
        if not matches:
            raise unknown_name("task", name, [*tasks, "all"])
        chosen.update(matches)
    if not chosen:
        raise GrasplineError("tasks: none chosen; give 'all', a name, a prefix or a list")
    return [task for name, task in tasks.items() if name in chosen]


def make_plan(tasks: Sequence[Task], episodes: int, init_states: InitStates, seed: int) -> list[EpisodePlan]:
    """`episodes` rows in all, spread evenly over the tasks (the first get one more), cycling through the init states.

    Args:
        tasks: in the order of the plan.
        episodes: total number of rows.
        init_states: `heldout` (those that training never sees), `train`, or `all`.
        seed: two evaluations with one seed play the same episodes.

    Raises:
        GrasplineError: a number or name out of range, or a task without such init states.
    """
    if init_states not in get_args(InitStates.__value__):
        raise unknown_name("init_states", str(init_states), get_args(InitStates.__value__))
    if episodes < len(tasks):
        raise GrasplineError(f"episodes is {episodes}, but {len(tasks)} tasks need at least one each")
    each, more = divmod(episodes, len(tasks))
    plan = []
    for index, task in enumerate(tasks):
        allowed = _allowed(task, init_states)
        for number in range(each + (index < more)):
            row_seed = np.random.SeedSequence([seed, zlib.crc32(task.name.encode()), number]).generate_state(1)[0]
            plan.append(EpisodePlan(task.name, allowed[number % len(allowed)], int(row_seed)))
    return plan


def _allowed(task: Task, init_states: InitStates) -> range:
    first = task.num_train_states if init_states == "heldout" else 0
    last = task.num_train_states if init_states == "train" else task.num_init_states
    if first >= last:
        raise GrasplineError(
            f"task '{task.name}' has no {init_states} init states: {task.num_train_states} of "
            f"{task.num_init_states} are for training"
        )
    return range(first, last)
