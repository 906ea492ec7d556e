"""How to take dishes and other things that a hand does not go around: by the rim, a knob, a handle, the neck."""

from dataclasses import dataclass

import numpy as np

from sim.experts.libero_hand import REACH, Truth, gap, nearest_yaw, yaw_of_hand
from sim.experts.libero_motions import Hold
from sim.experts.libero_obstacles import crowding, hand_outline, obstacles
from vla.core.se3 import wrap_angle, yaw_of_quat

INSET = 0.010  # [m] the hand goes so far inside a rim, for room outside; closing pulls the object there
CLOSING = 0.055  # [m] between the fingers
EASY_REACH = 0.62  # [m] from the robot's base; much farther out the arm is straight and hardly steers
TIP = 0.012  # [m] the fingers reach so far below the pads' middle


@dataclass(frozen=True, kw_only=True)
class Rim:
    """A round rim: `centre` (2,) and `radius` [m] in the object's frame, the pads' `height` above its origin [m].

    handle   direction of a handle in the object's frame [rad], not to be taken there; None: there is none
    """

    radius: float
    height: float
    centre: tuple[float, float] = (0.0, 0.0)
    handle: float | None = None
    thickness: float = 0.001


@dataclass(frozen=True, kw_only=True)
class Pinch:
    """A part thin enough to go around: its place (3,) [m] in the object's frame and half its thickness [m].

    across   direction in which the fingers close, in the object's frame [rad]; None: any
    """

    point: tuple[float, float, float]
    thickness: float
    across: float | None = None


GRASPS: dict[str, Rim | Pinch] = {
    "akita_black_bowl": Rim(radius=0.047, height=0.042),
    "porcelain_mug": Rim(centre=(0.015, 0.0), radius=0.041, height=0.096, handle=np.pi),
    "white_yellow_mug": Rim(centre=(-0.018, 0.0), radius=0.044, height=0.092, handle=0.0, thickness=0.004),
    "moka_pot": Pinch(point=(0.0, 0.0, 0.077), thickness=0.005),
    "wine_bottle": Pinch(point=(0.0, 0.0, 0.130), thickness=0.008),
    "black_book": Pinch(point=(0.0, -0.012, 0.118), thickness=0.014, across=0.0),
}
MUG_HANDLE = Pinch(point=(0.064, 0.0, 0.062), thickness=0.009, across=np.pi / 2)


def hold_dish(truth: Truth, name: str, grasp: Rim | Pinch, shift: np.ndarray) -> Hold:
    """The way to take an upright object with most room for the hand here, and where it goes: `shift` (3,) [m] away."""
    place, yaw = truth[f"{name}_pos"], yaw_of_quat(truth[f"{name}_quat"])
    if isinstance(grasp, Pinch):
        across = grasp.across
        way = yaw_of_hand(truth["eef_quat"]) if across is None else nearest_yaw(yaw + across - np.pi / 2, truth)
        way = float(np.clip(way, -0.8, 0.8)) if across is None else way
        return Hold(point=place + _turned(grasp.point, yaw), yaw=way, thickness=grasp.thickness)
    return _hold_rim(truth, name, grasp, place + _turned((*grasp.centre, grasp.height), yaw), shift)


def _hold_rim(truth: Truth, name: str, rim: Rim, centre: np.ndarray, shift: np.ndarray) -> Hold:
    present = [o for o in obstacles(truth, {name}) if o.distance(centre[None, :2])[0] < 0.3]
    angles_B = np.repeat(np.linspace(-np.pi, np.pi, 16, endpoint=False), 2)
    yaws_B = np.array([wrap_angle(a + (k - 0.5) * np.pi) for a in angles_B[::2] for k in (0, 1)])
    outward_B2 = np.stack([np.cos(angles_B), np.sin(angles_B)], axis=1)
    inset = INSET if gap(truth) > CLOSING else 0.0  # fingers that close should meet on the rim
    points_B2 = centre[:2] + (rim.radius - inset) * outward_B2
    fingers_B2 = centre[:2] + (rim.radius + 0.035) * outward_B2
    hands_BN2 = np.stack([hand_outline(point, yaw) for point, yaw in zip(points_B2, yaws_B, strict=True)])
    cost_B = 0.1 * np.abs(yaws_B - yaw_of_hand(truth["eef_quat"])) + 0.1 * np.abs(yaws_B) + 9.0 * (np.abs(yaws_B) > 1.8)
    there_B = np.linalg.norm(points_B2 - truth["eef_pos"][:2], axis=1)
    cost_B += 3.0 * np.minimum(there_B, 0.1)  # a hand that is at one of them stays with it
    if rim.handle is not None:
        handle = yaw_of_quat(truth[f"{name}_quat"]) + rim.handle
        cost_B += 9.0 * (np.abs((angles_B - handle + np.pi) % (2 * np.pi) - np.pi) < 0.8)
    cost_B += 8.0 * crowding(present, fingers_B2[:, None], centre[2] - TIP, room=0.025)
    cost_B += 8.0 * crowding(present, hands_BN2, centre[2] + REACH)
    away = obstacles(truth, {name}) if np.any(shift) else []
    cost_B += 8.0 * crowding(away, hands_BN2 + shift[:2], centre[2] + shift[2] + REACH)
    for there_B2 in (points_B2, points_B2 + shift[:2]):
        far_B = np.linalg.norm(there_B2 - truth["base_pos"][:2], axis=1) - EASY_REACH
        cost_B += 6.0 * np.maximum(0.0, far_B)
    best = int(np.argmin(cost_B))
    return Hold(point=np.array([*points_B2[best], centre[2]]), yaw=float(yaws_B[best]), thickness=rim.thickness)


def _turned(vector: tuple[float, ...], yaw: float) -> np.ndarray:
    """A vector (3,) of an upright object's frame in the world."""
    c, s = np.cos(yaw), np.sin(yaw)
    x, y, z = vector
    return np.array([c * x - s * y, s * x + c * y, z])
