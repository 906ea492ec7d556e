"""Arms from a port's name: `configs/robot/*.yaml` name these functions."""

import time
from collections.abc import Callable
from pathlib import Path

from real_robot.calibration import ArmCalibration, uncalibrated
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.clock import RealClock
from real_robot.core.types import Clock
from real_robot.drivers.bus import SLACK_S
from real_robot.drivers.dxl_arm import DxlArm
from real_robot.drivers.servo import Servo
from real_robot.drivers.sts_arm import StsArm
from real_robot.transports import SerialTransport, Transport

STS3215 = frozenset({777})
XL430, XL330 = frozenset({1060}), frozenset({1190, 1200})


def so101(
    *,
    calibration: ArmCalibration | None,
    port: str | Path = "",
    open_port: Callable[[], Transport] | None = None,
    clock: Clock | None = None,
    normal_speed: bool = False,
    control_hz: float = 100.0,
    slack_s: float = SLACK_S,
) -> StsArm:
    """SO-101 on `port`, or on whatever `open_port` opens. calibration: None for an arm that has none yet."""
    spec = so101_spec(normal_speed=normal_speed, control_hz=control_hz)
    calibration = calibration or uncalibrated(spec)
    servos = [Servo(device_id=joint.device_id, models=STS3215) for joint in calibration.joints.values()]
    return StsArm(
        spec,
        servos,
        calibration,
        open_port=open_port or (lambda: _serial(port)),
        clock=clock or RealClock(),
        slack_s=slack_s,
    )


def koch(
    *,
    calibration: ArmCalibration | None,
    port: str | Path = "",
    open_port: Callable[[], Transport] | None = None,
    clock: Clock | None = None,
    normal_speed: bool = False,
    control_hz: float = 100.0,
    slack_s: float = SLACK_S,
) -> DxlArm:
    """Koch v1.1 on `port`, or on whatever `open_port` opens. calibration: None for an arm that has none yet."""
    spec = koch_spec(normal_speed=normal_speed, control_hz=control_hz)
    calibration = calibration or uncalibrated(spec)
    models = [XL430, XL430, XL330, XL330, XL330, XL330]
    rows = zip(calibration.joints.values(), models, strict=True)
    servos = [Servo(device_id=joint.device_id, models=model) for joint, model in rows]
    return DxlArm(
        spec,
        servos,
        calibration,
        open_port=open_port or (lambda: _serial(port)),
        clock=clock or RealClock(),
        slack_s=slack_s,
    )


def _serial(port: str | Path) -> Transport:
    return SerialTransport(port, 1_000_000, clock=time.monotonic)
