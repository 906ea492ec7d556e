"""Units at the border, against lerobot's own conversion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.motors import Motor, MotorCalibration, MotorNormMode, motors_bus
from lerobot.motors.dynamixel import DynamixelMotorsBus
from lerobot.motors.feetech import FeetechMotorsBus

from real_robot.calibration import ArmCalibration, JointCalibration
from real_robot.units import LerobotUnits, Unit
from vla.core.errors import UnknownNameError

# lerobot asks for an optional package that only words a message
motors_bus.require_package = lambda *_, **__: None  # type: ignore[assignment]

MODES = {
    Unit.DEGREES: MotorNormMode.DEGREES,
    Unit.PLUS_MINUS_100: MotorNormMode.RANGE_M100_100,
    Unit.PERCENT: MotorNormMode.RANGE_0_100,
}


@st.composite
def joints(draw: st.DrawFn) -> tuple[JointCalibration, Unit, bool]:
    low = draw(st.integers(0, 4000))
    joint = JointCalibration(
        device_id=1,
        low_count=low,
        high_count=draw(st.integers(low + 1, 4095)),
        zero_count=draw(st.floats(0.0, 4095.0)),
        direction=draw(st.sampled_from([-1, 1])),
    )
    return joint, draw(st.sampled_from(list(Unit))), draw(st.booleans())


def both(joint: JointCalibration, unit: Unit, feetech: bool):
    """Ours, and lerobot's bus with the same calibration."""
    row = MotorCalibration(1, int(joint.direction < 0), 0, joint.low_count, joint.high_count)
    bus_class, model = (FeetechMotorsBus, "sts3215") if feetech else (DynamixelMotorsBus, "xl430-w250")
    bus = bus_class("nowhere", {"one": Motor(1, model, MODES[unit])}, {"one": row})
    calibration = ArmCalibration(arm="arm", joints={"one": joint})
    return LerobotUnits(calibration, {"one": unit}, apply_drive_mode=feetech), bus


@settings(max_examples=150, deadline=None)
@given(joints(), st.integers(0, 4095), st.floats(-400.0, 400.0))
def test_agrees_with_lerobot_for_every_calibration(drawn, count: int, value: float) -> None:
    ours, bus = both(*drawn)
    assert ours.from_counts(np.array([float(count)]))[0] == pytest.approx(bus._normalize({1: count})[1], abs=1e-9)
    sent = ours.to_counts(np.array([value]))[0]
    # the same number, cut towards zero; where rounding of the last bit decides, either side
    assert int(sent - 1e-6) <= bus._unnormalize({1: value})[1] <= int(sent + 1e-6)


@settings(max_examples=100, deadline=None)
@given(joints(), st.floats(0.0, 1.0))
def test_round_trip_inside_the_travel(drawn, share: float) -> None:
    joint = drawn[0]
    ours, _ = both(*drawn)
    q_J = np.array([joint.to_rad(joint.low_count + share * (joint.high_count - joint.low_count))])
    np.testing.assert_allclose(ours.to_rad(ours.from_rad(q_J)), q_J, atol=1e-9)


def test_a_mirrored_joint_is_not_mirrored_in_degrees() -> None:
    """lerobot's oddity, by hand: direction -1, travel 1000..3000, 1500 counts = a quarter."""
    joint = JointCalibration(device_id=1, low_count=1000, high_count=3000, zero_count=2000, direction=-1)
    calibration = ArmCalibration(arm="arm", joints={"one": joint})
    found = [LerobotUnits(calibration, {"one": unit}).from_counts(np.array([1500.0]))[0] for unit in Unit]
    assert found == pytest.approx([-500 * 360 / 4095, 50.0, 75.0])
    unaware = LerobotUnits(calibration, {"one": Unit.PERCENT}, apply_drive_mode=False)
    assert unaware.from_counts(np.array([1500.0]))[0] == pytest.approx(25.0)


def test_unknown_joint() -> None:
    calibration = ArmCalibration(arm="arm", joints={"one": JointCalibration(device_id=1)})
    with pytest.raises(UnknownNameError, match="one"):
        LerobotUnits(calibration, {"on": Unit.PERCENT})
