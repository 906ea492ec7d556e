"""Specification of the Franka Research 3, without its hand.

Source: Franka's FCI documentation (joint limits of the FR3, torque limits), link lengths from its URDF. The arm's own
controller runs at 1 kHz, has brakes and reflexes, and stops by itself when its client falls silent.
"""

from real_robot.core.arms import REDUCED_TCP_M_S
from real_robot.core.types import ArmSpec, JointSpec, Ratings

_MARGIN = 0.05  # [rad]
# low, high [rad], torque [N m], largest distance of the hand's tool point (103 mm beyond the flange) from the axis [m]
_FR3 = (
    (-2.7437, 2.7437, 87.0, 0.95),
    (-1.7837, 1.7837, 87.0, 0.95),
    (-2.9007, 2.9007, 87.0, 0.71),
    (-3.0421, -0.1518, 87.0, 0.63),
    (-2.8065, 2.8065, 12.0, 0.23),
    (0.5445, 4.5169, 12.0, 0.23),
    (-3.0159, 3.0159, 12.0, 0.0),
)


def fr3_spec(*, normal_speed: bool = False, control_hz: float = 100.0) -> ArmSpec:
    """FR3: seven joints. 1.5 rad/s and twice 3.7 rad/s^2 are below what the slowest of them may do."""
    joints = tuple(
        JointSpec(
            name=f"joint{number}",
            low=low,
            high=high,
            margin=_MARGIN,
            max_velocity=1.5,
            max_acceleration=3.7,
            max_jerk=500.0,
            max_effort=effort,
            lever_m=lever_m,
        )
        for number, (low, high, effort, lever_m) in enumerate(_FR3, start=1)
    )
    return ArmSpec(
        name="fr3",
        joints=joints,
        control_hz=control_hz,
        brakes=True,
        native_watchdog=True,
        max_tcp_speed_m_s=None if normal_speed else REDUCED_TCP_M_S,
        ratings=Ratings(nominal_v=48.0),
    )
