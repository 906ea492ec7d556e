"""A scripted expert for LIBERO's tasks, driven by the predicates of their goals: a function of the state alone.

No counters, no hidden phase, no waiting: whatever noise or a kick does to the arm or an object, the next action is
right for the state that is there. A task of several stages is its first predicate that does not hold yet.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.experts.libero_fixtures import at_handle, let_go, opened, pull_drawer, push_door, push_drawer, turn_knob
from sim.experts.libero_hand import OPEN, WIDE, Truth, gap, tilt_of_hand, toward, yaw_of_hand
from sim.experts.libero_obstacles import kind_of
from sim.experts.libero_places import in_the_way, put, put_aside
from sim.libero import LiberoEnv
from sim.libero_setup import bddl_file
from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Task
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
# Where things stand [m], by the problem that a bddl file names.
GROUND = {
    "libero_floor_manipulation": 0.0,
    "libero_living_room_tabletop_manipulation": 0.437,
    "libero_study_tabletop_manipulation": 0.884,
    "libero_kitchen_tabletop_manipulation": 0.900,
    "libero_tabletop_manipulation": 0.900,
}
UPRIGHT = 0.30  # [m] above the ground, where a hand that leaves a handle has room to turn down


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a task asks for: its predicates in the order of its bddl file, and the height of the ground [m]."""

    predicates: tuple[tuple[str, ...], ...]
    ground: float


def goal_of(text: str) -> Goal:
    """The goal that the text of a bddl file states."""
    predicates = re.findall(r"\(([A-Za-z]+)((?: +\w+)+)\)", text[text.index("(:goal") :])
    problem = re.findall(r"\(problem (\w+)\)", text)[0].lower()
    return Goal(
        predicates=tuple((verb.lower(), *names.split()) for verb, names in predicates),
        ground=GROUND[problem],
    )


def goals_of(suite: str, tasks: Mapping[str, Task]) -> dict[str, Goal]:
    """The goals of a suite's tasks, by instruction."""
    return {task.instruction: goal_of(bddl_file(suite, name).read_text()) for name, task in tasks.items()}


class LiberoExpert:
    """Implements `vla.core.protocols.Policy` on privileged state; looks at no camera."""

    cameras: tuple[str, ...] = ()
    horizon = 1

    def __init__(self, spec: Embodiment, goals: Mapping[str, Goal]) -> None:
        self.spec = spec
        self._goals = goals

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One action for each observation; `seeds` change nothing.

        Raises:
            UnknownNameError: an instruction that is none of the suite's.
        """
        return [
            ActionChunk(actions_HA=self._action(o)[None], start_s=o.time_s, dt_s=self.spec.dt_s) for o in observations
        ]

    def _action(self, observation: Observation) -> Float:
        if observation.instruction not in self._goals:
            raise unknown_name("instruction", observation.instruction, self._goals)
        goal = self._goals[observation.instruction]
        truth = {
            name: value - [0.0, 0.0, goal.ground] if name.endswith("_pos") else value
            for name, value in observation.privileged.items()
        }
        # What is shut comes last, so that something can be put in before.
        stages = sorted(zip(goal.predicates, truth["goal"], strict=True), key=lambda stage: stage[0][0] == "close")
        for predicate, reached in stages:
            if not reached:
                return _pursue(truth, predicate, goal.predicates)
            if predicate[0] in ("on", "in") and _in_hand(truth, predicate[1]):
                if predicate[2].endswith("heating_region") and truth[f"grasp_{predicate[1]}"]:
                    return put(truth, predicate[1], predicate[2], goal.predicates)  # farther in than is asked
                return toward(truth, truth["eef_pos"], OPEN, yaw_of_hand(truth["eef_quat"]))
        rise = 0.06 if gap(truth) > WIDE else 0.0
        return toward(truth, truth["eef_pos"] + [0.0, 0.0, rise], OPEN, yaw_of_hand(truth["eef_quat"]))


def _in_hand(truth: Truth, thing: str) -> bool:
    """Held, or let go with the fingers still too near to rise without taking it along."""
    away = np.linalg.norm(truth["eef_pos"][:2] - truth[f"{thing}_pos"][:2])
    return bool(truth[f"grasp_{thing}"] or (gap(truth) < 0.05 and away < 0.08))


def _pursue(truth: Truth, predicate: tuple[str, ...], goal: tuple[tuple[str, ...], ...]) -> Float:
    """The next action towards a predicate that does not hold."""
    verb, *names = predicate
    if verb in ("on", "in"):
        thing, place = names
        drawer = _drawer(place)
        if drawer and not opened(truth, *drawer):
            if truth[f"grasp_{thing}"] or in_the_way(truth, thing, drawer[0]):
                return put_aside(truth, thing, drawer[0])
            return pull_drawer(truth, *drawer)
        if drawer and at_handle(truth, *drawer):
            return let_go(truth)
        if drawer and not truth[f"grasp_{thing}"] and tilt_of_hand(truth["eef_quat"]) > 0.35:
            lift = min(max(UPRIGHT - float(truth["eef_pos"][2]), 0.0), 0.05)
            return toward(truth, truth["eef_pos"] + [0.0, 0.0, lift], OPEN, yaw_of_hand(truth["eef_quat"]))
        return put(truth, thing, place, goal)
    if verb == "turnon":
        return turn_knob(truth, names[0])
    if kind_of(names[0]) == "microwave":
        return push_door(truth, names[0])
    drawer = _drawer(names[0])
    if drawer is None:
        raise unknown_name("fixture", names[0], ("cabinet drawer", "microwave", "stove"))
    return pull_drawer(truth, *drawer) if verb == "open" else push_drawer(truth, *drawer)


def _drawer(region: str) -> tuple[str, str] | None:
    """Cabinet and level of a drawer's region; None for other places."""
    match = re.fullmatch(r"(\w+_cabinet_\d+)_(top|middle|bottom)_region", region)
    return (match[1], match[2]) if match else None


def expert(env: LiberoEnv) -> LiberoExpert:
    """The expert for an environment's suite. Raises GrasplineError for libero_90."""
    if env.suite not in SUITES:
        raise GrasplineError(f"suite '{env.suite}' has no scripted expert; these have one: {', '.join(SUITES)}")
    return LiberoExpert(env.spec, goals_of(env.suite, env.tasks))
