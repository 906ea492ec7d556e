"""Watchdog rules: pure functions from the last second of readings to faults. One rule, one fact about one joint.

Bus servos report little and stop nothing, so the daemon looks: at ages, goal echoes, torque flags, heat, supply, and
at the distance between what was commanded and what happened. Thresholds are the defaults for small servo arms.
"""

from collections.abc import Callable, Iterator
from math import isnan

import numpy as np
from numpy.typing import NDArray

from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.types import ArmSpec, ArmState, Array, JointCommand, Ratings

WINDOW_S = 1.0
SILENT_TICKS = 5
NOISY_SHARE = 0.2  # of the answers of a window
ECHO_TICKS, ECHO_RAD = 3, 0.004  # two and a half counts of 4096
VOLTAGE_BAND, VOLTAGE_S = (0.85, 1.15), 0.2
STALL_RAD, STALL_S = np.radians(4.0), 0.5
TRACKING_RAD, TRACKING_S = np.radians(10.0), 0.3
JUMP_FACTOR, JUMP_RAD = 1.5, 0.05
COOLEST_SHARE = 0.25  # of the speed just below the temperature at which it stops
OVERRUN_TICKS, OVERRUN_LONG_TICKS = 5, 20

type Rule = Callable[["History", ArmSpec], Iterator[Fault]]


class History:
    """The last second of readings and commands in arrays (T, J), newest last.

    Each row is written twice, T apart, so that any number of last rows is one slice.
    """

    def __init__(self, spec: ArmSpec) -> None:
        self.dt_s = spec.dt_s
        self._size = max(2, round(WINDOW_S * spec.control_hz))
        self._rows = 0
        names = ("q", "goal", "command", "age", "current", "temperature", "voltage", "torque")
        self._arrays = {name: np.full((2 * self._size, len(spec.joints)), np.nan) for name in names}
        self.time_s = self.passed_s = 0.0

    def __len__(self) -> int:
        return min(self._rows, self._size)

    def push(self, state: ArmState, command: JointCommand | None) -> None:
        """Appends a reading, and the command that was in force when it was taken (None: none was)."""
        self.passed_s = state.time_s - self.time_s if self._rows else self.dt_s
        self.time_s = state.time_s
        row = {
            "q": state.q_J,
            "goal": state.goal_J,
            "command": np.nan if command is None else command.q_J,
            "age": state.age_J,
            "current": state.current_J,
            "temperature": state.temperature_J,
            "voltage": state.voltage_J,
            "torque": state.torque_on_J,
        }
        at = self._rows % self._size
        for name, values in row.items():
            self._arrays[name][at] = self._arrays[name][at + self._size] = values
        self._rows += 1

    def clear(self) -> None:
        """Forgets everything, for instance after a reset."""
        self._rows = 0

    def last(self, name: str, ticks: int = 1) -> Array:
        """The last `ticks` rows (T, J) of a quantity, fewer where there are fewer."""
        end = (self._rows - 1) % self._size + self._size + 1
        return self._arrays[name][end - min(ticks, len(self)) : end]

    def held(self, wrong_TJ: NDArray[np.bool_], seconds: float) -> NDArray[np.bool_]:
        """(J,) True where a condition held in each of the last `seconds`."""
        ticks = round(seconds / self.dt_s)
        enough = len(wrong_TJ) >= ticks
        return np.logical_and.reduce(wrong_TJ[-ticks:], axis=0) & enough


def check(history: History, spec: ArmSpec) -> list[Fault]:
    """What every rule finds now, the gravest first. For an arm under torque."""
    found = [finding for rule in RULES for finding in rule(history, spec)] if len(history) else []
    return sorted(found, key=lambda finding: -finding.reaction)


def silent(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """A joint has not answered for more than five ticks."""
    age_J = history.last("age")[-1]
    for j in np.flatnonzero(~(age_J <= SILENT_TICKS * spec.dt_s)):
        yield _fault(FaultCode.JOINT_SILENT, f"no answer for {1e3 * age_J[j]:.0f} ms", history, spec, j)


def noisy(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """More than a fifth of all answers of the last second were lost or refused."""
    ticks = round(WINDOW_S / spec.dt_s)
    lost = float((history.last("age", ticks) > 0.0).mean())
    if len(history) >= ticks and lost > NOISY_SHARE:
        yield _fault(FaultCode.LINK_NOISY, f"{lost:.0%} of the answers of the last second were lost", history, spec)


def goal_not_taken(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """Three readings in a row show another goal than the one that was written."""
    goal_TJ, command_TJ = history.last("goal", ECHO_TICKS), history.last("command", ECHO_TICKS)
    wrong_J = history.held(np.abs(goal_TJ - command_TJ) > ECHO_RAD, ECHO_TICKS * spec.dt_s)
    for j in np.flatnonzero(wrong_J):
        detail = f"holds goal {goal_TJ[-1, j]:.3f} rad where {command_TJ[-1, j]:.3f} was written"
        yield _fault(FaultCode.GOAL_NOT_TAKEN, detail, history, spec, j)


def torque_lost(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """A joint that is being commanded reports torque off: it was rebooted, or it protects itself."""
    off_J = (history.last("torque")[-1] == 0.0) & ~np.isnan(history.last("command")[-1])
    for j in np.flatnonzero(off_J):
        yield _fault(FaultCode.TORQUE_LOST, "torque is off: supply dip, or its own protection", history, spec, j)


def temperature(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """Warm, or too hot."""
    celsius_J = history.last("temperature")[-1]
    for j in np.flatnonzero(celsius_J >= spec.ratings.warm_c):
        hot = celsius_J[j] >= spec.ratings.hot_c
        detail = f"{celsius_J[j]:.0f} C, limit {spec.ratings.hot_c:.0f} C"
        yield _fault(FaultCode.OVER_TEMPERATURE if hot else FaultCode.WARM, detail, history, spec, j)


def voltage(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """The supply is outside 85 to 115 % for 200 ms."""
    volts_TJ = history.last("voltage", round(VOLTAGE_S / spec.dt_s))
    nominal_J = np.broadcast_to(np.asarray(spec.ratings.nominal_v, np.float64), volts_TJ.shape[1])
    low_J, high_J = (share * nominal_J for share in VOLTAGE_BAND)
    for j in np.flatnonzero(history.held((volts_TJ < low_J) | (volts_TJ > high_J), VOLTAGE_S)):
        detail = f"supply is {volts_TJ[-1, j]:.1f} V, expected {low_J[j]:.1f} to {high_J[j]:.1f} V"
        yield _fault(FaultCode.VOLTAGE, detail, history, spec, j)


def stall(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """Much current and no arrival for half a second: something is in the way."""
    if isnan(spec.ratings.stall_a):
        return
    ticks = round(STALL_S / spec.dt_s)
    error_TJ = np.abs(history.last("command", ticks) - history.last("q", ticks))
    ampere_TJ = np.abs(history.last("current", ticks))
    for j in np.flatnonzero(history.held((error_TJ > STALL_RAD) & (ampere_TJ > spec.ratings.stall_a), STALL_S)):
        detail = f"{ampere_TJ[-1, j]:.2f} A and {np.degrees(error_TJ[-1, j]):.1f} degrees short of its goal"
        yield _fault(FaultCode.STALL, detail, history, spec, j)


def tracking(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """An arm joint is more than 10 degrees from its command for 0.3 s. A gripper that holds something may be."""
    ticks = round(TRACKING_S / spec.dt_s)
    error_TJ = np.abs(history.last("command", ticks) - history.last("q", ticks))
    for j in np.flatnonzero(history.held(error_TJ > TRACKING_RAD, TRACKING_S)):
        if j != spec.gripper_index:
            detail = f"{np.degrees(error_TJ[-1, j]):.1f} degrees from its command for {TRACKING_S} s"
            yield _fault(FaultCode.TRACKING, detail, history, spec, j)


def jump(history: History, spec: ArmSpec) -> Iterator[Fault]:
    """A position that the joint cannot have reached."""
    if len(history) < 2:
        return
    q_2J, age_2J = history.last("q", 2), history.last("age", 2)
    fresh_J = age_2J[1] == 0.0
    for j in np.flatnonzero(jumped(q_2J[0], q_2J[1], history.passed_s + age_2J[0], spec) & fresh_J):
        detail = f"position went from {q_2J[0, j]:.3f} to {q_2J[1, j]:.3f} rad between two readings"
        yield _fault(FaultCode.ENCODER_JUMP, detail, history, spec, j)


def jumped(before_J: Array, q_J: Array, passed_s: float | Array, spec: ArmSpec) -> NDArray[np.bool_]:
    """(J,) True where a position is too far from the one before to be believed; drivers gate their readings with it."""
    most_J = np.maximum(JUMP_FACTOR * spec.velocity_J * passed_s, JUMP_RAD)
    return ~(np.abs(q_J - before_J) <= most_J)


def derating(temperature_J: Array, ratings: Ratings) -> float:
    """Share of the speed: 1 up to `derate_c`, down to a quarter at `hot_c`. Unmeasured joints count as cool."""
    warmest_c = float(np.nanmax(temperature_J, initial=-273.0))
    over = (warmest_c - ratings.derate_c) / (ratings.hot_c - ratings.derate_c)
    return float(1.0 - (1.0 - COOLEST_SHARE) * min(max(over, 0.0), 1.0))


def overrun(passed_s: float, dt_s: float, now_s: float) -> Fault | None:
    """A tick that began late: beyond five ticks a warning, beyond twenty a stop."""
    late = passed_s / dt_s - 1.0
    if late <= OVERRUN_TICKS:
        return None
    code = FaultCode.OVERRUN_LONG if late > OVERRUN_LONG_TICKS else FaultCode.OVERRUN
    return fault(code, f"a tick began {1e3 * (passed_s - dt_s):.0f} ms late, {late:.0f} ticks", now_s)


def _fault(code: FaultCode, detail: str, history: History, spec: ArmSpec, joint: int | np.intp | None = None) -> Fault:
    return fault(code, detail, history.time_s, None if joint is None else spec.names[joint])


RULES: tuple[Rule, ...] = (silent, noisy, goal_not_taken, torque_lost, temperature, voltage, stall, tracking, jump)
