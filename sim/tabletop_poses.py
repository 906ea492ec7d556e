"""The tabletop tasks that move one thing to one place, with its pose as state.

For offline reinforcement learning at a fraction of the cost: whoever acts on the state needs no picture, and what a
chunk was worth does not hang on how well one was understood. Physics, placements, success and action are `tabletop`'s.

Special: what is left to do is given as differences, each twice: as it is, and cut at NEAR_M, since a grasp is decided
within a centimetre and a network that sees half a metre on [-1, 1] hardly notices that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sim.tabletop import NUM_EXTRA_STATES, NUM_TRAIN_STATES, TabletopEnv
from sim.tabletop_scene import grasp_turn
from sim.tabletop_tasks import TABLE_Z, TASKS, At, In, On
from vla.core.errors import unknown_name
from vla.core.spec import Axis
from vla.core.types import Float, Observation

FAR_M, NEAR_M, TURN_RAD = 0.5, 0.05, np.pi / 2
OPENING_M = 0.08

type Truth = Mapping[str, np.ndarray]


def _axes() -> tuple[Axis, ...]:
    def three(name: str, bound: float) -> list[Axis]:
        return [Axis(name=f"{name}_{a}", unit="m", low=-bound, high=bound) for a in "xyz"]

    return (
        *three("eef", FAR_M),
        Axis(name="hand_yaw", unit="rad", low=-TURN_RAD, high=TURN_RAD),
        Axis(name="turn_to_grasp", unit="rad", low=-TURN_RAD, high=TURN_RAD),
        Axis(name="opening", unit="m", low=0.0, high=OPENING_M),
        Axis(name="held", unit="1", low=0.0, high=1.0),
        *three("to_thing", FAR_M),
        *three("near_thing", NEAR_M),
        *three("to_place", FAR_M),
        *three("near_place", NEAR_M),
    )


class TabletopPosesEnv(TabletopEnv):
    """`TabletopEnv` with another state, for its tasks of one goal: On, In or At."""

    def __init__(
        self,
        *,
        image_size: int = 128,
        look: str = "fast",
        train_states: int = NUM_TRAIN_STATES,
        extra_states: int = NUM_EXTRA_STATES,
    ) -> None:
        """Arguments as of TabletopEnv."""
        super().__init__(image_size=image_size, look=look, train_states=train_states, extra_states=extra_states)
        self._moves = {name: move for name, task in TASKS.items() if (move := _move(task.goals)) is not None}
        self.tasks = {name: task for name, task in self.tasks.items() if name in self._moves}
        self.spec = replace(self.spec, name="tabletop_poses", state=_axes())

    def place(self, task: str, init_state: int, seed: int) -> None:
        if task not in self._moves:
            raise unknown_name("task", task, self._moves)
        super().place(task, init_state, seed)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        seen = super().observe(cameras)
        thing, place = self._moves[self._name]
        [kind] = [each.kind for each in TASKS[self._name].things if each.name == thing]
        return replace(seen, state_S=poses(seen.privileged, thing, kind, place))


def poses(truth: Truth, thing: str, kind: str, place: str) -> Float:
    """State (S,) of bringing `thing`, which is of `kind`, to `place`; world frame, the table's centre as origin."""
    eef, mat = truth["eef_pos"], truth["eef_mat"]
    to_thing, to_place = truth[f"{thing}_pos"] - eef, truth[f"{place}_pos"] - truth[f"{thing}_pos"]
    yaw = float(np.arctan2(mat[1, 1], mat[0, 1]))  # the hand's y axis is along x when its yaw is 0
    parts = (
        eef - [0, 0, TABLE_Z],
        [yaw, grasp_turn(truth[f"{thing}_quat"], kind, yaw)],
        [truth["opening"], float(truth[f"{thing}_held"])],
        to_thing,
        np.clip(to_thing, -NEAR_M, NEAR_M),
        to_place,
        np.clip(to_place, -NEAR_M, NEAR_M),
    )
    return np.concatenate(parts).astype(np.float32)


def _move(goals: Sequence[object]) -> tuple[str, str] | None:
    """What is brought where; None for what is not of that kind."""
    match goals:
        case [On(thing=thing, support=place)] | [In(thing=thing, container=place)] | [At(thing=thing, zone=place)]:
            return thing, place
        case _:
            return None
