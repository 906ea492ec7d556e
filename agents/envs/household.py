"""A kitchen in words: find a thing, perhaps clean, heat or cool it, and put it where it is wanted.

The shape of ALFWorld's tasks (arXiv 2010.03768) without its simulator: things stand in closed cupboards until they are
looked into, one is carried at a time, and what does not apply is answered with "Nothing happens.". Nothing is random:
what the world says is a function of the task and the actions, and its whole state is one frozen value, so search can go
back to any moment for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from zlib import crc32

import torch

PLACES = ("table", "shelf", "sink", "fridge", "microwave", "cupboard", "drawer", "bin")
CLOSED = frozenset({"fridge", "microwave", "cupboard", "drawer"})  # at first; they have doors
THINGS = ("apple", "egg", "mug", "plate", "knife", "potato")
COPIES = ("1", "2")
TREATMENTS: Mapping[str, tuple[str, str]] = {  # what is done, and where
    "clean": ("clean", "sink"),
    "hot": ("heat", "microwave"),
    "cold": ("cool", "fridge"),
}
NOTHING = "Nothing happens."


@dataclass(frozen=True, kw_only=True)
class HouseholdTask:
    """`thing` of any copy is wanted at `goal`, in a `state` ("" for any); `stands` is where all copies are at first."""

    thing: str
    state: str
    goal: str
    stands: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """As it is asked."""
        return f"put a {self.state + ' ' if self.state else ''}{self.thing} in the {self.goal}"


@dataclass(frozen=True, kw_only=True)
class Kitchen:
    """All of the state.

    task    the one in hand
    at      where the agent stands; "" before its first way
    holds   the thing in its hand, "" for none
    stands  thing to place, without what is held
    opened  places whose door is open
    states  what was done to things: pairs of thing and state
    steps   actions so far
    """

    task: HouseholdTask
    at: str = ""
    holds: str = ""
    stands: tuple[tuple[str, str], ...]
    opened: frozenset[str] = frozenset()
    states: frozenset[tuple[str, str]] = frozenset()
    steps: int = 0


def household_tasks(count: int, generator: torch.Generator, *, held_out: bool = False) -> list[HouseholdTask]:
    """Drawn tasks, none of them done from the beginning; one in five of all (thing, state, goal) is held out."""
    found: list[HouseholdTask] = []
    while len(found) < count:
        numbers = torch.randint(10**6, (3 + len(THINGS) * len(COPIES),), generator=generator).tolist()
        thing, goal = THINGS[numbers[0] % len(THINGS)], PLACES[numbers[1] % len(PLACES)]
        state = ("", *TREATMENTS)[numbers[2] % (1 + len(TREATMENTS))]
        names = [f"{each} {copy}" for each in THINGS for copy in COPIES]
        stands = tuple((name, PLACES[draw % len(PLACES)]) for name, draw in zip(names, numbers[3:], strict=True))
        task = HouseholdTask(thing=thing, state=state, goal=goal, stands=stands)
        if is_held_out(task) == held_out and not is_done(Kitchen(task=task, stands=stands)):
            found.append(task)
    return found


def is_held_out(task: HouseholdTask) -> bool:
    """Whether tasks with this text are for tests alone; a hash, so that each thing, state and goal is met in both."""
    return crc32(task.text.encode()) % 5 == 0


def is_done(kitchen: Kitchen) -> bool:
    """Whether what the task wants stands where it is wanted."""
    task = kitchen.task
    return any(
        name.split()[0] == task.thing
        and place == task.goal
        and (not task.state or (name, task.state) in kitchen.states)
        for name, place in kitchen.stands
    )


class HouseholdEnv:
    """One task, until it is done or the actions are used up."""

    def __init__(self, *, limit: int = 30) -> None:
        """`limit`: actions, at most."""
        self.limit = limit
        self._kitchen: Kitchen | None = None

    def reset(self, task: HouseholdTask) -> str:
        """The places and the task."""
        self._kitchen = Kitchen(task=task, stands=task.stands)
        return f"There is a {', a '.join(PLACES)}. Your task: {task.text}."

    def step(self, action: str) -> str:
        """What is seen then. Raises RuntimeError once it has ended."""
        if self.ended:
            raise RuntimeError("the task has ended, expected reset first")
        kitchen = self.kitchen
        after, told = _after(kitchen, action) if action in self.admissible() else (kitchen, NOTHING)
        self._kitchen = replace(after, steps=kitchen.steps + 1)
        return told

    def admissible(self) -> tuple[str, ...]:
        """Actions that do something now, in a fixed order."""
        kitchen = self.kitchen
        here, reach = kitchen.at, _reachable(kitchen)
        doors = [f"{'close' if here in kitchen.opened else 'open'} {here}"] if here in CLOSED else []
        hands = [f"put {kitchen.holds}"] if kitchen.holds and reach else []
        if kitchen.holds:
            hands += [f"{verb} {kitchen.holds}" for verb, place in TREATMENTS.values() if place == here]
        elif reach:
            hands += [f"take {name}" for name, place in kitchen.stands if place == here]
        return (*(f"go {place}" for place in PLACES if place != here), *doors, *hands)

    @property
    def kitchen(self) -> Kitchen:
        """The state. Raises RuntimeError before the first reset."""
        if self._kitchen is None:
            raise RuntimeError("there is no task, expected reset first")
        return self._kitchen

    @property
    def success(self) -> bool:
        """Whether the task is done."""
        return is_done(self.kitchen)

    @property
    def ended(self) -> bool:
        """Done, or out of actions."""
        return self.success or self.kitchen.steps >= self.limit

    def snapshot(self) -> Kitchen:
        """All of the state; nothing changes it afterwards."""
        return self.kitchen

    def restore(self, state: Kitchen) -> None:
        """Back to a snapshot, of whatever task."""
        self._kitchen = state


def expert_action(kitchen: Kitchen) -> str:
    """The next action of somebody who knows where everything is: a function of the state alone, so it also mends."""
    task = kitchen.task
    if kitchen.holds and kitchen.holds.split()[0] != task.thing:
        return _approach(kitchen, kitchen.at) or f"put {kitchen.holds}"
    if kitchen.holds:
        if not task.state or (kitchen.holds, task.state) in kitchen.states:
            return _approach(kitchen, task.goal) or f"put {kitchen.holds}"
        verb, place = TREATMENTS[task.state]
        return f"{verb} {kitchen.holds}" if kitchen.at == place else f"go {place}"
    mine = [(name, place) for name, place in kitchen.stands if name.split()[0] == task.thing]
    name, place = min(mine, key=lambda each: _length(kitchen, *each))
    return _approach(kitchen, place) or f"take {name}"


def _length(kitchen: Kitchen, name: str, place: str) -> int:
    """Actions from here with this copy, but for taking it and putting it down."""
    task = kitchen.task
    treated = not task.state or (name, task.state) in kitchen.states
    stops = [kitchen.at, place, *([] if treated else [TREATMENTS[task.state][1]]), task.goal]
    doors = {place, task.goal} & CLOSED - kitchen.opened
    return sum(a != b for a, b in pairwise(stops)) + len(doors) + (not treated)


def _approach(kitchen: Kitchen, place: str) -> str:
    """The action on the way to the place with its door open; "" where that is so."""
    if kitchen.at != place:
        return f"go {place}"
    return "" if _reachable(kitchen) else f"open {place}"


def _reachable(kitchen: Kitchen) -> bool:
    return bool(kitchen.at) and (kitchen.at not in CLOSED or kitchen.at in kitchen.opened)


def _after(kitchen: Kitchen, action: str) -> tuple[Kitchen, str]:
    """The next state and what is seen; the action is admissible."""
    verb, _, name = action.partition(" ")
    if verb == "go":
        after = replace(kitchen, at=name)
        return after, _seen(after)
    if verb in ("open", "close"):
        after = replace(kitchen, opened=kitchen.opened ^ {name})
        return after, _seen(after)
    if verb == "take":
        left = tuple(each for each in kitchen.stands if each[0] != name)
        return replace(kitchen, holds=name, stands=left), f"You hold the {name}."
    if verb == "put":
        stands = tuple(sorted((*kitchen.stands, (name, kitchen.at))))
        return replace(kitchen, holds="", stands=stands), f"You put the {name} in the {kitchen.at}."
    state = next(state for state, (done, _) in TREATMENTS.items() if done == verb)
    # heat and cold undo each other; washing changes neither
    undone = {"hot": "cold", "cold": "hot"}.get(state)
    return replace(kitchen, states=kitchen.states - {(name, undone)} | {(name, state)}), f"The {name} is {state}."


def _seen(kitchen: Kitchen) -> str:
    if not _reachable(kitchen):
        return f"The {kitchen.at} is closed."
    here = [name for name, place in kitchen.stands if place == kitchen.at]
    return f"In the {kitchen.at}: {', '.join(here) or 'nothing'}."
