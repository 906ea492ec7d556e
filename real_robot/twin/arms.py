"""Whole arms on a bus: the SO-101 (six STS3215) and a Koch v1.1 (two XL430, four XL330)."""

import time
from collections.abc import Callable
from typing import Literal

from real_robot.twin import registers_dxl, registers_sts
from real_robot.twin.dxl_bus import DxlBusTwin
from real_robot.twin.motor import COUNTS_PER_RAD, MotorModel
from real_robot.twin.physics import SO101_LIMITS_RAD, FreePlant, so101_plant
from real_robot.twin.registers_dxl import DxlServo
from real_robot.twin.registers_sts import StsServo
from real_robot.twin.sts_bus import StsBusTwin

XL430 = MotorModel(stall_torque_nm=1.5, no_load_rad_s=6.4, stall_current_a=1.4)
XL330 = MotorModel(stall_torque_nm=0.52, no_load_rad_s=10.9, stall_current_a=1.47, nominal_v=5.0)
KOCH_LIMITS_RAD = ((-2.0, 2.0), (-1.8, 1.8), (-1.8, 1.8), (-1.8, 1.8), (-2.7, 2.7), (-0.2, 1.7))


def so101(
    *,
    clock: Callable[[], float] = time.monotonic,
    plant: Literal["free", "mujoco"] = "free",
    baud: int = 1_000_000,
    echo: bool = False,
    seed: int = 0,
) -> StsBusTwin:
    """Servos 1 to 6, calibrated: 2048 counts at joint angle 0, angle limits in the servos as in the arm's model."""
    defaults = dict(registers_sts.SHOP)
    servos = []
    for joint, (low, high) in enumerate(SO101_LIMITS_RAD):
        defaults |= {
            registers_sts.ID: (1, joint + 1),
            registers_sts.BAUD: (1, registers_sts.BAUDS.index(baud)),
            registers_sts.MIN_ANGLE: (2, _counts(low)),
            registers_sts.MAX_ANGLE: (2, _counts(high)),
        }
        servos.append(StsServo(device_id=joint + 1, joint=joint, clock=clock, motor=MotorModel(), defaults=defaults))
    scene = so101_plant() if plant == "mujoco" else FreePlant(6, limits_rad=_wider(SO101_LIMITS_RAD))
    return StsBusTwin(servos, scene, clock=clock, baud=baud, echo=echo, seed=seed)


def koch(
    *, clock: Callable[[], float] = time.monotonic, baud: int = 1_000_000, echo: bool = False, seed: int = 0
) -> DxlBusTwin:
    """Servos 1 to 6 of a Koch v1.1 follower on free joints, the gripper in current-based position mode."""
    servos = []
    for joint, (low, high) in enumerate(KOCH_LIMITS_RAD):
        big = joint < 2
        defaults = registers_dxl.SHOP | {
            registers_dxl.MODEL: (2, 1060 if big else 1200),
            registers_dxl.ID: (1, joint + 1),
            registers_dxl.BAUD: (1, registers_dxl.BAUDS.index(baud)),
            registers_dxl.RETURN_DELAY: (1, 0),
            registers_dxl.MODE: (1, 5 if joint == 5 else 3),
            registers_dxl.MIN_ANGLE: (4, _counts(low)),
            registers_dxl.MAX_ANGLE: (4, _counts(high)),
            registers_dxl.MAX_VOLTAGE: (2, 160 if big else 70),
            registers_dxl.MIN_VOLTAGE: (2, 65 if big else 35),
        }
        motor = XL430 if big else XL330
        servos.append(DxlServo(device_id=joint + 1, joint=joint, clock=clock, motor=motor, defaults=defaults))
    scene = FreePlant(6, limits_rad=_wider(KOCH_LIMITS_RAD), inertia_kg_m2=0.01, friction_nm=0.02)
    return DxlBusTwin(servos, scene, clock=clock, baud=baud, echo=echo, seed=seed)


def _counts(angle_rad: float) -> int:
    return round(2048 + angle_rad * COUNTS_PER_RAD)


def _wider(limits_rad: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """Hard stops 3 degrees outside the angle limits."""
    return [(low - 0.05, high + 0.05) for low, high in limits_rad]
