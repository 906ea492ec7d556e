"""Poses and small rotations. Quaternions are (w, x, y, z), MuJoCo's order, and of unit length; angles in [rad]."""

import numpy as np


def quat_mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamilton product a * b: the rotation b, then the rotation a."""
    aw, ax, ay, az = a
    bw, bx, by, bz = b
    return np.array(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ]
    )


def quat_conjugate(q: np.ndarray) -> np.ndarray:
    """The inverse rotation."""
    return np.array([q[0], -q[1], -q[2], -q[3]])


def quat_from_yaw(yaw: float) -> np.ndarray:
    """A rotation by `yaw` [rad] about the world's vertical axis."""
    return np.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def yaw_of_quat(q: np.ndarray) -> float:
    """The heading [rad] of the body's x axis in the horizontal plane, in (-pi, pi]."""
    w, x, y, z = q
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The vector `v` (3,) rotated by `q`."""
    return v + 2 * np.cross(q[1:], np.cross(q[1:], v) + q[0] * v)


def axis_angle_of_quat(q: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) [rad] with the angle in [0, 2 pi], as published LIBERO policies expect it.

    No antipodal flip: q and -q give different vectors. That is robosuite's `quat2axisangle`, on which LIBERO's
    states were recorded; flipping loses up to forty points of success (specification of OpenVLA-OFT, 2.1).
    """
    w = float(np.clip(q[0], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return q[1:] * 2.0 * np.arccos(w) / sine


def quat_of_axis_angle(vector: np.ndarray) -> np.ndarray:
    """Inverse of `axis_angle_of_quat`, up to sign."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.array([1.0, 0.0, 0.0, 0.0])
    return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * vector / angle])


def wrap_angle(angle: float) -> float:
    """The same angle [rad] in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
