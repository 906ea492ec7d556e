"""The twenty tasks of the built-in suite, as data: things, where they may lie, and goals as predicates over the state.

Four families of five, after LIBERO's: *spatial* (identical objects told apart by where they are), *object* (which
object), *goal* (one scene, several goals), *long* (two goals in order). Unlike LIBERO's, placements are wide: over the
fifty fixed states every object's position spans at least 15 x 15 cm and its yaw 60 degrees, so a policy cannot memorise
places.

World frame: x away from the robot, y to the robot's left, z up [m]; the table's top is at z = 0.8.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TABLE_Z = 0.8
YAW = (-np.radians(40.0), np.radians(40.0))
STILL = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object or a fixture and the box [m] in which its centre may start."""

    name: str
    kind: str
    x: tuple[float, float]
    y: tuple[float, float]
    yaw: tuple[float, float] = YAW
    beside: str | None = None  # starts next to that thing instead of anywhere in the box
    apart_from: str | None = None  # keeps far from that thing, so that "beside" has one meaning


@dataclass(frozen=True)
class State:
    """What predicates read: positions (3,) by name, what the gripper touches, how far fixtures have moved [m]."""

    position: Mapping[str, np.ndarray]
    touched: frozenset[str]
    drawer_m: float
    button_m: float


@dataclass(frozen=True)
class On:
    """`thing` lies on `support` (a plate or another cube) and has been let go."""

    thing: str
    support: str
    radius: float = 0.05  # [m] of the centres, seen from above
    height: float = 0.028  # [m] of the centres when it lies there

    def __call__(self, state: State) -> bool:
        offset = state.position[self.thing] - state.position[self.support]
        return bool(
            np.hypot(*offset[:2]) < self.radius
            and abs(offset[2] - self.height) < 0.012
            and self.thing not in state.touched
        )


@dataclass(frozen=True)
class In:
    """The centre of `thing` is within the walls of `container`."""

    thing: str
    container: str

    def __call__(self, state: State) -> bool:
        offset = state.position[self.thing] - state.position[self.container]
        return bool(np.abs(offset[:2]).max() < 0.075 and offset[2] < 0.055)


@dataclass(frozen=True)
class At:
    """`thing` stands on the marked `zone`."""

    thing: str
    zone: str

    def __call__(self, state: State) -> bool:
        offset = state.position[self.thing] - state.position[self.zone]
        return bool(np.abs(offset[:2]).max() < 0.045 and offset[2] < 0.035)


@dataclass(frozen=True)
class Opened:
    """The drawer is out by 8 cm or more."""

    thing: str = "drawer"

    def __call__(self, state: State) -> bool:
        return state.drawer_m > 0.08


@dataclass(frozen=True)
class Pressed:
    """The button is down by 8 mm or more."""

    thing: str = "button"

    def __call__(self, state: State) -> bool:
        return state.button_m < -0.008


type Goal = On | In | At | Opened | Pressed


@dataclass(frozen=True, kw_only=True)
class TabletopTask:
    """An instruction, the things on the table, and the goals that must come true in this order."""

    instruction: str
    things: tuple[Thing, ...]
    goals: tuple[Goal, ...]
    horizon: int = 200


def _spatial_sides() -> tuple[Thing, ...]:
    return (
        Thing(name="plate", kind="plate", x=(0.13, 0.17), y=(-0.05, 0.05), yaw=STILL),
        Thing(name="cube_left", kind="blue_cube", x=(-0.18, 0.03), y=(0.04, 0.20)),
        Thing(name="cube_right", kind="blue_cube", x=(-0.18, 0.03), y=(-0.20, -0.04)),
    )


def _spatial_depths() -> tuple[Thing, ...]:
    return (
        Thing(name="plate", kind="plate", x=(-0.06, 0.04), y=(0.20, 0.25), yaw=STILL),
        Thing(name="cube_near", kind="blue_cube", x=(-0.20, -0.04), y=(-0.20, 0.05)),
        Thing(name="cube_far", kind="blue_cube", x=(0.02, 0.18), y=(-0.20, 0.05)),
    )


def _spatial_beside() -> tuple[Thing, ...]:
    return (
        Thing(name="plate", kind="plate", x=(-0.06, 0.04), y=(0.20, 0.25), yaw=STILL),
        Thing(name="cube_beside", kind="blue_cube", x=(-0.16, 0.08), y=(-0.20, 0.02)),
        Thing(name="milk", kind="milk", x=(-0.22, 0.14), y=(-0.28, 0.06), beside="cube_beside"),
        Thing(name="cube_alone", kind="blue_cube", x=(-0.20, 0.14), y=(-0.28, 0.06), apart_from="milk"),
    )


def _pantry() -> tuple[Thing, ...]:
    x, y = (-0.18, 0.12), (-0.26, 0.06)
    return (
        Thing(name="bin", kind="bin", x=(-0.06, 0.04), y=(0.20, 0.25), yaw=STILL),
        Thing(name="milk", kind="milk", x=x, y=y),
        Thing(name="lemon", kind="lemon", x=x, y=y),
        Thing(name="bread", kind="bread", x=x, y=y),
        Thing(name="can", kind="can", x=x, y=y, yaw=(-np.pi, np.pi)),
        Thing(name="cube", kind="blue_cube", x=x, y=y),
    )


def _workbench() -> tuple[Thing, ...]:
    x, y = (-0.17, 0.03), (-0.10, 0.12)
    return (
        Thing(name="plate", kind="plate", x=(-0.12, 0.0), y=(0.22, 0.26), yaw=STILL),
        Thing(name="zone", kind="zone", x=(0.14, 0.18), y=(-0.02, 0.06), yaw=STILL),
        Thing(name="cabinet", kind="cabinet", x=(0.18, 0.22), y=(-0.27, -0.24), yaw=STILL),
        Thing(name="button", kind="button", x=(0.13, 0.19), y=(0.20, 0.26), yaw=STILL),
        Thing(name="red_cube", kind="red_cube", x=x, y=y),
        Thing(name="green_cube", kind="green_cube", x=x, y=y),
    )


def _stacked(top: str, below: str) -> On:
    return On(top, below, radius=0.025, height=0.044)


def _task(instruction: str, things: tuple[Thing, ...], *goals: Goal) -> TabletopTask:
    return TabletopTask(instruction=instruction, things=things, goals=goals, horizon=200 * len(goals))


TASKS: Mapping[str, TabletopTask] = {
    "spatial_left": _task("put the cube at the robot's left on the plate", _spatial_sides(), On("cube_left", "plate")),
    "spatial_right": _task(
        "put the cube at the robot's right on the plate", _spatial_sides(), On("cube_right", "plate")
    ),
    "spatial_near": _task("put the nearest cube on the plate", _spatial_depths(), On("cube_near", "plate")),
    "spatial_far": _task("put the farthest cube on the plate", _spatial_depths(), On("cube_far", "plate")),
    "spatial_beside": _task(
        "put the cube next to the milk on the plate", _spatial_beside(), On("cube_beside", "plate")
    ),
    "object_milk": _task("put the milk in the bin", _pantry(), In("milk", "bin")),
    "object_lemon": _task("put the lemon in the bin", _pantry(), In("lemon", "bin")),
    "object_bread": _task("put the bread in the bin", _pantry(), In("bread", "bin")),
    "object_can": _task("put the can in the bin", _pantry(), In("can", "bin")),
    "object_cube": _task("put the cube in the bin", _pantry(), In("cube", "bin")),
    "goal_place": _task("put the red cube on the plate", _workbench(), On("red_cube", "plate")),
    "goal_stack": _task("stack the red cube on the green cube", _workbench(), _stacked("red_cube", "green_cube")),
    "goal_push": _task("push the red cube onto the yellow square", _workbench(), At("red_cube", "zone")),
    "goal_open": _task("open the drawer", _workbench(), Opened()),
    "goal_press": _task("press the button", _workbench(), Pressed()),
    "long_place_press": _task(
        "put the red cube on the plate, then press the button", _workbench(), On("red_cube", "plate"), Pressed()
    ),
    "long_open_place": _task(
        "open the drawer, then put the green cube on the plate", _workbench(), Opened(), On("green_cube", "plate")
    ),
    "long_stack_press": _task(
        "stack the red cube on the green cube, then press the button",
        _workbench(),
        _stacked("red_cube", "green_cube"),
        Pressed(),
    ),
    "long_push_open": _task(
        "push the red cube onto the yellow square, then open the drawer", _workbench(), At("red_cube", "zone"), Opened()
    ),
    "long_place_stack": _task(
        "put the green cube on the plate, then stack the red cube on the green cube",
        _workbench(),
        On("green_cube", "plate"),
        _stacked("red_cube", "green_cube"),
    ),
}
