"""The kitchen: rules by hand, the expert against breadth-first search, and going back to any moment."""

from collections import deque
from dataclasses import replace

import pytest
import torch

from agents.envs import household
from agents.envs.household import (
    NOTHING,
    HouseholdEnv,
    HouseholdTask,
    Kitchen,
    expert_action,
    household_tasks,
    is_held_out,
)

TASK = HouseholdTask(
    thing="mug", state="clean", goal="cupboard",
    stands=(("apple 1", "table"), ("mug 1", "drawer"), ("mug 2", "cupboard"), ("plate 1", "drawer")),
)  # fmt: skip


def drawn(count: int, seed: int = 0, *, held_out: bool = False) -> list[HouseholdTask]:
    return household_tasks(count, torch.Generator().manual_seed(seed), held_out=held_out)


def play(env: HouseholdEnv, task: HouseholdTask) -> list[str]:
    """Actions of the expert."""
    env.reset(task)
    actions = []
    while not env.ended:
        actions.append(expert_action(env.kitchen))
        assert actions[-1] in env.admissible()
        env.step(actions[-1])
    return actions


def shortest(task: HouseholdTask) -> int:
    """Actions of the shortest way, by trying all of them; things that the task does not name stay where they are."""
    env = HouseholdEnv(limit=10**6)
    env.reset(replace(task, stands=tuple(each for each in task.stands if each[0].startswith(task.thing))))
    seen, waiting = set(), deque([(env.snapshot(), 0)])
    while waiting:
        state, depth = waiting.popleft()
        env.restore(state)
        if env.success:
            return depth
        for action in env.admissible():
            if action.startswith("close"):  # never shortens a way
                continue
            env.restore(state)
            env.step(action)
            after = replace(env.snapshot(), steps=0)
            if after not in seen:
                seen.add(after)
                waiting.append((after, depth + 1))
    raise AssertionError("no way")


def test_a_task_in_words() -> None:
    env = HouseholdEnv()
    assert env.reset(TASK).endswith("Your task: put a clean mug in the cupboard.")
    said = [
        ("take mug 1", NOTHING),
        ("go drawer", "The drawer is closed."),
        ("take mug 1", NOTHING),
        ("open drawer", "In the drawer: mug 1, plate 1."),
        ("take mug 1", "You hold the mug 1."),
        ("take plate 1", NOTHING),
        ("clean mug 1", NOTHING),
        ("go sink", "In the sink: nothing."),
        ("clean mug 1", "The mug 1 is clean."),
        ("go cupboard", "The cupboard is closed."),
        ("put mug 1", NOTHING),
        ("open cupboard", "In the cupboard: mug 2."),
        ("put mug 1", "You put the mug 1 in the cupboard."),
    ]
    for action, words in said:
        assert not env.ended
        assert env.step(action) == words
    assert env.success and env.ended and env.kitchen.steps == len(said)
    with pytest.raises(RuntimeError, match="expected reset first"):
        env.step("go sink")


def test_what_is_wanted_is_the_state_too() -> None:
    """Another mug stands in the cupboard from the beginning, and a dirty one put there does not help."""
    env = HouseholdEnv()
    env.reset(TASK)
    assert not env.success
    for action in ("go drawer", "open drawer", "take mug 1", "go cupboard", "open cupboard", "put mug 1"):
        assert env.step(action) != NOTHING
    assert not env.success


def test_heat_undoes_cold() -> None:
    env = HouseholdEnv()
    env.reset(replace(TASK, state="cold", goal="table"))
    for action in ("go drawer", "open drawer", "take mug 1", "go fridge", "cool mug 1", "go microwave", "heat mug 1"):
        assert env.step(action) != NOTHING
    env.step("go table")
    env.step("put mug 1")
    assert not env.success and ("mug 1", "hot") in env.kitchen.states


def test_the_expert_takes_a_shortest_way() -> None:
    """Searched with the same rules; an expert that walks once too often is found out."""
    env = HouseholdEnv()
    for task in drawn(5):
        assert len(play(env, task)) == shortest(task)


def test_every_task_is_done_with_few_choices() -> None:
    env = HouseholdEnv()
    lengths = []
    for task in [*drawn(200), *drawn(100, held_out=True)]:
        lengths.append(len(play(env, task)))
        assert env.success
        env.reset(task)
        while not env.ended:
            assert len(env.admissible()) <= 30
            env.step(expert_action(env.kitchen))
    assert (min(lengths), max(lengths)) == (4, 8)


def test_the_expert_mends_what_others_did() -> None:
    """After ten actions drawn at random it still gets there."""
    env, generator = HouseholdEnv(limit=40), torch.Generator().manual_seed(0)
    for task in drawn(100):
        env.reset(task)
        for _ in range(10):
            if not env.ended:
                choices = env.admissible()
                env.step(choices[int(torch.randint(len(choices), (), generator=generator))])
        while not env.ended:
            env.step(expert_action(env.kitchen))
        assert env.success


def test_every_action_that_is_listed_changes_something_and_no_other_does() -> None:
    env = HouseholdEnv(limit=10**6)
    everything = {f"{verb} {name}" for verb in ("go", "open", "close") for name in household.PLACES}
    for task in drawn(5):
        env.reset(task)
        names = [name for name, _ in task.stands]
        every = everything | {f"{verb} {name}" for verb in ("take", "put", "clean", "heat", "cool") for name in names}
        for action in play(HouseholdEnv(), task):
            before = env.snapshot()
            for tried in every:
                env.restore(before)
                told = env.step(tried)
                changed = replace(env.snapshot(), steps=0) != replace(before, steps=0)
                again = tried.split()[0] in (
                    "clean",
                    "heat",
                    "cool",
                )  # a second time it changes nothing, and is allowed
                assert (told != NOTHING) == (tried in env_admissible(before))
                assert changed == (told != NOTHING) or again
            env.restore(before)
            env.step(action)


def env_admissible(state: Kitchen) -> tuple[str, ...]:
    env = HouseholdEnv()
    env.restore(state)
    return env.admissible()


def test_back_to_a_moment_and_on_is_the_same() -> None:
    env = HouseholdEnv()
    for task in drawn(20):
        env.reset(task)
        way = play(HouseholdEnv(), task)
        half = len(way) // 2
        for action in way[:half]:
            env.step(action)
        kept = env.snapshot()
        first = [(env.step(action), env.snapshot()) for action in way[half:]]
        env.reset(drawn(1, seed=9)[0])  # another task in between
        env.restore(kept)
        assert [(env.step(action), env.snapshot()) for action in way[half:]] == first
        assert env.success


def test_draws_are_repeatable_and_apart_from_tests() -> None:
    assert drawn(20) == drawn(20) != drawn(20, seed=1)
    training, held = {task.text for task in drawn(400)}, {task.text for task in drawn(100, held_out=True)}
    assert not training & held and len(held) > 10
    assert all(is_held_out(task) for task in drawn(20, held_out=True))
    for part in ("thing", "state", "goal"):
        assert {getattr(t, part) for t in drawn(400)} == {getattr(t, part) for t in drawn(300, held_out=True)}


def test_actions_run_out() -> None:
    env = HouseholdEnv(limit=2)
    with pytest.raises(RuntimeError, match="there is no task"):
        env.admissible()
    env.reset(TASK)
    assert env.step("dance") == NOTHING
    env.step("go table")
    assert env.ended and not env.success
