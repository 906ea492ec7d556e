"""Specification of the xArm 6 without a tool.

Source: UFACTORY's manual (travel, 180 degrees a second, torques) and Denavit-Hartenberg table (a2 289.5, a3 77.5, d4
342.5, a5 76, d6 97 mm). The control box has brakes and its own errors.
"""

import math

from real_robot.core.arms import REDUCED_TCP_M_S
from real_robot.core.types import ArmSpec, JointSpec, Ratings

# low, high [rad], torque [N m], largest distance of the flange's middle from the axis [m]
_XARM6 = (
    (-2 * math.pi, 2 * math.pi, 50.0, 0.764),
    (-2.059488, 2.094395, 50.0, 0.764),
    (-3.92699, 0.191986, 32.0, 0.475),
    (-2 * math.pi, 2 * math.pi, 32.0, 0.124),
    (-1.692969, math.pi, 32.0, 0.124),
    (-2 * math.pi, 2 * math.pi, 20.0, 0.0),
)


def xarm6_spec(*, normal_speed: bool = False, control_hz: float = 100.0) -> ArmSpec:
    """The xArm 6: six joints at half of the speed that they can do."""
    joints = tuple(
        JointSpec(
            name=f"joint{number}",
            low=low,
            high=high,
            margin=0.05,
            max_velocity=1.57,
            max_acceleration=8.0,
            max_jerk=400.0,
            max_effort=effort,
            lever_m=lever_m,
        )
        for number, (low, high, effort, lever_m) in enumerate(_XARM6, start=1)
    )
    return ArmSpec(
        name="xarm6",
        joints=joints,
        control_hz=control_hz,
        brakes=True,
        native_watchdog=False,
        max_tcp_speed_m_s=None if normal_speed else REDUCED_TCP_M_S,
        ratings=Ratings(nominal_v=24.0),
    )
