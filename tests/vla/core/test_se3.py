"""Rotations against MuJoCo's and against axioms."""

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.core.se3 import (
    axis_angle_of_quat,
    quat_conjugate,
    quat_from_yaw,
    quat_mul,
    quat_of_axis_angle,
    rotate,
    wrap_angle,
    yaw_of_quat,
)

unit = st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda v: np.linalg.norm(v) > 0.1)


def quat(values: list[float]) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


@given(unit, unit)
def test_product_and_rotation_agree_with_mujoco(a: list[float], b: list[float]) -> None:
    product, turned, v = np.zeros(4), np.zeros(3), np.array([0.3, -1.0, 2.0])
    mujoco.mju_mulQuat(product, quat(a), quat(b))
    mujoco.mju_rotVecQuat(turned, v, quat(a))
    np.testing.assert_allclose(quat_mul(quat(a), quat(b)), product, atol=1e-12)
    np.testing.assert_allclose(rotate(quat(a), v), turned, atol=1e-12)
    np.testing.assert_allclose(quat_mul(quat(a), quat_conjugate(quat(a))), [1, 0, 0, 0], atol=1e-12)


@given(unit)
def test_axis_angle_round_trip(a: list[float]) -> None:
    q = quat(a)
    if abs(q[0]) > 1 - 1e-6:
        return  # within rounding of no turn
    np.testing.assert_allclose(quat_of_axis_angle(axis_angle_of_quat(q)), q, atol=1e-6)


def test_axis_angle_does_not_flip() -> None:
    """The published states have angles up to 2 pi: q and -q differ (OpenVLA-OFT's LIBERO protocol)."""
    q = quat_of_axis_angle(np.array([0.0, 0.0, 4.0]))
    np.testing.assert_allclose(axis_angle_of_quat(q), [0, 0, 4.0], atol=1e-9)
    np.testing.assert_allclose(axis_angle_of_quat(-q), [0, 0, 4.0 - 2 * np.pi], atol=1e-9)


@pytest.mark.parametrize("yaw", [-3.0, -0.5, 0.0, 1.2, 3.1])
def test_yaw(yaw: float) -> None:
    assert yaw_of_quat(quat_from_yaw(yaw)) == pytest.approx(yaw)
    assert wrap_angle(yaw + 4 * np.pi) == pytest.approx(yaw)
