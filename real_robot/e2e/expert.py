"""A scripted teleoperator for the pick task: waypoints of the hand -> joint targets over time, by inverse kinematics.

Special: it aims where the arm will be, not where it is told to be. A servo is a spring (17.8 N m/rad at half gain), so
a stretched SO-101 hangs a centimetre below its goals; a person corrects that by eye, this one by the model's gravity.
For learning, a slow random offset pushes the arm off the way while it moves freely, and the way without it is kept as
the label (Laskey et al. 2017, arXiv 1703.09327): what to do from there is in the data, how to get there is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mink
import mujoco
import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import lfilter

from real_robot.core.types import ArmSpec, Array
from real_robot.twin.pick_scene import EDGE_M, TRAY_M, Layout, grasp_site
from vla.core.errors import GrasplineError, MissingAssetError

DT_S = 0.02  # of a way
STIFFNESS_NM_RAD = 35.6  # of an STS3215 at the gain of the shop
SPEED_M_S, GRIP_RAD_S, TURN_RAD_S = 0.16, 2.0, 1.5  # highest of each leg
PEAK = 1.875  # of a minimum-jerk leg's speed, in means
OPEN_RAD, SQUEEZE_RAD = 0.9, 0.07  # of the gripper's joint; so far behind the contact its goal is
ABOVE_M = 0.004  # the cube's middle, the fingertips meet it
BESIDE_M = 0.009  # between the fixed jaw and the cube before the jaws close
HOVER_M, CARRY_M, RELEASE_M = 0.08, 0.09, 0.035  # of a gripped cube's middle above the table
NOISE_S = 0.25  # how slowly the offset wanders
ARRIVED_M, SOLVED_RAD = 0.002, 2e-4


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """Where the middle of a gripped cube goes [m], the cube's turn [rad], the gripper's joint [rad].

    free: far from everything, so that an offset does no harm.
    """

    at_m: tuple[float, float, float]
    yaw_rad: float
    grip_rad: float
    free: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """Joint targets (T, J) [rad], `DT_S` apart: as meant, and as they are sent."""

    clean_TJ: Array
    noisy_TJ: Array

    @property
    def seconds(self) -> float:
        return DT_S * (len(self.clean_TJ) - 1)

    def clean(self, t_s: float) -> Array:
        return _at(self.clean_TJ, t_s)

    def noisy(self, t_s: float) -> Array:
        return _at(self.noisy_TJ, t_s)


class Reach:
    """Inverse kinematics of the arm with its jaws pointing down (mink, a quadratic program per step)."""

    def __init__(self, spec: ArmSpec) -> None:
        if spec.mjcf is None:
            raise MissingAssetError(f"{spec.name}: no MJCF model (pip install 'graspline[robot]')")
        self.spec = spec
        model = mujoco.MjSpec.from_file(str(spec.mjcf))
        grasp_site(model)
        self._model = model.compile()
        joints = [self._model.joint(spec.mjcf_joints[name]) for name in spec.names]
        self._q_J = np.array([joint.qposadr[0] for joint in joints])
        self._model.jnt_range[[joint.id for joint in joints]] = np.stack([spec.low_J, spec.high_J], axis=1)
        self._here = mink.Configuration(self._model)
        self._hand = mink.FrameTask("grasp", "site", position_cost=1.0, orientation_cost=0.03, lm_damping=1e-6)
        self._limits = [mink.ConfigurationLimit(self._model)]

    def solve(self, at_m: ArrayLike, yaw_rad: float, from_J: Array, *, steps: int = 40) -> Array:
        """Joints (J,) for a hand at `at_m`, jaws down, near `from_J`; its gripper stays.

        Raises GrasplineError where that cannot be reached.
        """
        at_3 = np.asarray(at_m, np.float64)
        self._hand.set_target(mink.SE3.from_rotation_and_translation(_downwards(yaw_rad), at_3))
        q = self._here.q.copy()
        q[self._q_J] = from_J
        self._here.update(q)
        for _ in range(steps):
            step = mink.solve_ik(self._here, [self._hand], 1.0, "daqp", damping=1e-6, limits=self._limits)
            self._here.integrate_inplace(np.clip(step, -0.2, 0.2), 1.0)
            if np.abs(step).max() < SOLVED_RAD:
                break
        missed_m = np.linalg.norm(self._hand.compute_error(self._here)[:3])
        if missed_m > ARRIVED_M:
            raise GrasplineError(f"the arm cannot reach {np.round(at_3, 3)} m: {1e3 * missed_m:.0f} mm short")
        return self._here.q[self._q_J]

    def hand(self, q_J: Array) -> Array:
        """(3,) where the middle of a gripped cube would be [m]."""
        q = self._here.q.copy()
        q[self._q_J] = q_J
        self._here.update(q)
        return self._here.get_transform_frame_to_world("grasp", "site").translation()

    def sag(self, q_J: Array) -> Array:
        """(J,) how far servos give under the arm's weight here [rad]; to be added to the goals."""
        self.hand(q_J)
        torque = np.zeros(self._model.nv)
        mujoco.mj_rne(self._model, self._here.data, 0, torque)
        return torque[self._q_J] / STIFFNESS_NM_RAD


def waypoints(start: Layout, grip_rad: float) -> list[Waypoint]:
    """The task: over the cube, down, close, up, over the tray, down, open, up. grip_rad: at contact."""
    yaw = start.yaw_rad
    beside = np.array(start.cube_m) - BESIDE_M * _jaw_direction(yaw)[:2]
    (bx, by), (cx, cy), (tx, ty) = beside, start.cube_m, TRAY_M
    low, shut = EDGE_M / 2 + ABOVE_M, grip_rad - SQUEEZE_RAD
    rows = [
        ((bx, by, HOVER_M), yaw, OPEN_RAD, True),
        ((bx, by, low), yaw, OPEN_RAD, False),
        ((cx, cy, low), yaw, shut, False),
        ((cx, cy, CARRY_M), yaw, shut, True),
        ((tx, ty, CARRY_M), 0.0, shut, True),
        ((tx, ty, RELEASE_M), 0.0, shut, False),
        ((tx, ty, RELEASE_M), 0.0, OPEN_RAD, False),
        ((tx, ty, CARRY_M), 0.0, OPEN_RAD, True),
    ]
    return [Waypoint(at_m=at, yaw_rad=turn, grip_rad=grip, free=free) for at, turn, grip, free in rows]


def plan(
    reach: Reach, here_J: Array, points: Sequence[Waypoint], *, rng: np.random.Generator, noise_rad: float = 0.0
) -> Way:
    """The way from `here_J` through the waypoints, each leg from rest to rest with least jerk.

    Args:
        reach: of the arm.
        here_J: (J,) where it is commanded to be.
        points: in order.
        rng: of the offsets.
        noise_rad: standard deviation of the offset of each joint but the gripper, where the hand is free.
    """
    at_3, yaw_rad, q_J = reach.hand(here_J), points[0].yaw_rad, here_J.copy()
    clean, share = [here_J.copy()], [0.0]
    first = reach.solve(points[0].at_m, yaw_rad, here_J, steps=200)  # the first leg may turn the hand: joint by joint
    for place, point in enumerate(points):
        goal_3, from_3, from_yaw, from_grip = np.array(point.at_m), at_3, yaw_rad, float(q_J[-1])
        start_J = q_J.copy()
        for u in _leg(from_3, goal_3, point.yaw_rad - from_yaw, point.grip_rad - from_grip):
            if place == 0:
                q_J = start_J + u * (first - start_J)
            else:
                q_J = reach.solve(from_3 + u * (goal_3 - from_3), from_yaw + u * (point.yaw_rad - from_yaw), q_J)
            q_J[-1] = from_grip + u * (point.grip_rad - from_grip)
            sag_J = reach.sag(q_J)
            sag_J[-1] = 0.0
            clean.append(q_J + (u if place == 0 else 1.0) * sag_J)
            share.append(1.0 if point.free else 0.0)
        at_3, yaw_rad = goal_3, point.yaw_rad
    clean_TJ = np.array(clean)
    return Way(clean_TJ=clean_TJ, noisy_TJ=clean_TJ + noise_rad * _offsets(np.array(share), clean_TJ.shape[1], rng))


def _leg(from_3: Array, to_3: Array, turn_rad: float, grip_rad: float) -> Array:
    """(T,) shares of a minimum-jerk leg, from just after 0 to 1."""
    seconds = max(
        PEAK * float(np.linalg.norm(to_3 - from_3)) / SPEED_M_S,
        PEAK * abs(turn_rad) / TURN_RAD_S,
        PEAK * abs(grip_rad) / GRIP_RAD_S,
        0.2,
    )
    t_T = np.linspace(0.0, 1.0, max(2, round(seconds / DT_S)) + 1)[1:]
    return t_T**3 * (10.0 - 15.0 * t_T + 6.0 * t_T**2)


def _offsets(share_T: Array, joints: int, rng: np.random.Generator) -> Array:
    """(T, J) slow random offsets of standard deviation 1, faded out where `share_T` is 0; none of the gripper."""
    keep = float(np.exp(-DT_S / NOISE_S))
    slow_TJ = rng.standard_normal((len(share_T), joints))
    for _ in range(2):  # twice filtered: no kinks
        slow_TJ = lfilter([1.0 - keep], [1.0, -keep], slow_TJ, axis=0)
    slow_TJ /= (1.0 - keep) ** 2 * np.sqrt((1.0 + keep**2) / (1.0 - keep**2) ** 3)  # what is left of white noise's 1
    slow_TJ[:, -1] = 0.0
    return slow_TJ * _faded(share_T)[:, None]


def _faded(share_T: Array) -> Array:
    """Falls to 0 over 0.4 s before a stretch of zeros, and rises as slowly behind it."""
    ticks = round(0.4 / DT_S)
    zeros = np.flatnonzero(share_T == 0.0)
    nearest_T = np.abs(np.arange(len(share_T))[:, None] - zeros).min(axis=1, initial=ticks)
    u_T = np.minimum(nearest_T / ticks, 1.0)
    return u_T * u_T * (3.0 - 2.0 * u_T)


def _jaw_direction(yaw_rad: float) -> Array:
    """From the fixed jaw to the moving one, away from the arm, at a cube turned by `yaw_rad`."""
    return np.array([np.cos(yaw_rad), np.sin(yaw_rad), 0.0])


def _downwards(yaw_rad: float) -> mink.SO3:
    """Orientation of the site `grasp`: x down, z from jaw to jaw."""
    down_3, jaw_3 = np.array([0.0, 0.0, -1.0]), _jaw_direction(yaw_rad)
    return mink.SO3.from_matrix(np.stack([down_3, np.cross(jaw_3, down_3), jaw_3], axis=1))


def _at(q_TJ: Array, t_s: float) -> Array:
    place = min(max(t_s / DT_S, 0.0), len(q_TJ) - 1.0)
    low = min(int(place), len(q_TJ) - 2)
    return q_TJ[low] + (place - low) * (q_TJ[low + 1] - q_TJ[low])
