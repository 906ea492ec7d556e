"""The last stage before the wire, in hardware and in simulation: a wanted position in, a safe command out.

    each joint   finite, soft limits, speed that can still be stopped, velocity, acceleration, jerk   (`limiter.py`)
    soft caps    speed of the tool, slow-down near obstacles, heat
    whole arm    the posture in which it would come to rest keeps its distance                        (`Scene`)

What is special: a pure function of (state, setpoint, derating). The state is the commanded motion, not the measured
one, plus a stop for each joint that ends inside the limits; a tick that cannot be stopped in time, or whose stop
would end too near an obstacle, is replaced by the next tick of the stops held. `hold` plays those stops: the
protective stop needs no planning at the moment when it is needed.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from real_robot.core.braking import Bounds
from real_robot.core.limiter import JointMotion, advance, brake, stop_way
from real_robot.core.types import ArmSpec, Array, JointCommand, Verdict
from vla.core.errors import NonFiniteError, SpecMismatchError

_CREEP = 0.1  # share of the speed that is left at the edge of the slow-down band
_SWEEP = 0.15  # [rad] between two postures that are looked at along a stop
_CAP = int(Verdict.TCP_SPEED)


class Scene(Protocol):
    """What the filter asks about geometry. Distances in metres, negative when overlapping."""

    @property
    def stop_m(self) -> float:
        """The arm must not come to rest nearer than this."""
        ...

    @property
    def slow_m(self) -> float:
        """Speed falls from here on."""
        ...

    def clearance(self, q_J: Array) -> float:
        """Smallest distance between links, to the table and to the walls of the workspace."""
        ...

    def tcp_speed(self, q_J: Array, dq_J: Array) -> float:
        """Speed of the tool point [m/s]."""
        ...


@dataclass(frozen=True, kw_only=True)
class FilterState:
    """The commanded motion of each joint, and the clearance where it would come to rest [m]."""

    joints: tuple[JointMotion, ...]
    clearance_m: float = np.inf

    @property
    def q_J(self) -> Array:
        return np.array([joint.p for joint in self.joints])

    @property
    def dq_J(self) -> Array:
        return np.array([joint.v for joint in self.joints])

    @property
    def at_rest(self) -> bool:
        return all(joint.v == 0.0 and joint.a == 0.0 for joint in self.joints)


@dataclass(frozen=True, kw_only=True, eq=False)
class Filtered:
    """One tick: the new state, what goes out, what was asked for, and the rules that spoke, for each joint."""

    state: FilterState
    command: JointCommand
    requested_J: Array
    verdict_J: tuple[int, ...]


class Filter:
    """The safety filter of one arm. It has no state of its own; keep `FilterState` and hand it back.

    Args:
        spec: limits and tick.
        scene: geometry; None leaves obstacles out and bounds the tool's speed by the joints' levers.
    """

    def __init__(self, spec: ArmSpec, scene: Scene | None = None) -> None:
        self.spec, self.scene = spec, scene
        self._bounds = tuple(
            Bounds(
                low=joint.soft_low,
                high=joint.soft_high,
                velocity=joint.max_velocity,
                acceleration=joint.max_acceleration,
                jerk=joint.max_jerk,
                dt_s=spec.dt_s,
            )
            for joint in spec.joints
        )
        self._speeds = [joint.max_velocity for joint in spec.joints]
        self._levers = [joint.lever_m for joint in spec.joints]

    def rest(self, q_J: Array) -> FilterState:
        """Standing still at `q_J`: goal := present. Raises NonFiniteError, SpecMismatchError."""
        q_J = np.asarray(q_J, np.float64)
        if q_J.shape != (len(self._bounds),):
            raise SpecMismatchError(f"q_J has shape {q_J.shape}, expected ({len(self._bounds)},)")
        if not np.isfinite(q_J).all():
            raise NonFiniteError(f"q_J is not finite: {q_J}")
        clearance_m = self.scene.clearance(q_J) if self.scene else np.inf
        return FilterState(joints=tuple(JointMotion(p) for p in q_J.tolist()), clearance_m=clearance_m)

    def step(self, state: FilterState, setpoint_J: Array, *, time_s: float = 0.0, derate: float = 1.0) -> Filtered:
        """One tick towards `setpoint_J`; anything may stand in it.

        Args:
            state: of the tick before.
            setpoint_J: (J,) wanted positions; a joint whose entry is not finite brakes.
            time_s: stamped on the command.
            derate: share of the full speed, 0 to 1, for instance when servos are hot.
        """
        wanted = setpoint_J.tolist()
        cap_J, caps = self._caps(state, wanted, derate)
        moved = [
            advance(joint, target, cap, bounds)
            for joint, target, cap, bounds in zip(state.joints, wanted, cap_J, self._bounds, strict=True)
        ]
        after = FilterState(joints=tuple(joint for joint, _ in moved))
        verdict_J = tuple(verdict | caps if verdict & Verdict.VELOCITY else verdict for _, verdict in moved)
        if self.scene is not None:
            clearance_m = self._clearance_of_stop(after)
            if clearance_m < self.scene.stop_m and clearance_m <= state.clearance_m:
                after = self._brake(state)
                verdict_J = tuple(verdict | Verdict.COLLISION for verdict in verdict_J)
            else:
                after = replace(after, clearance_m=clearance_m)
        return self._filtered(after, setpoint_J, verdict_J, time_s)

    def hold(self, state: FilterState, *, time_s: float = 0.0, give_way_J: Array | None = None) -> Filtered:
        """One tick of the stop that the arm holds; at rest it stays where it was commanded to be.

        Args:
            state: of the tick before.
            time_s: stamped on the command.
            give_way_J: (J,) where joints are whose goal shall come to them, within the bounds; NaN for the others.
        """
        after = self._brake(state)
        if give_way_J is not None:
            joints = tuple(
                joint if back != back else advance(before, back, bounds.velocity, bounds)[0]
                for joint, before, back, bounds in zip(
                    after.joints, state.joints, give_way_J.tolist(), self._bounds, strict=True
                )
            )
            after = replace(after, joints=joints)
        verdict_J = (int(Verdict.NONE if state.at_rest else Verdict.BRAKING),) * len(self._bounds)
        return self._filtered(after, after.q_J, verdict_J, time_s)

    def _brake(self, state: FilterState) -> FilterState:
        joints = tuple(brake(joint, bounds) for joint, bounds in zip(state.joints, self._bounds, strict=True))
        return FilterState(joints=joints, clearance_m=state.clearance_m)

    def _filtered(self, after: FilterState, requested_J: Array, verdict_J: tuple[int, ...], time_s: float) -> Filtered:
        total = 0
        for verdict in verdict_J:
            total |= verdict
        command = JointCommand(time_s=time_s, q_J=after.q_J, dq_J=after.dq_J, verdict=Verdict(total))
        return Filtered(state=after, command=command, requested_J=requested_J, verdict_J=verdict_J)

    def _caps(self, state: FilterState, wanted: list[float], derate: float) -> tuple[list[float], int]:
        """Speed cap of each joint, and which rules lowered it."""
        spec, share, rules = self.spec, 1.0, 0
        if not derate >= 1.0:  # also for NaN
            share, rules = max(derate, 0.0) if derate == derate else 0.0, int(Verdict.DERATED)
        if self.scene is not None and state.clearance_m < self.scene.slow_m:
            band_m = self.scene.slow_m - self.scene.stop_m
            share *= min(max((state.clearance_m - self.scene.stop_m) / band_m, _CREEP), 1.0)
            rules |= int(Verdict.COLLISION)
        if spec.max_tcp_speed_m_s is None:
            return (self._speeds if share == 1.0 else [share * speed for speed in self._speeds]), rules
        speeds = [
            _speed((target - joint.p) / spec.dt_s, most)
            for joint, target, most in zip(state.joints, wanted, self._speeds, strict=True)
        ]
        if self.scene is None:
            tcp_m_s = sum([abs(speed) * lever_m for speed, lever_m in zip(speeds, self._levers, strict=True)])
        else:
            tcp_m_s = self.scene.tcp_speed(state.q_J, np.array(speeds))
        if tcp_m_s * share > spec.max_tcp_speed_m_s:
            share = spec.max_tcp_speed_m_s / tcp_m_s
            rest_m_s = sum(  # of joints that are still slowing down: the others wait for them
                [
                    max(0.0, abs(joint.v) - share * abs(speed)) * lever_m
                    for joint, speed, lever_m in zip(state.joints, speeds, self._levers, strict=True)
                ]
            )
            share *= max(0.0, 1.0 - rest_m_s / spec.max_tcp_speed_m_s)
            return [share * abs(speed) for speed in speeds], rules | _CAP
        return [share * speed for speed in self._speeds], rules

    def _clearance_of_stop(self, state: FilterState) -> float:
        """Smallest clearance along the stop: at its end, and in between where it is long."""
        assert self.scene is not None
        way_J = np.array([stop_way(joint, bounds) for joint, bounds in zip(state.joints, self._bounds, strict=True)])
        q_J, pieces = state.q_J, 1 + int(np.abs(way_J).max() / _SWEEP)
        return min(self.scene.clearance(q_J + way_J * (i / pieces)) for i in range(1, pieces + 1))


def _speed(wanted: float, most: float) -> float:
    """`wanted` within +-most; 0 where it is not a number."""
    return (most if wanted > most else max(wanted, -most)) if wanted == wanted else 0.0
