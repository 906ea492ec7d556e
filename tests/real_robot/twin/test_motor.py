"""The profile generator and the motor against closed forms."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from real_robot.twin.motor import Command, Motor, MotorModel, profile

DT_S = 0.002


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-2000, 2000),
    st.floats(50, 3000),
    st.floats(100, 20_000),
)
def test_the_profile_reaches_its_goal_and_never_passes_it(
    goal: float, max_speed: float, max_acceleration: float
) -> None:
    position, speed = 0.0, 0.0
    for _ in range(int(110 / DT_S)):
        before = speed
        position, speed = profile(position, speed, goal, max_speed, max_acceleration, DT_S)
        assert abs(position) <= abs(goal) + max_acceleration * DT_S**2 / 4, "thousandths of a count"
        assert abs(speed) <= max_speed + 1e-6
        assert abs(speed - before) <= max_acceleration * DT_S * (1 + 1e-6) + 1e-6
        if abs(position - goal) < 1e-9 and abs(speed) < 1e-6:
            break
    assert position == pytest.approx(goal, abs=1e-6)


@pytest.mark.parametrize(
    ("distance", "speed", "acceleration"), [(1000, 500, 1000), (100, 500, 1000), (2000, 3000, 800)]
)
def test_the_profile_takes_the_trapezoids_time(distance: float, speed: float, acceleration: float) -> None:
    ramp = speed**2 / acceleration  # distance of both ramps
    expected_s = distance / speed + speed / acceleration if ramp < distance else 2 * math.sqrt(distance / acceleration)
    position, now, steps = 0.0, 0.0, 0
    while abs(position - distance) > 1e-6:
        position, now = profile(position, now, distance, speed, acceleration, DT_S)
        steps += 1
    assert steps * DT_S == pytest.approx(expected_s, abs=0.02, rel=0.01)


def test_without_limits_the_reference_is_the_goal() -> None:
    position, _ = profile(0.0, 0.0, 700.0, math.inf, math.inf, DT_S)
    assert position == pytest.approx(700.0)


def test_torque_speed_line() -> None:
    """Full duty: stall torque at rest, none at the no-load speed, and the current goes with it."""
    model = MotorModel()
    command = Command(torque=1, goal=1e6, kp=1.0)
    motor = Motor(model)
    assert motor.step(command, 0.0, 0.0, 1.0, DT_S) == pytest.approx(model.stall_torque_nm)
    assert motor.current_a == pytest.approx(model.stall_current_a)
    assert motor.step(command, 0.0, model.no_load_rad_s, 1.0, DT_S) == pytest.approx(0.0, abs=1e-12)
    assert motor.step(command, 0.0, 0.0, 0.5, DT_S) == pytest.approx(model.stall_torque_nm / 2), "half the voltage"


def test_free_is_free_and_damping_damps() -> None:
    motor = Motor(MotorModel())
    assert motor.step(Command(torque=0, goal=1000), 0.0, 2.0, 1.0, DT_S) == 0.0
    assert motor.step(Command(torque=2, goal=1000), 0.0, 2.0, 1.0, DT_S) == pytest.approx(-2.94 * 2.0 / 4.72)


def test_duty_is_proportional_and_clipped() -> None:
    motor = Motor(MotorModel())
    motor.step(Command(torque=1, goal=30.0, kp=0.01), 0.0, 0.0, 1.0, DT_S)
    assert motor.duty == pytest.approx(0.3)
    motor.step(Command(torque=1, goal=-300.0, kp=0.01, duty_limit=0.2), 0.0, 0.0, 1.0, DT_S)
    assert motor.duty == -0.2
