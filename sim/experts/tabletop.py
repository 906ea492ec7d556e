"""A scripted expert for every tabletop task: a function of the present state alone.

No counters, no phases, no waiting: whatever noise or a kick does to the arm, the next action is right for the state
that is there. That is what makes its demonstrations worth imitating (a policy sees states, not phases). Every motion is
a funnel: the height that is asked for rises with the horizontal distance to the goal, so that "lift, carry, lower" and
"approach, descend" come out of geometry.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from sim.tabletop import HAND_DOWN, TabletopEnv
from sim.tabletop_scene import CUBE_HALF, FIXTURES, grasp_turn, long_axis
from sim.tabletop_tasks import TABLE_Z, TASKS, At, In, On, Opened, Pressed, TabletopTask
from vla.core.se3 import wrap_angle
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation

type Truth = Mapping[str, np.ndarray]

GAIN = 2.5 / 0.05  # action per metre of error
TURN_GAIN = 1.5 / 0.5  # action per radian of error
OPEN, CLOSE = -1.0, 1.0
HOVER = 0.11  # [m] above the goal on the way to it
WIDE = 0.07  # [m] between the fingers: open
NARROW = 0.02  # [m] closed on nothing


class TabletopExpert:
    """Implements `vla.core.protocols.Policy` on privileged state; looks at no camera."""

    cameras: tuple[str, ...] = ()
    horizon = 1

    def __init__(self, spec: Embodiment) -> None:
        self.spec = spec
        self._tasks: Mapping[str, tuple[TabletopTask, ...]] = {
            instruction: tuple(t for t in TASKS.values() if t.instruction == instruction)
            for instruction in {t.instruction for t in TASKS.values()}
        }

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return [
            ActionChunk(actions_HA=self._action(o)[None], start_s=o.time_s, dt_s=self.spec.dt_s) for o in observations
        ]

    def _action(self, observation: Observation) -> Float:
        (task,) = self._tasks[observation.instruction]
        truth = observation.privileged
        stage = int(truth["stage"])
        if stage == len(task.goals):
            return _toward(truth, truth["eef_pos"] + [0, 0, 0.05], OPEN)
        goal = task.goals[stage]
        kinds = {thing.name: thing.kind for thing in task.things}
        match goal:
            case On():
                return _pick_and_place(
                    truth, kinds, goal.thing, goal.support, release=goal.height + 0.004, radius=0.012
                )
            case In():
                return _pick_and_place(truth, kinds, goal.thing, goal.container, release=0.075, radius=0.03)
            case At():
                return _push(truth, goal.thing, goal.zone)
            case Opened() | Pressed():
                movable = [name for name, kind in kinds.items() if kind not in FIXTURES]
                if _between_fingers(truth, movable):
                    return _toward(truth, truth["eef_pos"] + [0, 0, 0.05], OPEN)
                return _pull_drawer(truth) if isinstance(goal, Opened) else _press(truth)


def _toward(truth: Truth, target: np.ndarray, gripper: float, yaw: float = 0.0, speed: float = 1.0) -> Float:
    """An action (7,) towards a position [m] with the hand upright and turned by `yaw` [rad]."""
    move = GAIN * (target - truth["eef_pos"])
    move *= min(1.0, speed / max(float(np.linalg.norm(move)), 1e-9))
    turn = np.clip(TURN_GAIN * _turn_to(truth["eef_mat"], yaw), -0.6, 0.6)
    return np.array([*move, *turn, gripper], np.float32)


def _turn_to(eef_mat: np.ndarray, yaw: float) -> np.ndarray:
    """Rotation vector [rad], world frame, to the hand pointing down and turned by `yaw`; exact for small errors."""
    c, s = np.cos(yaw), np.sin(yaw)
    desired = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ HAND_DOWN
    return 0.5 * np.cross(eef_mat, desired, axis=0).sum(axis=1)


def _grasp_yaw(truth: Truth, thing: str, kind: str) -> float:
    """The hand's yaw [rad] at which the fingers close across a thing; 0 where any will do."""
    if long_axis(truth[f"{thing}_quat"], kind) is None:
        return 0.0
    current = _yaw_of_hand(truth)
    return wrap_angle(current + grasp_turn(truth[f"{thing}_quat"], kind, current))


def _between_fingers(truth: Truth, things: Sequence[str]) -> bool:
    """Whether closing the hand here would take something along."""
    return any(
        truth[f"{thing}_held"] or np.linalg.norm(truth[f"{thing}_pos"] - truth["eef_pos"]) < 0.045 for thing in things
    )


def _pick_and_place(
    truth: Truth, kinds: Mapping[str, str], thing: str, support: str, *, release: float, radius: float
) -> Float:
    """Brings `thing` over `support` and lets go at `release` [m] above the support's origin."""
    eef, pos = truth["eef_pos"], truth[f"{thing}_pos"]
    goal = truth[f"{support}_pos"] + [0, 0, release]
    yaw = _grasp_yaw(truth, thing, kinds[thing])
    off_goal = float(np.hypot(*(goal - pos)[:2]))
    grip = pos + [0, 0, _grip_height(kinds[thing])]
    reach = 0.025 if truth["opening"] < WIDE else 0.014  # once the fingers move, noise does not open them again
    at_grip = np.hypot(*(grip - eef)[:2]) < reach and abs(grip[2] - eef[2]) < reach
    held = bool(truth[f"{thing}_held"]) and np.linalg.norm(grip - eef) < 0.05

    if off_goal < radius and pos[2] < goal[2] + 0.008:  # over the support and low: let go, then leave
        up = 0.06 if truth["opening"] > WIDE else 0.0
        return _toward(truth, eef + [0, 0, up], OPEN, _yaw_of_hand(truth))
    if held:
        return _carry(truth, pos, goal, off_goal, radius)
    if at_grip:
        return _toward(truth, grip, CLOSE, yaw)
    return _approach(truth, grip, yaw)


def _grip_height(kind: str) -> float:
    """Where the finger tips close, relative to the thing's origin [m]."""
    return {"can": 0.015}.get(kind, 0.0)


def _yaw_of_hand(truth: Truth) -> float:
    mat = truth["eef_mat"]
    return float(np.arctan2(mat[1, 1], mat[0, 1]))


def _approach(truth: Truth, grip: np.ndarray, yaw: float) -> Float:
    """Above the grasp first, fingers open, then down."""
    eef = truth["eef_pos"]
    off = float(np.hypot(*(grip - eef)[:2])) + 0.06 * abs(wrap_angle(yaw - _yaw_of_hand(truth)))
    height = grip[2] + min(HOVER, 5.0 * max(off - 0.008, 0.0))
    if truth["opening"] < WIDE and height < eef[2] + 0.02:
        height = max(height, grip[2] + 0.05)  # open before going down over the thing
    target = np.array([*grip[:2], height])
    if eef[2] < height - 0.04:  # too low to travel: rise first
        target[:2] = eef[:2] + 0.2 * (grip - eef)[:2]
    return _toward(truth, target, OPEN, yaw)


def _carry(truth: Truth, pos: np.ndarray, goal: np.ndarray, off_goal: float, radius: float) -> Float:
    """Lift, carry, lower: the thing's own position is what is steered."""
    height = goal[2] + min(HOVER, 3.0 * max(off_goal - radius * 0.7, 0.0))
    target = np.array([*goal[:2], height])
    if pos[2] < height - 0.04:
        target[:2] = pos[:2] + 0.15 * (goal - pos)[:2]
    return _toward(truth, truth["eef_pos"] + target - pos, CLOSE, _yaw_of_hand(truth) * 0.9)


def _push(truth: Truth, thing: str, zone: str) -> Float:
    """Pushes `thing` along the table to `zone` with closed fingers from behind."""
    eef, pos, goal = truth["eef_pos"], truth[f"{thing}_pos"], truth[f"{zone}_pos"]
    away = goal[:2] - pos[:2]
    direction = away / max(float(np.linalg.norm(away)), 1e-6)
    offset = eef[:2] - pos[:2]
    along, across = float(offset @ direction), offset - (offset @ direction) * direction
    low = TABLE_Z + CUBE_HALF
    behind = pos[:2] - 0.06 * direction
    if along < -0.02 and np.linalg.norm(across) < 0.015 and eef[2] < low + 0.03:
        target = np.array([*(pos[:2] - 0.01 * direction), low])  # through the cube, back onto its centre line
        return _toward(truth, target, CLOSE, speed=0.6)
    off = float(np.hypot(*(behind - eef[:2])))
    height = low + min(HOVER, 5.0 * max(off - 0.012, 0.0))
    target = np.array([*behind, height])
    if eef[2] < height - 0.04:
        target[:2] = eef[:2]
    return _toward(truth, target, CLOSE)


def _pull_drawer(truth: Truth) -> Float:
    """Closed fingers into the loop of the handle, then towards the robot."""
    eef = truth["eef_pos"]
    loop = truth["cabinet_pos"] + [-0.102 - float(truth["drawer_m"]), 0.0, 0.042]
    inside = eef[2] < loop[2] + 0.022 and abs(eef[1] - loop[1]) < 0.03 and abs(eef[0] - loop[0]) < 0.03
    if inside:
        return _toward(truth, loop + [-0.05, 0, 0], CLOSE, speed=0.8)
    off = float(np.hypot(*(loop - eef)[:2]))
    height = loop[2] + min(HOVER, 5.0 * max(off - 0.008, 0.0)) + (0.05 if truth["opening"] > NARROW + 0.01 else 0.0)
    target = np.array([*loop[:2], height])
    if eef[2] < height - 0.04:
        target[:2] = eef[:2]
    return _toward(truth, target, CLOSE)


def _press(truth: Truth) -> Float:
    """Closed fingers onto the button's cap, then down."""
    eef, cap = truth["eef_pos"], truth["button_pos"] + [0, 0, 0.048]
    off = float(np.hypot(*(cap - eef)[:2]))
    down = -0.05 if off < 0.022 else 0.02
    height = cap[2] + down + min(HOVER, 5.0 * max(off - 0.012, 0.0))
    target = np.array([*cap[:2], height])
    if eef[2] < height - 0.04:
        target[:2] = eef[:2]
    return _toward(truth, target, CLOSE)


def expert(env: TabletopEnv) -> TabletopExpert:
    """The expert for an environment of this suite."""
    return TabletopExpert(env.spec)
