"""WidowX and ViperX against numbers of other origin: the vendor's screw axes, gym-aloha's model and its constants."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.arms_interbotix import (
    ALOHA_FOLLOWER_JAW,
    ALOHA_LEADER_JAW,
    VIPERX_JAW,
    WIDOWX_JAW,
    viperx_spec,
    widowx_spec,
)

# Product of exponentials as the vendor prints it: position of the tool at zero, axes, and points on them.
HOME = {"viperx": (0.536494, 0.0, 0.42705), "widowx": (0.458325, 0.0, 0.36065)}
HEIGHTS = {"viperx": (0.12705, 0.42705, 0.05955, 0.35955), "widowx": (0.11065, 0.36065, 0.04975, 0.29975)}
AXES = np.array([[0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]], float)
MAKERS = {"viperx": viperx_spec, "widowx": widowx_spec}


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues."""
    x, y, z = axis
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k


def levers(arm: str, q: np.ndarray) -> np.ndarray:
    """Distance of the tool from each of the six axes."""
    shoulder, elbow, x_elbow, x_wrist = HEIGHTS[arm]
    points = np.array([[0, 0, 0], [0, 0, shoulder], *[[x, 0, elbow] for x in (x_elbow, 0, x_wrist, 0)]], float)
    turned, moved = np.eye(3), np.zeros(3)
    axes, places = [], []
    for axis, point, angle in zip(AXES, points, q):
        axes.append(turned @ axis)
        places.append(turned @ point + moved)
        joint = rotation(axis, angle)
        moved = turned @ (point - joint @ point) + moved
        turned = turned @ joint
    tool = turned @ np.array(HOME[arm]) + moved
    return np.array([np.linalg.norm(np.cross(axis, tool - place)) for axis, place in zip(axes, places)])


@pytest.mark.parametrize("arm", ["viperx", "widowx"])
def test_levers_are_the_largest_there_are(arm: str) -> None:
    """Reached with the arm stretched to the side, and at the wrist with a right angle; never passed."""
    spec = MAKERS[arm]()
    said = np.array([joint.lever_m for joint in spec.joints[:6]])
    shoulder, elbow, x_elbow, _ = HEIGHTS[arm]
    straight = -(math.pi / 2 - math.atan2(x_elbow, elbow - shoulder))
    stretched = levers(arm, np.array([0.3, 0.4, straight, 0, 0, 0]))
    np.testing.assert_allclose(stretched[[1, 2, 4]], said[[1, 2, 4]], atol=1e-3)
    level = levers(arm, np.array([0.3, math.pi / 2 - math.atan2(x_elbow, elbow - shoulder), straight, 0, 0, 0]))
    assert level[0] == pytest.approx(said[0], abs=1e-3)
    assert levers(arm, np.array([0, 0, 0, 0.4, math.pi / 2, 0]))[3] == pytest.approx(said[3], abs=1e-3)
    draw = np.random.default_rng(0)
    low, high = (np.array([getattr(joint, end) for joint in spec.joints[:6]]) for end in ("low", "high"))
    most = np.max([levers(arm, draw.uniform(low, high)) for _ in range(500)], axis=0)
    assert (most <= said + 1e-3).all()


def test_viperx_limits_are_those_of_gym_alohas_model() -> None:
    package = importlib.util.find_spec("gym_aloha")
    if package is None or package.origin is None:
        pytest.skip("gym-aloha is not installed")
    text = (Path(package.origin).parent / "assets" / "vx300s_left.xml").read_text()
    found = re.findall(r'<joint name="vx300s_left/(\w+)".*?range="(\S+) (\S+)"', text)
    theirs = {name: (float(low), float(high)) for name, low, high in found}
    for joint in viperx_spec().joints[:6]:
        assert (joint.low, joint.high) == pytest.approx(theirs[joint.name], abs=1e-4), joint.name


def finger(angle: float, crank: float, rod: float) -> float:
    """Distance of a finger from the middle [m]."""
    return crank * math.sin(angle) + math.sqrt(rod**2 - (crank * math.cos(angle)) ** 2)


@pytest.mark.parametrize(
    ("jaw", "crank", "rod", "fingers"),
    [
        (VIPERX_JAW, 0.022, 0.036, (0.021, 0.057)),
        (WIDOWX_JAW, 0.014, 0.024, (0.015, 0.037)),
        (ALOHA_FOLLOWER_JAW, 0.022, 0.036, (0.01844, 0.05800)),  # both of these from gym_aloha.constants
        (ALOHA_LEADER_JAW, 0.014, 0.024, (0.01244, 0.02417)),
    ],
)
def test_jaws_are_where_their_fingers_are(jaw, crank: float, rod: float, fingers) -> None:
    assert [finger(angle, crank, rod) for angle in jaw] == pytest.approx(fingers, abs=2e-4)


@pytest.mark.parametrize("arm", ["viperx", "widowx"])
def test_specifications_are_consistent(arm: str) -> None:
    spec, normal = MAKERS[arm](), MAKERS[arm](normal_speed=True)
    assert spec.max_tcp_speed_m_s == 0.25 and normal.max_tcp_speed_m_s is None
    assert spec.gripper_index == 6 and spec.arm_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert (spec.park >= spec.low_J).all() and (spec.park <= spec.high_J).all()
    gripper = spec.gripper
    assert spec.low_J[6] <= gripper.closed < gripper.open <= spec.high_J[6]
    assert (1.15 * spec.velocity_J < math.pi).all(), "the servos leave the shop limited to 3.14 rad/s"
    assert spec.joints[1].max_effort == 2 * spec.joints[0].max_effort, "two motors"
