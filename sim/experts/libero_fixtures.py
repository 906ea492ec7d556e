"""Drawers, stove knobs and the microwave's door: where to put the hand, which way to move it."""

import numpy as np

from sim.experts.libero_hand import (
    CLOSE,
    HOVER,
    OPEN,
    WIDE,
    Truth,
    gap,
    nearest_yaw,
    pointing,
    tilt_of_hand,
    toward,
)
from sim.experts.libero_obstacles import clear_height, obstacles
from vla.core.se3 import axis_angle_of_quat, quat_conjugate, quat_mul, yaw_of_quat
from vla.core.types import Float

HANDLES = {"top": 0.184, "middle": 0.110, "bottom": 0.041}  # [m] above a cabinet's origin
HANDLE_OUT = 0.102  # [m] in front of a cabinet's origin, drawer closed
PULL_TILT, PUSH_TILT = 1.4, 0.85  # [rad] from straight down
OPENED = -0.105  # [m] slide of a drawer that is open enough to put something in
KNOB_REACH = 0.035  # [m] from a stove knob's axis to where it is pushed


def pull_drawer(truth: Truth, cabinet: str, level: str) -> Float:
    """Takes the bar of a drawer's handle, fingers above and below it, and draws it out."""
    eef, (handle, inward) = truth["eef_pos"], _handle(truth, cabinet, level)
    yaw = nearest_yaw(np.arctan2(inward[1], inward[0]) - np.pi / 2, truth)
    orientation = pointing(yaw, inward, PULL_TILT)
    off = eef - handle
    along = float(off[:2] @ inward)
    aside = float(np.linalg.norm(off - [*(along * inward), 0.0]))
    turned = _between(truth, orientation)
    if truth[f"grasp_{cabinet}"] and gap(truth) < 0.03 and abs(along) < 0.03:
        return toward(truth, handle + [*(-0.06 * inward), 0.0], CLOSE, orientation=orientation)
    slack = 2.0 if gap(truth) < WIDE else 1.0
    if aside < 0.012 * slack and abs(along) < 0.010 * slack and turned < 0.2 * slack and gap(truth) > 0.008:
        return toward(truth, handle, CLOSE, orientation=orientation)
    back = min(0.10, 5.0 * max(0.0, aside - 0.006) + 0.3 * max(0.0, turned - 0.12))
    if gap(truth) < WIDE:
        back = max(back, 0.05)
    return toward(truth, handle - [*(back * inward), 0.0], OPEN, orientation=orientation)


def push_drawer(truth: Truth, cabinet: str, level: str) -> Float:
    """Pushes a drawer in at its handle, with closed fingers, the hand leaning back from the cabinet."""
    handle, inward = _handle(truth, cabinet, level)
    yaw = nearest_yaw(np.arctan2(inward[1], inward[0]), truth)
    orientation = pointing(yaw, inward, PUSH_TILT)
    return _push(truth, handle + [*(-0.012 * inward), 0.005], inward, orientation, cabinet)


def opened(truth: Truth, cabinet: str, level: str) -> bool:
    """Whether a drawer is open enough, and not being drawn out any more."""
    slide = float(truth[f"{cabinet}_{level}_level"])
    return slide < (-0.115 if truth[f"grasp_{cabinet}"] and tilt_of_hand(truth["eef_quat"]) > 0.7 else OPENED)


def turn_knob(truth: Truth, stove: str) -> Float:
    """Pushes one end of the knob's rib around, with closed fingers."""
    angle = float(truth[f"{stove}_button"]) + yaw_of_quat(truth[f"{stove}_quat"])
    rib = np.array([np.cos(angle), np.sin(angle)])
    way = np.array([rib[1], -rib[0]])  # the end towards the robot moves so when the knob is turned on
    contact = truth[f"{stove}_pos"] + [*(-KNOB_REACH * rib - 0.022 * way), 0.034]
    yaw = nearest_yaw(angle - np.pi / 2, truth)
    return _push(truth, contact, way, pointing(yaw, way, 0.0), stove)


def push_door(truth: Truth, microwave: str) -> Float:
    """Swings the microwave's door shut from outside, with closed fingers."""
    angle = float(truth[f"{microwave}_microjoint"]) + yaw_of_quat(truth[f"{microwave}_quat"])
    along, inward = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    contact = truth[f"{microwave}_pos"] + [-0.173, -0.088, 0.12] + [*(0.19 * along - 0.045 * inward), 0.0]
    yaw = nearest_yaw(angle - np.pi / 2, truth)
    return _push(truth, contact, inward, pointing(yaw, inward, 0.0), microwave)


def at_handle(truth: Truth, cabinet: str, level: str) -> bool:
    """Whether a hand that does not point down has a handle between its fingers or just in front of them."""
    handle, _ = _handle(truth, cabinet, level)
    return tilt_of_hand(truth["eef_quat"]) > 0.35 and bool(np.linalg.norm(handle - truth["eef_pos"]) < 0.08)


def let_go(truth: Truth) -> Float:
    """Backs out of a handle along the way the hand came, opening, then rises."""
    back = -axis_of_hand(truth)
    away = truth["eef_pos"] + 0.05 * back * (gap(truth) > 0.03)
    return toward(truth, away, OPEN, orientation=truth["eef_quat"])


def axis_of_hand(truth: Truth) -> np.ndarray:
    """Where the hand points (3,), without its vertical part."""
    w, x, y, z = truth["eef_quat"]
    return np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 0.0])


def _push(truth: Truth, contact: np.ndarray, way: np.ndarray, orientation: np.ndarray, fixture: str) -> Float:
    """Down in front of `contact` (3,), then on along `way` (2,), for as long as it takes."""
    eef = truth["eef_pos"]
    off = eef - contact
    along = float(off[:2] @ way)
    aside = float(np.linalg.norm(off[:2] - along * way))
    turned = _between(truth, orientation)
    closed = gap(truth) < 0.02
    if closed and aside < 0.022 and abs(off[2]) < 0.02 and along < 0.03 and turned < 0.35:
        return toward(truth, contact + [*(0.05 * way), 0.0], CLOSE, orientation=orientation)
    before = contact - [*(0.03 * way), 0.0]
    away = float(np.linalg.norm(eef[:2] - before[:2]))
    tops = clear_height(obstacles(truth, ()), eef[:2], before[:2], 0.05)
    funnel = 4.0 * max(0.0, away - 0.012) + 0.2 * max(0.0, turned - 0.2) + (0.0 if closed else 0.03)
    hover = min(funnel, max(HOVER, tops + 0.04 - before[2]))
    target = before + [0.0, 0.0, hover]
    missing = target[2] - eef[2]
    if missing > 0.02 and away > 0.03:
        share = float(np.clip(1.0 - missing / 0.05, 0.0, 1.0))
        target[:2] = eef[:2] + share * (target[:2] - eef[:2])
    return toward(truth, target, CLOSE, orientation=orientation)


def _handle(truth: Truth, cabinet: str, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a handle's bar is (3,), and the direction (2,) into the cabinet."""
    yaw = yaw_of_quat(truth[f"{cabinet}_quat"])
    inward = np.array([-np.sin(yaw), np.cos(yaw)])
    out = HANDLE_OUT - float(truth[f"{cabinet}_{level}_level"])
    return truth[f"{cabinet}_pos"] + [*(-out * inward), HANDLES[level]], inward


def _between(truth: Truth, orientation: np.ndarray) -> float:
    """The angle [rad] between the hand's orientation and another."""
    error = quat_mul(orientation, quat_conjugate(truth["eef_quat"]))
    return float(np.linalg.norm(axis_angle_of_quat(error if error[0] >= 0 else -error)))
