"""A scripted expert for libero_object, "pick up the X and place it in the basket": a function of the state alone.

No counters, no hidden phase, no waiting: whatever noise or a kick does to the arm or the object, the next action is
right for the state that is there. Approach and descent are one funnel (the height asked for rises with the distance to
the grasp), lifting and carrying another one. Objects may lie anywhere on the floor, turned or tipped over.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.libero import LiberoEnv
from vla.core.errors import GrasplineError, unknown_name
from vla.core.se3 import axis_angle_of_quat, quat_conjugate, quat_from_yaw, quat_mul, rotate, wrap_angle, yaw_of_quat
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation

type Truth = Mapping[str, np.ndarray]

GAIN = 3.0 / 0.05  # action per metre of error; a full action moves the controller's goal by 0.05 m
TURN_GAIN = 1.5 / 0.5  # action per radian of error
MAX_TURN = 0.4  # of a full action, so that turning never outruns moving
OPEN, CLOSE = -1.0, 1.0
WIDE = 0.070  # [m] between the fingers: open enough to go around anything in the table below
REACH = 0.028  # [m] from the middle of the finger pads up to the hand, a little less than there is
HAND = np.array([0.032, 0.103])  # [m] half extents of the hand seen from above, across and along the fingers' motion
SPARE = 0.012  # [m] wanted between the hand and things as tall as to be in its way
FLOOR_GAP = 0.010  # [m] lowest height of the pads' middle
CRUISE = 0.17  # [m] height of the pads on the way to an object: over the tops of the others
HOVER = 0.06  # [m] at least so far above the grasp while not yet over it
RIM = 0.14  # [m] height of the basket's walls
CLEARANCE = 0.03  # [m] between the rim and what is carried over it
OVER = 0.025  # [m] from the basket's centre: let go
INSIDE = 0.05  # [m] from the basket's centre, along each axis: it will fall or lie in the basket
HAND_DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # w, x, y, z: the hand points down, its fingers close along the world's y
_INSTRUCTION = re.compile(r"pick up the (.+) and place it in the basket")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An object as it stands or lies in LIBERO's initial states.

    quat    (w, x, y, z)                its orientation there
    size    (x, y, z) [m]               half extents of its collision geometry there, in world axes
    grasp   [m]                         where to take it, above its origin
    neck    (x, y) [m]                  half extents there, when it is thinner there
    """

    quat: tuple[float, float, float, float]
    size: tuple[float, float, float]
    grasp: float = 0.0
    neck: tuple[float, float] | None = None


_H = float(np.sqrt(0.5))
_FLAT, _CAN, _BOTTLE, _SAUCE = (0.0, 0.0, 0.0, 1.0), (0.0, 0.0, _H, _H), (0.5, 0.5, 0.5, 0.5), (_H, 0.0, 0.0, _H)
# Half extents from the collision boxes of LIBERO's assets. Tall things are taken near the top: the palm is in the way.
SHAPES = {
    "alphabet_soup": Shape(quat=_CAN, size=(0.031, 0.031, 0.038), grasp=0.006),
    "cream_cheese": Shape(quat=_FLAT, size=(0.041, 0.021, 0.009)),
    "salad_dressing": Shape(quat=_BOTTLE, size=(0.018, 0.026, 0.073), grasp=0.050, neck=(0.016, 0.016)),
    "bbq_sauce": Shape(quat=_SAUCE, size=(0.015, 0.023, 0.055), grasp=0.022, neck=(0.015, 0.018)),
    "ketchup": Shape(quat=_BOTTLE, size=(0.018, 0.028, 0.073), grasp=0.050, neck=(0.018, 0.017)),
    "tomato_sauce": Shape(quat=_CAN, size=(0.031, 0.031, 0.038), grasp=0.006),
    "butter": Shape(quat=_FLAT, size=(0.038, 0.020, 0.009)),
    "milk": Shape(quat=_BOTTLE, size=(0.026, 0.026, 0.070), grasp=0.028),
    "chocolate_pudding": Shape(quat=_FLAT, size=(0.040, 0.023, 0.014)),
    "orange_juice": Shape(quat=_BOTTLE, size=(0.026, 0.026, 0.070), grasp=0.028),
}


@dataclass(frozen=True, kw_only=True)
class _Pose:
    """A way to take an object: the hand's place (2,) [m] and yaw [rad], and what speaks against it."""

    xy: np.ndarray
    yaw: float
    worse: float


class LiberoObjectExpert:
    """Implements `vla.core.protocols.Policy` on privileged state; looks at no camera."""

    cameras: tuple[str, ...] = ()
    horizon = 1

    def __init__(self, spec: Embodiment) -> None:
        self.spec = spec

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One action for each observation; `seeds` change nothing.

        Raises:
            UnknownNameError: an instruction that is not one of libero_object.
        """
        return [ActionChunk(actions_HA=_action(o)[None], start_s=o.time_s, dt_s=self.spec.dt_s) for o in observations]


def _action(observation: Observation) -> Float:
    target = _target(observation.instruction)
    truth = observation.privileged
    eef, thing, basket = truth["eef_pos"], truth[f"{target}_1_pos"], truth["basket_1_pos"]
    held = bool(truth[f"grasp_{target}_1"])
    if truth["success"] or _inside(thing, basket):
        # Let go; rise only when the fingers are off, so that nothing is pulled out again.
        rise = 0.0 if held else 0.06
        return _toward(truth, np.array([basket[0], basket[1], eef[2] + rise]), OPEN)
    if held:
        return _carry(truth, SHAPES[target], thing, basket)
    return _grasp(truth, target)


def _target(instruction: str) -> str:
    match = _INSTRUCTION.fullmatch(instruction)
    name = match[1].replace(" ", "_") if match else instruction
    if name not in SHAPES:
        raise unknown_name("object to pick", name, SHAPES)
    return name


def _inside(thing: np.ndarray, basket: np.ndarray) -> bool:
    """In the basket or about to fall into it."""
    away = np.abs(thing[:2] - basket[:2])
    return bool(away.max() < (INSIDE if thing[2] < RIM else OVER))


def _carry(truth: Truth, shape: Shape, thing: np.ndarray, basket: np.ndarray) -> Float:
    """Up, and towards the basket as far as the height allows: off the floor first, over the rim near the basket."""
    eef = truth["eef_pos"]
    hanging = eef[2] - thing[2] + shape.size[2]  # from the pads down to the lowest point
    height = RIM + CLEARANCE + hanging
    goal = np.array([*(basket[:2] + eef[:2] - thing[:2]), height])
    missing = height - eef[2]
    away = float(np.linalg.norm(goal[:2] - eef[:2]))
    lifted = thing[2] - shape.size[2]
    over_rim = 1.0 - (missing - max(0.0, away - 0.16)) / 0.05
    allowed = np.clip(min(over_rim, lifted / 0.04), 0.0, 1.0)
    goal[:2] = eef[:2] + allowed * (goal[:2] - eef[:2])
    return _toward(truth, goal, CLOSE)


def _grasp(truth: Truth, target: str) -> Float:
    """Over the object, down around it, close."""
    eef, gap = truth["eef_pos"], float(truth["gripper_qpos"][0] - truth["gripper_qpos"][1])
    point, yaw, thickness = _grasp_pose(truth, target)
    aside = float(np.linalg.norm(eef[:2] - point[:2]))
    above = float(eef[2] - point[2])
    turned = abs(wrap_angle(yaw_of_hand(truth["eef_quat"]) - yaw))
    closing = gap < WIDE
    slack = 2.0 if closing else 1.0  # once the fingers close they push the object and the hand about
    around = aside < 0.012 * slack and abs(above) < 0.012 * slack and turned < 0.15 * slack
    if around and gap > 2 * thickness - 0.012:
        return _toward(truth, point, CLOSE, yaw)
    if gap < WIDE and above < 0.05:
        point = np.array([*eef[:2], point[2] + HOVER])  # closed beside it: up before anything is swept away
        return _toward(truth, point, OPEN, yaw)
    funnel = 4.0 * max(0.0, aside - 0.008) + 0.3 * max(0.0, turned - 0.1)
    hover = min(funnel, max(HOVER, CRUISE - point[2]))
    return _toward(truth, point + np.array([0.0, 0.0, hover]), OPEN, yaw)


def _grasp_pose(truth: Truth, target: str) -> tuple[np.ndarray, float, float]:
    """Where the pads' middle goes, the hand's yaw [rad], and half the thickness [m] between the fingers.

    Of the poses that fit the object, the one with most room for the hand, else the least turn.
    """
    shape, thing, hand_yaw = SHAPES[target], truth[f"{target}_1_pos"], yaw_of_hand(truth["eef_quat"])
    turn = quat_mul(truth[f"{target}_1_quat"], quat_conjugate(np.array(shape.quat)))
    axes = np.array([rotate(turn, axis) for axis in np.eye(3)])  # rows: the box's axes in the world
    up = int(np.argmax(np.abs(axes[:, 2])))
    standing = up == 2 and axes[2, 2] > 0
    half = (*(shape.neck or shape.size[:2]), shape.size[2]) if standing else shape.size
    height = thing[2] + (shape.grasp if standing else max(0.0, half[up] - REACH))
    height = max(height, FLOOR_GAP)
    xy = thing[:2] + (axes[2, :2] * shape.grasp if standing else 0.0)
    # The fingers close across the narrow side; things about as wide as deep may be taken either way.
    first, second = sorted({0, 1, 2} - {up}, key=lambda i: half[i])
    across = [first, second] if half[second] - half[first] < 0.006 else [first]
    yaws = [np.arctan2(-axes[i, 0], axes[i, 1]) + k * np.pi for i in across for k in (-1, 0, 1)]
    long = len(across) == 1  # then the pads may also take it off its middle, or at a slant
    slide = max(0.0, half[second] - 0.016) if long else 0.0
    poses = [
        _Pose(xy=xy + shift * np.array([np.cos(yaw), np.sin(yaw)]), yaw=yaw, worse=0.2 * abs(turn) + 2.0 * abs(shift))
        for across_yaw in yaws
        for turn in ((-0.4, -0.2, 0.0, 0.2, 0.4) if long else (0.0,))
        for shift in (-slide, 0.0, slide)
        if abs(yaw := across_yaw + turn) < 1.9
    ]
    tall = [(centre, radius) for centre, top, radius in _others(truth, target) if top > height + REACH]
    best = min(poses, key=lambda p: 8.0 * _crowding(p, tall) + p.worse + 0.1 * abs(p.yaw - hand_yaw))
    return np.array([*best.xy, height]), best.yaw, half[first]


def _others(truth: Truth, target: str) -> list[tuple[np.ndarray, float, float]]:
    """Everything but the target: centre (2,), height of its top, radius around it [m]."""
    found = [(truth["basket_1_pos"][:2], RIM, 0.09)]
    for name, shape in SHAPES.items():
        if name != target and f"{name}_1_pos" in truth:
            place = truth[f"{name}_1_pos"]
            found.append((place[:2], place[2] + shape.size[2], max(shape.size[:2])))
    return found


def _crowding(pose: _Pose, tall: list[tuple[np.ndarray, float]]) -> float:
    """How much room [m] the hand lacks, summed over the things in its way."""
    c, s = np.cos(pose.yaw), np.sin(pose.yaw)
    lacking = 0.0
    for centre, radius in tall:
        x, y = centre - pose.xy
        gap = np.maximum(np.abs([c * x + s * y, c * y - s * x]) - HAND, 0.0)
        lacking += max(0.0, radius + SPARE - float(np.hypot(*gap)))
    return lacking


def yaw_of_hand(eef_quat: np.ndarray) -> float:
    """How far [rad] a hand that points down is turned about the vertical, from `HAND_DOWN`."""
    return yaw_of_quat(quat_mul(eef_quat, quat_conjugate(HAND_DOWN)))


def _toward(truth: Truth, goal: np.ndarray, gripper: float, yaw: float = 0.0) -> Float:
    """An action (7,) towards a position [m] with the hand pointing down, turned by `yaw` [rad]."""
    move = np.clip(GAIN * (goal - truth["eef_pos"]), -1.0, 1.0)
    error = quat_mul(quat_mul(quat_from_yaw(yaw), HAND_DOWN), quat_conjugate(truth["eef_quat"]))
    turn = np.clip(TURN_GAIN * axis_angle_of_quat(error if error[0] >= 0 else -error), -MAX_TURN, MAX_TURN)
    return np.array([*move, *turn, gripper], np.float32)


def expert(env: LiberoEnv) -> LiberoObjectExpert:
    """The expert for an environment of this suite. Raises GrasplineError for suites other than libero_object."""
    if env.suite != "libero_object":
        raise GrasplineError(f"suite '{env.suite}' has no scripted expert; libero_object has one")
    return LiberoObjectExpert(env.spec)
