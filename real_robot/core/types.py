"""What the parts of the robot daemon hand to each other. SI units, frozen, keyword-only.

Letters in array names: J joints of an arm (gripper included), N joints without the gripper, H setpoints of a chunk.
All times are seconds of one monotonic clock (`Clock.now`); wall-clock time appears nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from real_robot.core.faults import Fault
from vla.core.errors import unknown_name

type Array = NDArray[np.float64]


class Verdict(IntFlag):
    """Which rules changed a setpoint on its way to the arm."""

    NONE = 0
    NON_FINITE = 1
    POSITION = 2
    VELOCITY = 4
    ACCELERATION = 8
    JERK = 16
    TCP_SPEED = 32
    COLLISION = 64  # also the table and the walls of the workspace
    DERATED = 128
    BRAKING = 256  # the joint plays the stop that it holds


class StopKind(StrEnum):
    """Stops that an arm's own electronics can do; `Arm.stop` takes those in `ArmSpec.stop_kinds`."""

    HOLD = "hold"  # stand still, torque on
    DAMP = "damp"  # resist, do not hold
    RELEASE = "release"  # torque off


@dataclass(frozen=True, kw_only=True)
class JointSpec:
    """One joint: rad, rad/s, ..., N m; metres and newtons for a slider.

    low, high  mechanical or calibrated limits; the filter keeps `margin` away from them
    lever_m    largest distance of the tool point from the axis [m]; 0 for the gripper
    """

    name: str
    low: float
    high: float
    margin: float
    max_velocity: float
    max_acceleration: float
    max_jerk: float
    max_effort: float
    lever_m: float = 0.0

    def __post_init__(self) -> None:
        if not self.low + self.margin < self.high - self.margin:
            raise ValueError(f"joint '{self.name}': low {self.low} + margin {self.margin} reaches high {self.high}")
        for bound in ("max_velocity", "max_acceleration", "max_jerk", "max_effort"):
            if not getattr(self, bound) > 0:
                raise ValueError(f"joint '{self.name}': {bound} is {getattr(self, bound)}, expected a positive number")

    @property
    def soft_low(self) -> float:
        return self.low + self.margin

    @property
    def soft_high(self) -> float:
        return self.high - self.margin


@dataclass(frozen=True, kw_only=True)
class Gripper:
    """The joint that grips. `grip_margin`: how far the goal stays ahead of a gripped object [rad or m]."""

    joint: str
    closed: float
    open: float
    grip_margin: float


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """What the servos stand. Temperatures [C], voltage [V], current [A]; NaN current: not measured.

    nominal_v  of the supply; one value for each joint where they differ
    """

    warm_c: float = 55.0
    derate_c: float = 60.0
    hot_c: float = 65.0
    nominal_v: float | tuple[float, ...] = 12.0
    stall_a: float = 0.6


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """One arm: the only place for its joints, limits and rates.

    control_hz         ticks per second of read, filter, write
    brakes             it stays up without torque
    native_watchdog    it stops by itself when the host falls silent
    stop_kinds         what `Arm.stop` accepts
    max_tcp_speed_m_s  soft cap on the tool point's speed; None: joint speeds alone. 0.25 is reduced speed (ISO 10218)
    park               joint positions in which it may lose torque, or None
    mjcf, mjcf_joints  model for collisions, and the model's joint of each of ours
    """

    name: str
    joints: tuple[JointSpec, ...]
    control_hz: float
    gripper: Gripper | None = None
    brakes: bool = False
    native_watchdog: bool = False
    stop_kinds: frozenset[StopKind] = frozenset({StopKind.HOLD, StopKind.RELEASE})
    max_tcp_speed_m_s: float | None = None
    ratings: Ratings = Ratings()
    park: tuple[float, ...] | None = None
    mjcf: Path | None = None
    mjcf_joints: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gripper is not None and self.gripper.joint not in self.names:
            raise unknown_name("joint", self.gripper.joint, self.names)
        if self.park is not None and len(self.park) != len(self.joints):
            raise ValueError(f"park has {len(self.park)} positions for {len(self.joints)} joints")

    @property
    def dt_s(self) -> float:
        return 1.0 / self.control_hz

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(joint.name for joint in self.joints)

    @cached_property
    def gripper_index(self) -> int | None:
        return None if self.gripper is None else self.names.index(self.gripper.joint)

    @cached_property
    def arm_N(self) -> NDArray[np.intp]:
        """Indices of the joints that are not the gripper."""
        return np.array([i for i in range(len(self.joints)) if i != self.gripper_index], np.intp)

    @cached_property
    def low_J(self) -> Array:
        """Soft limits: what is commanded stays within [low_J, high_J]."""
        return np.array([joint.soft_low for joint in self.joints])

    @cached_property
    def high_J(self) -> Array:
        return np.array([joint.soft_high for joint in self.joints])

    @cached_property
    def velocity_J(self) -> Array:
        return np.array([joint.max_velocity for joint in self.joints])

    @cached_property
    def acceleration_J(self) -> Array:
        return np.array([joint.max_acceleration for joint in self.joints])


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmState:
    """One reading of an arm. NaN where a device does not measure.

    q_J, dq_J      (J,) position and velocity
    effort_J       (J,) torque, or the share of full torque that the servo reports
    current_J      (J,) [A]
    temperature_J  (J,) [C]
    voltage_J      (J,) [V]
    goal_J         (J,) goal position as the servo holds it: the echo of what was written; NaN where unknown
    torque_on_J    (J,) bool
    status_J       (J,) int, the device's own error bits; 0 is well
    age_J          (J,) time since this joint last answered [s]: 0 is fresh, and old values are never passed as fresh
    """

    time_s: float
    q_J: Array
    dq_J: Array
    effort_J: Array
    current_J: Array
    temperature_J: Array
    voltage_J: Array
    goal_J: Array
    torque_on_J: NDArray[np.bool_]
    status_J: NDArray[np.int64]
    age_J: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class JointCommand:
    """What goes to the arm this tick: positions within the soft limits, speeds on the way, what the filter did."""

    time_s: float
    q_J: Array
    dq_J: Array
    verdict: Verdict = Verdict.NONE


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Timed setpoints: q_HN[i] and gripper_H[i] are due at t_obs_s + (i + 1) dt_s.

    session, seq   who sends, and a number that grows: old sessions and replays are refused
    t_obs_s        when its newest picture was taken, on the daemon's clock
    gripper_H      (H,) goal of the gripper's joint; None leaves it where it is
    valid_until_s  setpoints due later are not played
    """

    session: str
    seq: int
    t_obs_s: float
    dt_s: float
    q_HN: NDArray[np.floating]
    gripper_H: NDArray[np.floating] | None = None
    valid_until_s: float = np.inf
    meta: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Clock(Protocol):
    """Monotonic time, real or virtual."""

    def now(self) -> float: ...

    def sleep_until(self, time_s: float) -> None: ...


class Arm(Protocol):
    """A driver. It moves only on `write`; `connect` and `enable` leave the arm where it is (goal := present first)."""

    @property
    def spec(self) -> ArmSpec: ...

    def connect(self) -> None:
        """Opens, identifies, compares calibration, writes resident limits; no torque."""
        ...

    def enable(self) -> None:
        """Torque on, without a jump. Raises when the servos do not confirm it."""
        ...

    def read(self) -> ArmState: ...

    def write(self, command: JointCommand) -> None: ...

    def stop(self, kind: StopKind) -> None:
        """The device's own stop, for all joints, errors gathered: never gives up at the first one."""
        ...

    def faults(self) -> tuple[Fault, ...]:
        """What the device itself reports now."""
        ...

    def clear(self) -> None:
        """Clears device errors after an operator's reset; never moves and never enables torque."""
        ...

    def disconnect(self) -> None: ...


class Source(Protocol):
    """What drives an arm: a policy's chunks, teleoperation, a replay, a script."""

    def next(self, state: ArmState) -> Chunk | None:
        """New setpoints, or None when it has none this tick."""
        ...

    def on_event(self, event: str) -> None:
        """'active', 'paused', 'fault', 'released': what the supervisor did."""
        ...
