"""Packages of food, as LIBERO's floor and living room have them: how to take them, and how to drop them in a basket.

Approach and descent are one funnel (the height asked for rises with the distance to the grasp), lifting and carrying
another one. Packages may lie anywhere, turned or tipped over. Heights are above the ground.
"""

from dataclasses import dataclass

import numpy as np

from sim.experts.libero_hand import (
    CLOSE,
    FLOOR_GAP,
    HAND,
    HOVER,
    OPEN,
    REACH,
    SPARE,
    Truth,
    toward,
    yaw_of_hand,
)
from sim.experts.libero_motions import Hold, take
from sim.experts.libero_obstacles import kind_of
from vla.core.se3 import quat_conjugate, quat_mul, rotate
from vla.core.types import Float

CRUISE = 0.17  # [m] height of the pads on the way to an object: over the tops of the others
RIM = 0.14  # [m] height of the basket's walls
CLEARANCE = 0.03  # [m] between the rim and what is carried over it
OVER = 0.025  # [m] from the basket's centre: let go
LEFT = 0.15  # [m] a hand so far above what it dropped has given it time to fall
INSIDE = 0.05  # [m] from the basket's centre, along each axis: it will fall or lie in the basket


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


def into_basket(truth: Truth, name: str, held: bool, aside: float) -> Float:
    """Takes a package and drops it in the basket, `aside` [m] of its middle along x, to leave room for another."""
    shape, thing = SHAPES[kind_of(name)], truth[f"{name}_pos"]
    basket = truth["basket_1_pos"] + [aside, 0.0, 0.0]
    astray = not held and truth["eef_pos"][2] > thing[2] + LEFT  # it lies on another one, or leans on the wall
    if _inside(thing, basket) and not astray:
        # Let go; rise only when the fingers are off, so that nothing is pulled out again.
        rise = 0.0 if held else 0.06
        return toward(truth, np.array([basket[0], basket[1], truth["eef_pos"][2] + rise]), OPEN)
    if held:
        return _carry(truth, shape, thing, basket)
    hold = hold_package(truth, name)
    return take(truth, hold, max(HOVER, CRUISE - hold.point[2]))


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
    return toward(truth, goal, CLOSE)


def hold_package(truth: Truth, name: str) -> Hold:
    """Of the poses that fit the package, the one with most room for the hand, else the least turn."""
    shape, thing, hand_yaw = SHAPES[kind_of(name)], truth[f"{name}_pos"], yaw_of_hand(truth["eef_quat"])
    turn = quat_mul(truth[f"{name}_quat"], quat_conjugate(np.array(shape.quat)))
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
    tall = [(centre, radius) for centre, top, radius in _others(truth, name) if top > height + REACH]
    best = min(poses, key=lambda p: 8.0 * _crowding(p, tall) + p.worse + 0.1 * abs(p.yaw - hand_yaw))
    return Hold(point=np.array([*best.xy, height]), yaw=best.yaw, thickness=half[first])


def _others(truth: Truth, target: str) -> list[tuple[np.ndarray, float, float]]:
    """The basket and all packages but the target: centre (2,), height of its top, radius around it [m]."""
    found = [(truth["basket_1_pos"][:2], RIM, 0.09)] if "basket_1_pos" in truth else []
    for kind, shape in SHAPES.items():
        if f"{kind}_1" != target and f"{kind}_1_pos" in truth:
            place = truth[f"{kind}_1_pos"]
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
