"""Moves from rest to rest: alignment before the first chunk, parking. Slow, jerk-limited, looked at before they begin.

Ruckig computes the motion state to state. Waypoints are never passed to it: its community build would send them to a
server on the internet.
"""

from dataclasses import dataclass

import numpy as np
import ruckig

from real_robot.core.faults import RefusedError
from real_robot.core.filter import Scene
from real_robot.core.types import ArmSpec, Array
from vla.core.errors import NonFiniteError

ALIGN_SPEED = 0.3  # [rad/s or m/s], of the fastest joint
ALIGN_RAD = 0.1  # a first setpoint within this needs no alignment
_SHARE = 0.2  # of the joints' acceleration and jerk
_LOOK_RAD = 0.05  # between two postures that are looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """Positions (T, J) of a move at the arm's ticks, the first one tick after its start, the last one its goal."""

    q_TJ: Array
    start_s: float
    dt_s: float

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.q_TJ) * self.dt_s

    def at(self, now_s: float) -> Array:
        """The position (J,) due at `now_s`."""
        tick = round((now_s - self.start_s) / self.dt_s) - 1
        return self.q_TJ[min(max(tick, 0), len(self.q_TJ) - 1)]


def needs_alignment(here_J: Array, first_J: Array) -> bool:
    """True when a first setpoint is too far away to be started from."""
    return not bool((np.abs(first_J - here_J) <= ALIGN_RAD).all())


def plan_move(
    spec: ArmSpec,
    here_J: Array,
    goal_J: Array,
    start_s: float,
    *,
    speed: float = ALIGN_SPEED,
    scene: Scene | None = None,
) -> Move:
    """A move from rest at `here_J` to rest at `goal_J`, all joints arriving together.

    Raises:
        NonFiniteError: an end is not finite.
        RefusedError: the goal is outside the soft limits, or the way comes nearer to something than the arm may rest.
    """
    here_J, goal_J = np.asarray(here_J, np.float64), np.asarray(goal_J, np.float64)
    if not (np.isfinite(here_J).all() and np.isfinite(goal_J).all()):
        raise NonFiniteError(f"move from {here_J} to {goal_J}: not finite")
    outside = [name for name, q, low, high in zip(spec.names, goal_J, spec.low_J, spec.high_J) if not low <= q <= high]
    if outside:
        raise RefusedError(f"move: the goal of {outside} is outside the soft limits")
    move = Move(q_TJ=_positions(spec, here_J, goal_J, speed), start_s=start_s, dt_s=spec.dt_s)
    if scene is not None:
        _look(move, here_J, scene)
    return move


def _positions(spec: ArmSpec, here_J: Array, goal_J: Array, speed: float) -> Array:
    joints = len(spec.joints)
    asked = ruckig.InputParameter(joints)
    asked.current_position, asked.target_position = here_J.tolist(), goal_J.tolist()
    asked.max_velocity = np.minimum(spec.velocity_J, speed).tolist()
    asked.max_acceleration = (_SHARE * spec.acceleration_J).tolist()
    asked.max_jerk = [_SHARE * joint.max_jerk for joint in spec.joints]
    trajectory = ruckig.Trajectory(joints)
    result = ruckig.Ruckig(joints).calculate(asked, trajectory)
    if result < 0:
        raise RefusedError(f"move: no motion from {here_J} to {goal_J} ({result})")
    ticks = max(1, int(np.ceil(trajectory.duration / spec.dt_s - 1e-9)))
    q_TJ = np.array([trajectory.at_time(min(t * spec.dt_s, trajectory.duration))[0] for t in range(1, ticks + 1)])
    q_TJ[-1] = goal_J
    return q_TJ


def _look(move: Move, here_J: Array, scene: Scene) -> None:
    """Raises RefusedError where the way comes too near; one that starts too near may only get better."""
    step_rad = float(np.abs(np.diff(move.q_TJ, axis=0)).max()) if len(move.q_TJ) > 1 else 0.0
    stride = max(1, int(_LOOK_RAD / step_rad)) if step_rad > 0.0 else len(move.q_TJ)
    least_m = min(scene.stop_m, scene.clearance(here_J))
    for tick in [*range(0, len(move.q_TJ), stride), len(move.q_TJ) - 1]:
        clearance_m = scene.clearance(move.q_TJ[tick])
        if clearance_m < least_m:
            at_s = (tick + 1) * move.dt_s
            raise RefusedError(f"move: clearance falls to {1e3 * clearance_m:.0f} mm after {at_s:.1f} s")
