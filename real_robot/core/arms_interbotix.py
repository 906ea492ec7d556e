"""Specifications of WidowX-250 6DOF (wx250s) and ViperX-300 6DOF (vx300s), the arms of ALOHA.

Source: Interbotix's URDF (limits, lengths), xsarm_control (sleep postures), Robotis' e-manual (stall torque at 12 V).
Every joint turns with its servo, 1:1, shoulder and elbow with two of them. The servos leave the shop limited to
131 x 0.229 rpm = 3.14 rad/s; the limits here stay below it with the resident margin of 15 %. No brakes; no collision
model: the one in `gym-aloha` has fingers on sliders where the arm has a turning horn.
"""

import math

from real_robot.core.arms import REDUCED_TCP_M_S
from real_robot.core.types import ArmSpec, Gripper, JointSpec, Ratings

# Angles of the gripper's horn, closed and open [rad]. Those of the stock fingers follow from their travel by the slider
# crank x = r sin(a) + sqrt(l^2 - r^2 cos(a)^2): ViperX r 22, l 36, x 21..57 mm; WidowX r 14, l 24, x 15..37 mm.
VIPERX_JAW = (-0.4131, 1.3324)
WIDOWX_JAW = (-0.3780, 1.2684)
ALOHA_FOLLOWER_JAW = (-0.6213, 1.4910)  # longer fingers; ALOHA 2: 0.6197, 1.6214
ALOHA_LEADER_JAW = (-0.6842, 0.3083)  # a handle; ALOHA 2: -0.0552, 0.8298

_MARGIN = 0.05  # [rad]
_INSET = 0.055  # of the gripper's goals from the ends of its travel [rad]
# Limits [degree], torque of all its motors at stall [N m], largest distance of `ee_gripper_link` from the axis [m]:
# links of 306 and 477 mm (ViperX), 255 and 409 mm (WidowX) beyond shoulder and elbow, 177 and 159 beyond the wrist.
_VIPERX = {
    "waist": (-180.0, 180.0, 10.6, 0.783),
    "shoulder": (-106.0, 72.0, 21.2, 0.783),
    "elbow": (-101.0, 92.0, 21.2, 0.477),
    "forearm_roll": (-180.0, 180.0, 10.6, 0.177),
    "wrist_angle": (-107.0, 128.0, 10.6, 0.177),
    "wrist_rotate": (-180.0, 180.0, 4.1, 0.0),
}
_WIDOWX = {
    "waist": (-180.0, 180.0, 4.1, 0.664),
    "shoulder": (-108.0, 114.0, 8.2, 0.664),
    "elbow": (-123.0, 92.0, 8.2, 0.409),
    "forearm_roll": (-180.0, 180.0, 4.1, 0.159),
    "wrist_angle": (-100.0, 123.0, 4.1, 0.159),
    "wrist_rotate": (-180.0, 180.0, 1.5, 0.0),
}
_PARK = (0.0, -1.80, 1.55, 0.0, 0.80, 0.0, 0.0)  # folded, 3 degrees above the cradle that the arm then sinks into


def viperx_spec(
    *, normal_speed: bool = False, control_hz: float = 50.0, jaw: tuple[float, float] = VIPERX_JAW
) -> ArmSpec:
    """ViperX-300 6DOF: seven XM540 and two XM430, nine motors for seven joints.

    2 rad/s is 64 % of an XM540's speed at no load. 50 Hz: what nine servos say takes 8 ms of wire at 1 Mbit/s.
    """
    return _spec("viperx", _VIPERX, jaw, 2.0, 4.1, 3.5, normal_speed=normal_speed, control_hz=control_hz)


def widowx_spec(
    *, normal_speed: bool = False, control_hz: float = 50.0, jaw: tuple[float, float] = WIDOWX_JAW
) -> ArmSpec:
    """WidowX-250 6DOF: seven XM430 and two XL430, nine motors for seven joints; with a handle it leads in ALOHA."""
    return _spec("widowx", _WIDOWX, jaw, 2.6, 1.5, 1.8, normal_speed=normal_speed, control_hz=control_hz)


def _spec(
    name: str,
    table: dict[str, tuple[float, float, float, float]],
    jaw: tuple[float, float],
    max_velocity: float,
    grip_torque: float,
    stall_a: float,
    *,
    normal_speed: bool,
    control_hz: float,
) -> ArmSpec:
    rows = {joint: (math.radians(low), math.radians(high), *rest) for joint, (low, high, *rest) in table.items()}
    rows["gripper"] = (*jaw, grip_torque, 0.0)
    joints = tuple(
        JointSpec(
            name=joint,
            low=low,
            high=high,
            margin=_MARGIN,
            max_velocity=max_velocity,
            max_acceleration=8.0,
            max_jerk=300.0,
            max_effort=effort,
            lever_m=lever_m,
        )
        for joint, (low, high, effort, lever_m) in rows.items()
    )
    return ArmSpec(
        name=name,
        joints=joints,
        control_hz=control_hz,
        gripper=Gripper(joint="gripper", closed=jaw[0] + _INSET, open=jaw[1] - _INSET, grip_margin=0.05),
        native_watchdog=True,
        max_tcp_speed_m_s=None if normal_speed else REDUCED_TCP_M_S,
        park=_PARK,
        ratings=Ratings(stall_a=stall_a),
    )
