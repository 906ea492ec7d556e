"""The Panda hand of LIBERO: how the experts steer it, and what they know of its shape. Heights are above the ground."""

from collections.abc import Mapping

import numpy as np

from vla.core.se3 import axis_angle_of_quat, quat_conjugate, quat_from_yaw, quat_mul, rotate, wrap_angle, yaw_of_quat
from vla.core.types import Float

type Truth = Mapping[str, np.ndarray]

GAIN = 3.0 / 0.05  # action per metre of error; a full action moves the controller's goal by 0.05 m
TURN_GAIN = 1.5 / 0.5  # action per radian of error
MAX_TURN = 0.4  # of a full action, so that turning never outruns moving
OPEN, CLOSE = -1.0, 1.0
WIDE = 0.070  # [m] between the fingers: open enough to go around anything that is taken
REACH = 0.028  # [m] from the middle of the finger pads up to the hand, a little less than there is
HAND = np.array([0.032, 0.103])  # [m] half extents of the hand seen from above, across and along the fingers' motion
SPARE = 0.012  # [m] wanted between the hand and things as tall as to be in its way
FLOOR_GAP = 0.010  # [m] lowest height of the pads' middle
HOVER = 0.06  # [m] at least so far above the grasp while not yet over it
HAND_DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # w, x, y, z: the hand points down, its fingers close along the world's y


def gap(truth: Truth) -> float:
    """Between the finger pads [m]; 0.08 when open."""
    return float(truth["gripper_qpos"][0] - truth["gripper_qpos"][1])


def yaw_of_hand(eef_quat: np.ndarray) -> float:
    """How far [rad] a hand that points down is turned about the vertical, from `HAND_DOWN`."""
    return yaw_of_quat(quat_mul(eef_quat, quat_conjugate(HAND_DOWN)))


def tilt_of_hand(eef_quat: np.ndarray) -> float:
    """The angle [rad] between where the hand points and straight down."""
    return float(np.arccos(np.clip(-rotate(eef_quat, np.array([0.0, 0.0, 1.0]))[2], -1.0, 1.0)))


def pointing(yaw: float, heading: np.ndarray, tilt: float) -> np.ndarray:
    """The orientation of a hand turned by `yaw` [rad], then raised from straight down by `tilt` [rad] to point along
    the horizontal unit vector `heading` (2,).
    """
    axis = np.array([heading[1], -heading[0], 0.0])
    raised = np.array([np.cos(tilt / 2), *(np.sin(tilt / 2) * axis)])
    return quat_mul(raised, quat_mul(quat_from_yaw(yaw), HAND_DOWN))


def nearest_yaw(yaw: float, truth: Truth) -> float:
    """Of the two yaws at which the fingers close along the same line, the one within reach and nearest the hand's."""
    present = yaw_of_hand(truth["eef_quat"])
    ways = [way for k in (-1, 0, 1, 2) if abs(way := wrap_angle(yaw) + k * np.pi) < 1.9]
    return min(ways, key=lambda way: abs(way - present) + 0.3 * abs(way))


def toward(
    truth: Truth, goal: np.ndarray, gripper: float, yaw: float = 0.0, orientation: np.ndarray | None = None
) -> Float:
    """An action (7,) towards a position [m]; the hand points down, turned by `yaw` [rad], unless told otherwise."""
    move = np.clip(GAIN * (goal - truth["eef_pos"]), -1.0, 1.0)
    if orientation is None:
        orientation = quat_mul(quat_from_yaw(yaw), HAND_DOWN)
    error = quat_mul(orientation, quat_conjugate(truth["eef_quat"]))
    turn = np.clip(TURN_GAIN * axis_angle_of_quat(error if error[0] >= 0 else -error), -MAX_TURN, MAX_TURN)
    return np.array([*move, *turn, gripper], np.float32)
