"""Taking and carrying: the two motions that most of LIBERO's tasks are made of, as functions of the present state."""

from dataclasses import dataclass

import numpy as np

from sim.experts.libero_hand import (
    CLOSE,
    HAND,
    HOVER,
    OPEN,
    REACH,
    SPARE,
    WIDE,
    Truth,
    gap,
    tilt_of_hand,
    toward,
    yaw_of_hand,
)
from sim.experts.libero_obstacles import clear_height, obstacles
from vla.core.se3 import wrap_angle
from vla.core.types import Float

OVER_TOPS = 0.035  # [m] between what moves and the tops of what it passes
GENTLE = 0.008  # [m] the last part of the way down is asked for in steps of this size


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A way to take an object: where the pads' middle goes (3,) [m], the hand's yaw [rad], and half the thickness [m]
    between the fingers.
    """

    point: np.ndarray
    yaw: float
    thickness: float


@dataclass(frozen=True, kw_only=True)
class Rest:
    """Where an object's origin (3,) [m] should come to rest, how near it must come [m], below it from its origin
    down to its lowest point [m], and at which yaw [rad] of the hand; None: at any.
    """

    point: np.ndarray
    near: float = 0.015
    below: float = 0.0
    yaw: float | None = None


def take(truth: Truth, hold: Hold, cruise: float) -> Float:
    """Over the object, down around it, close. `cruise` [m]: at most so far above the grasp on the way there."""
    eef, point, yaw = truth["eef_pos"], hold.point, hold.yaw
    aside = float(np.linalg.norm(eef[:2] - point[:2]))
    above = float(eef[2] - point[2])
    turned = max(abs(wrap_angle(yaw_of_hand(truth["eef_quat"]) - yaw)), tilt_of_hand(truth["eef_quat"]))
    closing = gap(truth) < WIDE
    slack = 2.0 if closing else 1.0  # once the fingers close they push the object and the hand about
    around = aside < 0.012 * slack and abs(above) < 0.012 * slack and turned < 0.15 * slack
    if around and gap(truth) > max(0.001, 2 * hold.thickness - 0.012):
        return toward(truth, point, CLOSE, yaw)
    if closing and above < 0.05:
        point = np.array([*eef[:2], point[2] + HOVER])  # closed beside it: up before anything is swept away
        return toward(truth, point, OPEN, yaw)
    funnel = 4.0 * max(0.0, aside - 0.008) + 0.3 * max(0.0, turned - 0.1)
    return toward(truth, point + np.array([0.0, 0.0, min(funnel, cruise)]), OPEN, yaw)


def take_past(truth: Truth, name: str, hold: Hold) -> Float:
    """`take`, over everything that stands in the way."""
    eef, point = truth["eef_pos"], hold.point
    present = obstacles(truth, {name})
    fingers = clear_height(present, eef[:2], point[:2], 0.05) + OVER_TOPS
    palm = clear_height(present, eef[:2], point[:2], HAND[1] + SPARE) + SPARE - REACH
    cruise = max(HOVER, max(fingers, palm) - point[2])
    missing = point[2] + cruise - eef[2]
    if missing > 0.02 and np.linalg.norm(eef[:2] - point[:2]) > 0.03:
        share = float(np.clip(1.0 - missing / 0.05, 0.0, 1.0))
        target = np.array([*(eef[:2] + share * (point[:2] - eef[:2])), point[2] + cruise])
        return toward(truth, target, OPEN, hold.yaw)
    return take(truth, hold, cruise)


def carry(truth: Truth, name: str, rest: Rest, ignored: set[str]) -> Float:
    """Up, over the tops on the way (but those `ignored`), down, and let go where the object shall rest."""
    eef, thing = truth["eef_pos"], truth[f"{name}_pos"]
    yaw = yaw_of_hand(truth["eef_quat"])
    turned = abs(wrap_angle(rest.yaw - yaw)) if rest.yaw is not None else 0.0
    yaw = rest.yaw if rest.yaw is not None else yaw
    away = float(np.linalg.norm(rest.point[:2] - thing[:2]))
    if away < rest.near and thing[2] < rest.point[2] + 0.008:
        return toward(truth, eef, OPEN, yaw)
    tops = clear_height(obstacles(truth, {name, *ignored}), thing[:2], rest.point[:2], 0.06)
    cruise = max(tops + OVER_TOPS + rest.below, rest.point[2] + 0.05)
    funnel = 4.0 * max(0.0, away - 0.6 * rest.near) + 0.2 * max(0.0, turned - 0.1)
    height = min(cruise, rest.point[2] + funnel)
    share = float(np.clip(1.0 - (height - thing[2]) / 0.04, 0.0, 1.0))
    low = thing[2] < rest.point[2] + 0.04
    height = max(height - 0.01, thing[2] - GENTLE) if low and funnel == 0 else height
    goal = np.array([*(thing[:2] + share * (rest.point[:2] - thing[:2])), height])
    return toward(truth, eef + goal - thing, CLOSE, yaw)
