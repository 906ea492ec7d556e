"""Chunks on the daemon's clock: which position is due now, whatever came late, twice or not at all.

Setpoint i of a chunk is due at t_obs + (i + 1) dt. Nobody estimates a latency: what is overdue is dropped, what is not
replaces the old tail. Between setpoints runs a cubic Hermite spline with finite-difference velocities (C1; the next
setpoint is known, so nothing is delayed). At a switch the difference to the old reference (position and velocity)
fades out along a quintic over max(2 dt, 60 ms). The gripper runs apart, linearly, so that it never
overshoots its setpoints.

What is special: the end of what is known is a stop that is planned from the start. Playing time runs at a rate of 1
and falls towards the end of the tail just fast enough that the arm rests on the last setpoint, on the policy's own
path, with half of its acceleration. A tail that is replaced in time is never slowed.
"""

import math
from dataclasses import dataclass

import numpy as np

from real_robot.core.braking import stoppable_speed
from real_robot.core.types import ArmSpec, Array, Chunk
from vla.core.errors import SpecMismatchError

MIN_BLEND_S = 0.06
_BRAKE_SHARE = 0.5  # of the acceleration; the rest is left to the path's own curvature
_END_S = 1e-6  # what is left of a tail counts as nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Setpoint:
    """The reference of one instant.

    q_J        (J,) positions
    dq_J       (J,) velocities, those of the gripper zero
    starved_s  time since the last setpoint was due; 0 while there are more
    resting    the tail is played out
    """

    q_J: Array
    dq_J: Array
    starved_s: float
    resting: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tail:
    """What is still to be played: knots in time (K,), positions and velocities (K, N), the gripper's goals (K,)."""

    t_K: Array
    q_KN: Array
    v_KN: Array
    gripper_K: Array | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Blend:
    """A difference that fades out: coefficients (6, N) of a quintic in the share of `length_s` since `start_s`."""

    start_s: float
    length_s: float
    c_6N: Array

    def at(self, now_s: float) -> tuple[Array, Array]:
        u = (now_s - self.start_s) / self.length_s
        if u >= 1.0:
            zero_N = np.zeros(self.c_6N.shape[1])
            return zero_N, zero_N
        power_6 = u ** np.arange(6)
        slope_6 = np.r_[0.0, np.arange(1, 6) * power_6[:5]] / self.length_s
        return power_6 @ self.c_6N, slope_6 @ self.c_6N


class Timeline:
    """The setpoints of one arm. `reset` at rest, `push` chunks as they come, `sample` once per tick."""

    def __init__(self, spec: ArmSpec) -> None:
        self._spec = spec
        self._arm_N = spec.arm_N
        self._gripper = spec.gripper_index
        self._q_J = np.zeros(len(spec.joints))
        self._v_N = np.zeros(len(spec.arm_N))
        self._tail: _Tail | None = None
        self._blend: _Blend | None = None
        self._at_s = self._now_s = 0.0  # playing time, and the clock's, of the last sample
        self._rate = 1.0

    def reset(self, q_J: Array, now_s: float) -> None:
        """Forgets every chunk and stands still at `q_J`."""
        self._q_J = np.array(q_J, np.float64)
        self._v_N = np.zeros(len(self._arm_N))
        self._tail = self._blend = None
        self._at_s = self._now_s = now_s
        self._rate = 1.0

    @property
    def end_s(self) -> float:
        """When the last known setpoint is due; -inf without one."""
        return -math.inf if self._tail is None else float(self._tail.t_K[-1])

    def push(self, chunk: Chunk, now_s: float) -> int:
        """Takes a chunk's setpoints from the first one that is not overdue; the old tail goes.

        Returns how many were dropped as overdue. If all of them were, the old tail stays.
        """
        q_HN = np.asarray(chunk.q_HN, np.float64)
        if q_HN.ndim != 2 or q_HN.shape[1] != len(self._arm_N) or not len(q_HN):
            raise SpecMismatchError(f"q_HN has shape {q_HN.shape}, expected (H, {len(self._arm_N)}) with H >= 1")
        due_H = chunk.t_obs_s + chunk.dt_s * np.arange(1, len(q_HN) + 1, dtype=np.float64)
        known = int(np.searchsorted(due_H, chunk.valid_until_s, side="right"))
        late = int(np.searchsorted(due_H[:known], now_s, side="right"))
        if late == known:
            return late
        self.sample(now_s)  # the old reference at the moment of the switch
        self._replace(chunk, q_HN[:known], due_H[:known], late, now_s)
        return late

    def sample(self, now_s: float) -> Setpoint:
        """The reference at `now_s`, which must not go back. Slows towards the end of what is known."""
        passed_s = max(0.0, now_s - self._now_s)
        self._now_s = now_s
        tail = self._tail
        if tail is None:
            return Setpoint(q_J=self._q_J.copy(), dq_J=np.zeros_like(self._q_J), starved_s=0.0, resting=True)
        left_s = self.end_s - self._at_s
        if passed_s > 0.0:
            self._rate = min(1.0, stoppable_speed(left_s, self._rate_per_s(tail), passed_s))
        self._at_s = min(self._at_s + self._rate * passed_s, self.end_s)
        resting = self.end_s - self._at_s <= _END_S
        q_N, v_N = _hermite(tail, self._at_s)
        v_N = np.zeros_like(v_N) if resting else self._rate * v_N
        if self._blend is not None:
            off_N, off_v_N = self._blend.at(now_s)
            q_N, v_N = q_N + off_N, v_N + off_v_N
            if now_s >= self._blend.start_s + self._blend.length_s:
                self._blend = None
            resting = resting and self._blend is None
        self._v_N = v_N
        self._q_J[self._arm_N] = q_N
        if self._gripper is not None and tail.gripper_K is not None:
            self._q_J[self._gripper] = np.interp(self._at_s, tail.t_K, tail.gripper_K)
        dq_J = np.zeros_like(self._q_J)
        dq_J[self._arm_N] = v_N
        starved_s = max(0.0, now_s - self.end_s)
        return Setpoint(q_J=self._q_J.copy(), dq_J=dq_J, starved_s=starved_s, resting=resting)

    def _replace(self, chunk: Chunk, q_HN: Array, due_H: Array, late: int, now_s: float) -> None:
        """Switches to the new tail; a knot one step before its first setpoint gives the spline a left end."""
        here_N = self._q_J[self._arm_N].copy()
        before_N = 2.0 * q_HN[0] - q_HN[1] if len(q_HN) > 1 else here_N
        t_K, q_KN = np.r_[due_H[0] - chunk.dt_s, due_H], np.vstack([before_N, q_HN])
        gripper_K = None
        if chunk.gripper_H is not None and self._gripper is not None:
            gripper_K = np.r_[self._q_J[self._gripper], np.asarray(chunk.gripper_H, np.float64)[: len(due_H)]]
        first = max(0, late - 1)  # of the knots that are over only the two that the present slope needs
        self._tail = _Tail(
            t_K=t_K[first:],
            q_KN=q_KN[first:],
            v_KN=_slopes(t_K, q_KN)[first:],
            gripper_K=None if gripper_K is None else gripper_K[first:],
        )
        self._at_s, self._rate = now_s, 1.0
        q_N, v_N = _hermite(self._tail, now_s)
        self._blend = _fade(here_N - q_N, self._v_N - v_N, now_s, max(2.0 * chunk.dt_s, MIN_BLEND_S))

    def _rate_per_s(self, tail: _Tail) -> float:
        """How fast the playing rate may fall: the fastest joint of the tail then brakes with its share."""
        fastest_N = np.abs(tail.v_KN).max(axis=0)
        room_N = _BRAKE_SHARE * self._spec.acceleration_J[self._arm_N]
        return float(np.min(room_N / np.maximum(fastest_N, 1e-3)))


def _slopes(t_K: Array, q_KN: Array) -> Array:
    """Finite-difference velocities at two or more knots: central inside, one-sided at the ends."""
    step_KN = np.diff(q_KN, axis=0) / np.diff(t_K)[:, None]
    inside = 0.5 * (step_KN[:-1] + step_KN[1:])
    return np.vstack([step_KN[:1], inside, step_KN[-1:]])


def _hermite(tail: _Tail, at_s: float) -> tuple[Array, Array]:
    """Position and velocity (N,) of the cubic Hermite spline; before and after its knots those of the ends."""
    t_K = tail.t_K
    k = min(max(int(np.searchsorted(t_K, at_s, side="right")) - 1, 0), len(t_K) - 2)
    h = float(t_K[k + 1] - t_K[k])
    u = min(max((at_s - float(t_K[k])) / h, 0.0), 1.0)
    q0, q1, v0, v1 = tail.q_KN[k], tail.q_KN[k + 1], tail.v_KN[k] * h, tail.v_KN[k + 1] * h
    q = q0 + u * (v0 + u * (3.0 * (q1 - q0) - 2.0 * v0 - v1 + u * (2.0 * (q0 - q1) + v0 + v1)))
    v = v0 + u * (2.0 * (3.0 * (q1 - q0) - 2.0 * v0 - v1) + u * 3.0 * (2.0 * (q0 - q1) + v0 + v1))
    return q, v / h


def _fade(off_N: Array, off_v_N: Array, start_s: float, length_s: float) -> _Blend:
    """The quintic from an offset that changes at `off_v_N`, unaccelerated, to nothing, at rest."""
    p, v, zero_N = off_N, off_v_N * length_s, np.zeros_like(off_N)
    c_6N = np.stack([p, v, zero_N, -10 * p - 6 * v, 15 * p + 8 * v, -6 * p - 3 * v])
    return _Blend(start_s=start_s, length_s=length_s, c_6N=c_6N)
