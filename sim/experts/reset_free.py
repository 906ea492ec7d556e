"""The expert of practice without resets: it carries the thing to either place.

As `tabletop`'s, but a zone is reached by lifting and setting down too: pushing a cube off a plate and across the table
takes half as long again, and often more than an attempt has.
"""

from dataclasses import replace

from sim.experts.tabletop import TabletopExpert
from sim.tabletop import TabletopEnv
from sim.tabletop_scene import CUBE_HALF
from sim.tabletop_tasks import At, Goal, On
from vla.core.spec import Embodiment


class CarryingExpert(TabletopExpert):
    """`TabletopExpert` that sets down where it would push to."""

    def __init__(self, spec: Embodiment) -> None:
        super().__init__(spec)
        self._tasks = {
            words: tuple(replace(task, goals=tuple(_set_down(goal) for goal in task.goals)) for task in tasks)
            for words, tasks in self._tasks.items()
        }


def _set_down(goal: Goal) -> Goal:
    return On(goal.thing, goal.zone, height=CUBE_HALF) if isinstance(goal, At) else goal


def expert(env: TabletopEnv) -> CarryingExpert:
    """The expert for an environment of this suite."""
    return CarryingExpert(env.spec)
