"""Watchdog rules on tables of readings: each fires on its fault within its time, and stays quiet just short of it."""

from collections.abc import Callable

import numpy as np
import pytest

from real_robot.core.faults import Fault, FaultCode, Reaction
from real_robot.core.rules import History, check, derating, jumped, overrun
from real_robot.core.types import ArmSpec, ArmState, JointCommand, Ratings

type Reading = Callable[..., ArmState]
HEALTHY = 100  # ticks before the fault


def one(value: float, joint: int = 2, rest: float = 0.0) -> np.ndarray:
    values = np.full(6, rest)
    values[joint] = value
    return values


def run(spec: ArmSpec, reading: Reading, ticks: int, *, commanded: bool = True, **changed: object) -> list[Fault]:
    """What is found at the last of `ticks` faulty readings after a healthy second."""
    history = History(spec)
    for tick in range(HEALTHY + ticks):
        wrong = changed if tick >= HEALTHY else {}
        command = JointCommand(time_s=0.0, q_J=np.zeros(6), dq_J=np.zeros(6)) if commanded else None
        history.push(reading(tick * spec.dt_s, **{"goal_J": 0.0 if commanded else np.nan} | wrong), command)
    return check(history, spec)


@pytest.mark.parametrize(
    ("changed", "ticks", "code", "reaction"),
    [
        ({"age_J": one(0.06)}, 1, FaultCode.JOINT_SILENT, Reaction.LATCH),
        ({"age_J": one(np.nan)}, 1, FaultCode.JOINT_SILENT, Reaction.LATCH),
        ({"age_J": 0.01}, 21, FaultCode.LINK_NOISY, Reaction.LATCH),
        ({"goal_J": one(0.005)}, 3, FaultCode.GOAL_NOT_TAKEN, Reaction.LATCH),
        ({"torque_on_J": one(False, rest=True).astype(bool)}, 1, FaultCode.TORQUE_LOST, Reaction.LATCH),
        ({"temperature_J": one(55.0)}, 1, FaultCode.WARM, Reaction.WARN),
        ({"temperature_J": one(65.0)}, 1, FaultCode.OVER_TEMPERATURE, Reaction.LOWER),
        ({"voltage_J": one(10.1, rest=12.0)}, 20, FaultCode.VOLTAGE, Reaction.LATCH),
        ({"voltage_J": one(13.9, rest=12.0)}, 20, FaultCode.VOLTAGE, Reaction.LATCH),
        ({"current_J": one(-0.7), "q_J": one(0.08)}, 50, FaultCode.STALL, Reaction.LATCH),
        ({"q_J": one(0.18)}, 30, FaultCode.TRACKING, Reaction.LATCH),
        ({"q_J": one(0.3)}, 1, FaultCode.ENCODER_JUMP, Reaction.LATCH),
    ],
)
def test_fires_in_time(
    spec: ArmSpec, reading: Reading, changed: dict, ticks: int, code: FaultCode, reaction: Reaction
) -> None:
    before = [finding for finding in run(spec, reading, ticks - 1, **changed) if finding.code == code]
    after = [finding for finding in run(spec, reading, ticks, **changed) if finding.code == code]
    assert not before and after
    assert after[0].reaction == reaction and after[0].detail
    if code != FaultCode.LINK_NOISY:
        assert [finding.joint for finding in after] == ["elbow_flex"]


@pytest.mark.parametrize(
    ("changed", "ticks"),
    [
        ({}, 50),
        ({"age_J": one(0.049)}, 1),
        ({"age_J": one(0.01)}, 100),  # one joint of six: 17 %
        ({"goal_J": one(0.003)}, 50),
        ({"goal_J": np.nan}, 50),  # unknown is not wrong
        ({"temperature_J": 54.9}, 1),
        ({"temperature_J": np.nan, "voltage_J": np.nan, "current_J": np.nan}, 60),
        ({"voltage_J": 10.3}, 60),
        ({"current_J": 0.7, "q_J": one(0.06)}, 60),
        ({"current_J": 0.5, "q_J": one(0.1)}, 60),
        ({"q_J": one(0.17), "current_J": 0.1}, 60),
        ({"q_J": one(1.0, joint=5), "age_J": one(0.0)}, 0),
    ],
)
def test_stays_quiet(spec: ArmSpec, reading: Reading, changed: dict, ticks: int) -> None:
    assert [f for f in run(spec, reading, ticks, **changed) if f.code != FaultCode.ENCODER_JUMP] == []


def test_a_limp_arm_is_not_judged_by_commands(spec: ArmSpec, reading: Reading) -> None:
    """Without a command there is no goal to miss, no torque to lose, no tracking and no stall."""
    changed = {"torque_on_J": False, "current_J": 0.9}
    assert run(spec, reading, 60, commanded=False, **changed) == []


def test_a_gripper_may_be_far_from_its_command(spec: ArmSpec, reading: Reading) -> None:
    findings = run(spec, reading, 60, q_J=one(0.5, joint=5), current_J=0.9)
    assert [(f.code, f.joint) for f in findings] == [(FaultCode.STALL, "gripper")]


def test_the_gravest_comes_first(spec: ArmSpec, reading: Reading) -> None:
    findings = run(spec, reading, 1, temperature_J=one(70.0), age_J=one(0.1, joint=0))
    assert [f.reaction for f in findings] == [Reaction.LOWER, Reaction.LATCH]


def test_history_keeps_the_last_second_in_order(spec: ArmSpec, reading: Reading) -> None:
    """Rows carry their own number, far beyond one lap of the ring."""
    history = History(spec)
    for tick in range(257):
        history.push(reading(tick * 0.01, q_J=float(tick)), None)
        expected = np.arange(max(0, tick - 6), tick + 1)
        np.testing.assert_array_equal(history.last("q", 7)[:, 0], expected)
    assert len(history) == 100 and len(history.last("q", 1000)) == 100
    assert np.isnan(history.last("command")).all()
    history.clear()
    assert len(history) == 0 and check(history, spec) == []


def test_a_jump_is_measured_from_the_last_real_answer(spec: ArmSpec) -> None:
    """3 rad/s for 50 ms is 0.15 rad: times 1.5 still believed, more is not, and neither is NaN."""
    q_J = np.array([0.22, 0.23, -0.22, -0.23, np.nan, 0.0])
    assert jumped(np.zeros(6), q_J, 0.05, spec).tolist() == [False, True, False, True, True, False]


def test_derating_against_a_line_by_hand() -> None:
    points = [(20, 1.0), (60, 1.0), (62.5, 0.625), (65, 0.25), (90, 0.25)]
    for celsius, share in points:
        assert derating(np.array([20.0, celsius, np.nan]), Ratings()) == pytest.approx(share)
    assert derating(np.full(6, np.nan), Ratings()) == 1.0


def test_a_late_tick() -> None:
    assert overrun(0.055, 0.01, 1.0) is None
    late, long = overrun(0.065, 0.01, 1.0), overrun(0.22, 0.01, 1.0)
    assert late is not None and (late.code, late.reaction) == (FaultCode.OVERRUN, Reaction.WARN)
    assert long is not None and (long.code, long.reaction) == (FaultCode.OVERRUN_LONG, Reaction.HOLD)
