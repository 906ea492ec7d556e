"""Specification of the UR5e without a tool.

Source: Universal Robots' data sheet (travel, 180 degrees a second, torques by joint size) and Denavit-Hartenberg table
(a2 425, a3 392, d4 133, d5 100, d6 100 mm). The controller has brakes, safety planes and its own stops.
"""

import math

from real_robot.core.arms import REDUCED_TCP_M_S
from real_robot.core.types import ArmSpec, JointSpec, Ratings

# travel to each side [rad], torque [N m], largest distance of the flange's middle from the axis [m]
_UR5E = {
    "shoulder_pan": (2 * math.pi, 150.0, 0.967),
    "shoulder_lift": (2 * math.pi, 150.0, 0.958),
    "elbow": (math.pi, 150.0, 0.536),
    "wrist_1": (2 * math.pi, 28.0, 0.141),
    "wrist_2": (2 * math.pi, 28.0, 0.100),
    "wrist_3": (2 * math.pi, 28.0, 0.0),
}


def ur5e_spec(*, normal_speed: bool = False, control_hz: float = 125.0) -> ArmSpec:
    """UR5e: six joints at half of the speed that they can do."""
    joints = tuple(
        JointSpec(
            name=name,
            low=-travel,
            high=travel,
            margin=0.05,
            max_velocity=1.57,
            max_acceleration=8.0,
            max_jerk=400.0,
            max_effort=effort,
            lever_m=lever_m,
        )
        for name, (travel, effort, lever_m) in _UR5E.items()
    )
    return ArmSpec(
        name="ur5e",
        joints=joints,
        control_hz=control_hz,
        brakes=True,
        native_watchdog=True,
        max_tcp_speed_m_s=None if normal_speed else REDUCED_TCP_M_S,
        ratings=Ratings(nominal_v=48.0, warm_c=60.0, derate_c=70.0, hot_c=80.0),
    )
