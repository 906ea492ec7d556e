"""Plans: even, held out, and a pure function of their arguments."""

from collections import Counter

import pytest

from sim.fake import FakeEnv
from vla.core.errors import GrasplineError, UnknownNameError
from vla.core.protocols import Task
from vla.rollout.plan import make_plan, select_tasks


def task(name: str, states: int = 50, train: int = 40) -> Task:
    return Task(name=name, instruction=name, horizon=9, num_init_states=states, num_train_states=train)


SUITE = {name: task(name) for name in ("spatial_left", "spatial_right", "spatially", "object_cup", "object")}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", list(SUITE)),
        ("spatial", ["spatial_left", "spatial_right"]),
        ("object_cup", ["object_cup"]),
        ("object", ["object"]),
        (["object_cup", "spatial"], ["spatial_left", "spatial_right", "object_cup"]),
        (["object", "object"], ["object"]),
    ],
)
def test_select_tasks(wanted: str | list[str], expected: list[str]) -> None:
    assert [chosen.name for chosen in select_tasks(SUITE, wanted)] == expected


def test_select_tasks_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'spatial_left'"):
        select_tasks(SUITE, "spatial_lift")
    with pytest.raises(UnknownNameError):
        select_tasks(SUITE, ["object", "spat"])
    with pytest.raises(GrasplineError, match="none chosen"):
        select_tasks(SUITE, [])


@pytest.mark.parametrize("episodes", [3, 10, 60, 61])
def test_episodes_are_spread_evenly_over_held_out_states(episodes: int) -> None:
    tasks = list(FakeEnv().tasks.values())
    plan = make_plan(tasks, episodes, "heldout", 0)
    counts = Counter(row.task for row in plan)
    assert len(plan) == episodes and max(counts.values()) - min(counts.values()) <= 1
    assert {row.init_state for row in plan} <= set(range(40, 50))
    states = Counter((row.task, row.init_state) for row in plan)
    for name in counts:
        used = [count for (of, _), count in states.items() if of == name]
        assert max(used) - min([*used, 0 if len(used) < 10 else 99]) <= 1
    assert len(set(plan)) == len(plan) and len({row.seed for row in plan}) == len(plan)


def test_init_state_ranges() -> None:
    tasks = [task("a", 6, 4)]
    assert [row.init_state for row in make_plan(tasks, 5, "heldout", 0)] == [4, 5, 4, 5, 4]
    assert [row.init_state for row in make_plan(tasks, 5, "train", 0)] == [0, 1, 2, 3, 0]
    assert [row.init_state for row in make_plan(tasks, 7, "all", 0)] == [0, 1, 2, 3, 4, 5, 0]


def test_a_plan_is_pure_and_stands_for_itself() -> None:
    tasks = list(FakeEnv().tasks.values())
    plan = make_plan(tasks, 30, "heldout", 3)
    assert plan == make_plan(tasks, 30, "heldout", 3) != make_plan(tasks, 30, "heldout", 4)
    assert make_plan(tasks[1:2], 10, "heldout", 3) == [row for row in plan if row.task == tasks[1].name]


def test_impossible_plans_are_refused() -> None:
    tasks = list(FakeEnv().tasks.values())
    with pytest.raises(GrasplineError, match="episodes is 2, but 3 tasks"):
        make_plan(tasks, 2, "heldout", 0)
    with pytest.raises(GrasplineError, match="task 'b' has no heldout init states: 5 of 5"):
        make_plan([task("b", 5, 5)], 1, "heldout", 0)
    with pytest.raises(UnknownNameError, match="Did you mean 'heldout'"):
        make_plan(tasks, 3, "held_out", 0)  # pyright: ignore[reportArgumentType]
