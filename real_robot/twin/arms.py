"""Whole arms on a bus: SO-101 (six STS3215), Koch v1.1 (two XL430, four XL330), WidowX and ViperX (nine servos)."""

import time
from collections.abc import Callable, Mapping
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
XM540 = MotorModel(stall_torque_nm=10.6, no_load_rad_s=3.14, stall_current_a=4.4)
XM430 = MotorModel(stall_torque_nm=4.1, no_load_rad_s=4.82, stall_current_a=2.3)
MODEL_NUMBERS = {XL430: 1060, XM540: 1120, XM430: 1020}
JOINT_OF = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 4, 8: 5, 9: 6}  # of WidowX and ViperX
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


def viperx(
    *,
    clock: Callable[[], float] = time.monotonic,
    baud: int = 1_000_000,
    echo: bool = False,
    seed: int = 0,
    apart_counts: int = 0,
) -> DxlBusTwin:
    """A ViperX-300 6DOF as it leaves the shop. apart_counts: how far the second motors' horns are off."""
    models = dict.fromkeys(range(1, 8), XM540) | {8: XM430, 9: XM430}
    limits = {2: (841, 2867), 3: (841, 2867), 4: (898, 3094), 5: (898, 3094), 7: (830, 3504)}
    servos = _nine(clock, baud, models, limits, reversed_ids=(2, 4, 7), apart_counts=apart_counts)
    return DxlBusTwin(servos, _plant(0.05), clock=clock, baud=baud, echo=echo, seed=seed)


def widowx(
    *,
    clock: Callable[[], float] = time.monotonic,
    baud: int = 1_000_000,
    echo: bool = False,
    seed: int = 0,
    apart_counts: int = 0,
) -> DxlBusTwin:
    """A WidowX-250 6DOF as it leaves the shop. apart_counts: how far the second motors' horns are off."""
    models = dict.fromkeys(range(1, 8), XM430) | {8: XL430, 9: XL430}
    limits = {2: (819, 3345), 3: (819, 3345), 4: (648, 3094), 5: (648, 3094), 7: (910, 3447)}
    servos = _nine(clock, baud, models, limits, reversed_ids=(3, 5, 7), apart_counts=apart_counts)
    return DxlBusTwin(servos, _plant(0.02), clock=clock, baud=baud, echo=echo, seed=seed)


def _nine(
    clock: Callable[[], float],
    baud: int,
    models: Mapping[int, MotorModel],
    limits: Mapping[int, tuple[int, int]],
    *,
    reversed_ids: tuple[int, ...],
    apart_counts: int,
) -> list[DxlServo]:
    """Seven joints, of which 1 and 2 have two motors; IDs 3 and 5 follow IDs 2 and 4. Counts grow with the angle."""
    servos = []
    for joint, device_id in ((JOINT_OF[device_id], device_id) for device_id in sorted(models)):
        model = models[device_id]
        low, high = limits.get(device_id, (0, 4095))
        second = device_id in (3, 5)
        defaults = registers_dxl.SHOP | {
            registers_dxl.MODEL: (2, MODEL_NUMBERS[model]),
            registers_dxl.ID: (1, device_id),
            registers_dxl.BAUD: (1, registers_dxl.BAUDS.index(baud)),
            registers_dxl.RETURN_DELAY: (1, 0),
            registers_dxl.DRIVE_MODE: (1, int(device_id in reversed_ids)),
            registers_dxl.MODE: (1, 5 if device_id == 9 and model is XM430 else 3),
            registers_dxl.SHADOW_ID: (1, device_id - 1 if second else 255),
            registers_dxl.VELOCITY_LIMIT: (4, 131),
            registers_dxl.MIN_ANGLE: (4, low),
            registers_dxl.MAX_ANGLE: (4, high),
        }
        servos.append(
            DxlServo(
                device_id=device_id,
                joint=joint,
                clock=clock,
                motor=model,
                defaults=defaults,
                zero_count=2048 + (apart_counts if second else 0),
                direction=-1 if device_id in reversed_ids else 1,
            )
        )
    return servos


def _plant(inertia_kg_m2: float) -> FreePlant:
    """Hard stops where the links meet; the three rolls turn freely."""
    turn = (-4.0, 4.0)
    limits = [turn, (-2.05, 2.15), (-2.30, 1.75), turn, (-2.0, 2.40), turn, (-1.2, 1.9)]
    return FreePlant(7, limits_rad=limits, inertia_kg_m2=inertia_kg_m2, friction_nm=0.1)


def _counts(angle_rad: float) -> int:
    return round(2048 + angle_rad * COUNTS_PER_RAD)


def _wider(limits_rad: tuple[tuple[float, float], ...]) -> list[tuple[float, float]]:
    """Hard stops 3 degrees outside the angle limits."""
    return [(low - 0.05, high + 0.05) for low, high in limits_rad]
