"""WidowX-250 and ViperX-300 from a port's name, and the four arms of ALOHA.

Source of IDs, models, drive modes and limits: Interbotix's xsarm_control/config and its table of servos. The arms leave
the shop calibrated (joint angle 0 at 2048, no homing offset), so they need no file. One motor of each pair is reversed,
since the two face each other: the first one of a ViperX, the second one of a WidowX.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from real_robot.calibration import ArmCalibration, JointCalibration
from real_robot.core.arms_interbotix import (
    ALOHA_FOLLOWER_JAW,
    ALOHA_LEADER_JAW,
    VIPERX_JAW,
    WIDOWX_JAW,
    viperx_spec,
    widowx_spec,
)
from real_robot.core.clock import RealClock
from real_robot.core.types import ArmSpec, Clock
from real_robot.drivers.bus import SLACK_S
from real_robot.drivers.dxl_arm import DxlArm
from real_robot.drivers.servo import Servo
from real_robot.transports import SerialTransport, Transport

XM540, XM430 = frozenset({1120}), frozenset({1020})
XL430_OR_XM430, XL430_OR_XC430 = frozenset({1060, 1020}), frozenset({1060, 1070})  # ALOHA 2 has the second ones
SIDES = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class _Joint:
    """IDs of its motors, the first one first; the limits [count] that its servos hold."""

    ids: tuple[int, ...]
    models: frozenset[int]
    reversed: bool = False
    counts: tuple[int, int] = (0, 4095)


_VIPERX = {
    "waist": _Joint(ids=(1,), models=XM540),
    "shoulder": _Joint(ids=(2, 3), models=XM540, reversed=True, counts=(841, 2867)),
    "elbow": _Joint(ids=(4, 5), models=XM540, reversed=True, counts=(898, 3094)),
    "forearm_roll": _Joint(ids=(6,), models=XM540),
    "wrist_angle": _Joint(ids=(7,), models=XM540, reversed=True, counts=(830, 3504)),
    "wrist_rotate": _Joint(ids=(8,), models=XM430),
    "gripper": _Joint(ids=(9,), models=XM430),
}
_WIDOWX = {
    "waist": _Joint(ids=(1,), models=XM430),
    "shoulder": _Joint(ids=(2, 3), models=XM430, counts=(819, 3345)),
    "elbow": _Joint(ids=(4, 5), models=XM430, counts=(648, 3094)),
    "forearm_roll": _Joint(ids=(6,), models=XM430),
    "wrist_angle": _Joint(ids=(7,), models=XM430, reversed=True, counts=(910, 3447)),
    "wrist_rotate": _Joint(ids=(8,), models=XL430_OR_XM430),
    "gripper": _Joint(ids=(9,), models=XL430_OR_XC430),
}


def viperx(
    *,
    calibration: ArmCalibration | None = None,
    port: str | Path = "",
    open_port: Callable[[], Transport] | None = None,
    clock: Clock | None = None,
    normal_speed: bool = False,
    control_hz: float = 50.0,
    baud: int = 1_000_000,
    jaw: tuple[float, float] = VIPERX_JAW,
    slack_s: float = SLACK_S,
) -> DxlArm:
    """ViperX-300 6DOF on `port`, or on whatever `open_port` opens. calibration: None for the shop's own."""
    spec = viperx_spec(normal_speed=normal_speed, control_hz=control_hz, jaw=jaw)
    return _arm(spec, _VIPERX, calibration, port, open_port, clock, baud=baud, slack_s=slack_s)


def widowx(
    *,
    calibration: ArmCalibration | None = None,
    port: str | Path = "",
    open_port: Callable[[], Transport] | None = None,
    clock: Clock | None = None,
    normal_speed: bool = False,
    control_hz: float = 50.0,
    baud: int = 1_000_000,
    jaw: tuple[float, float] = WIDOWX_JAW,
    slack_s: float = SLACK_S,
) -> DxlArm:
    """WidowX-250 6DOF on `port`, or on whatever `open_port` opens. calibration: None for the shop's own."""
    spec = widowx_spec(normal_speed=normal_speed, control_hz=control_hz, jaw=jaw)
    return _arm(spec, _WIDOWX, calibration, port, open_port, clock, baud=baud, slack_s=slack_s)


@dataclass(frozen=True, kw_only=True)
class Aloha:
    """Two followers, for one `Daemon`, and the two leaders that lead them, by the side they stand on."""

    followers: Mapping[str, DxlArm]
    leaders: Mapping[str, DxlArm]


def aloha(
    *,
    ports: Mapping[str, str | Path] | None = None,
    open_ports: Mapping[str, Callable[[], Transport]] | None = None,
    calibrations: Mapping[str, ArmCalibration] | None = None,
    clock: Clock | None = None,
    normal_speed: bool = False,
    control_hz: float = 25.0,
    baud: int = 1_000_000,
    follower_jaw: tuple[float, float] = ALOHA_FOLLOWER_JAW,
    leader_jaw: tuple[float, float] = ALOHA_LEADER_JAW,
) -> Aloha:
    """Two ViperX led by two WidowX with handles, each on its own port; grippers in current-based position mode.

    A daemon asks its arms one after the other, and two of them take 16 ms of a tick at 1 Mbit/s: 50 Hz, which datasets
    of ALOHA have, needs servos set to 4 Mbit/s (`baud`).

    `ports`, `open_ports` and `calibrations` are by arm: follower_left, follower_right, leader_left, leader_right; the
    rest is for all of them. The jaws are angles of the gripper's horn, closed and open [rad].
    """

    def arm(build: Callable[..., DxlArm], name: str, jaw: tuple[float, float]) -> DxlArm:
        return build(
            calibration=(calibrations or {}).get(name),
            port=(ports or {}).get(name, ""),
            open_port=(open_ports or {}).get(name),
            clock=clock,
            normal_speed=normal_speed,
            control_hz=control_hz,
            baud=baud,
            jaw=jaw,
        )

    return Aloha(
        followers={side: arm(viperx, f"follower_{side}", follower_jaw) for side in SIDES},
        leaders={side: arm(widowx, f"leader_{side}", leader_jaw) for side in SIDES},
    )


def _arm(
    spec: ArmSpec,
    joints: Mapping[str, _Joint],
    calibration: ArmCalibration | None,
    port: str | Path,
    open_port: Callable[[], Transport] | None,
    clock: Clock | None,
    *,
    baud: int,
    slack_s: float,
) -> DxlArm:
    shop = {
        name: JointCalibration(device_id=joint.ids[0], low_count=joint.counts[0], high_count=joint.counts[1])
        for name, joint in joints.items()
    }
    servos = [
        Servo(device_id=joint.ids[0], models=joint.models, shadow_ids=joint.ids[1:], reversed=joint.reversed)
        for joint in joints.values()
    ]
    return DxlArm(
        spec,
        servos,
        calibration or ArmCalibration(arm=spec.name, joints=shop),
        open_port=open_port or (lambda: SerialTransport(port, baud, clock=time.monotonic)),
        clock=clock or RealClock(),
        baud=baud,
        slack_s=slack_s,
    )
