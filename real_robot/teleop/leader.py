"""A leader arm: what a hand does to it, the follower does.

What is special: the clutch. Nothing follows until `engage`; a leader that is lost, silent or jumps disengages itself,
and so does everything that stops the follower. `relative` takes the follower on from where it stands; otherwise it goes
to the leader's posture, which the controller allows only from near by or after a slow, confirmed move.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from real_robot.core.types import Arm, ArmSpec, ArmState, Array, Chunk
from real_robot.drivers.errors import BusError
from real_robot.errors import LinkLost
from real_robot.teleop.stream import Stream
from vla.core.errors import unknown_name

SILENT_S = 0.1
JUMP_RAD, JUMP_SPEED = 0.15, 2.0  # a step beyond 0.15 rad and twice the leader's speed is no motion of a hand


@dataclass(frozen=True, kw_only=True, eq=False)
class JointMap:
    """Follower's position j = scale_J[j] * leader's position index_J[j] + offset_J[j]."""

    index_J: NDArray[np.intp]
    scale_J: Array
    offset_J: Array

    def __call__(self, leader_q: Array) -> Array:
        return self.scale_J * leader_q[self.index_J] + self.offset_J


def same_names(leader: ArmSpec, follower: ArmSpec) -> JointMap:
    """Joints of one name go together; the grippers' travels are mapped, closed to closed and open to open."""
    for name in follower.names:
        if name not in leader.names:
            raise unknown_name("joint of the leader", name, leader.names)
    index_J = np.array([leader.names.index(name) for name in follower.names], np.intp)
    scale_J, offset_J = np.ones(len(index_J)), np.zeros(len(index_J))
    if leader.gripper is not None and follower.gripper is not None and follower.gripper_index is not None:
        g, here, there = follower.gripper_index, leader.gripper, follower.gripper
        scale_J[g] = (there.open - there.closed) / (here.open - here.closed)
        offset_J[g] = there.closed - scale_J[g] * here.closed
    return JointMap(index_J=index_J, scale_J=scale_J, offset_J=offset_J)


class Leader:
    """See the module; a `Teleop`.

    Args:
        arm: the leader, connected and limp; only read.
        follower: specification of the arm that follows.
        joints: from the leader's joints to the follower's.
        session: named in its chunks.
        relative: motions are followed, not postures.
    """

    def __init__(
        self,
        arm: Arm,
        follower: ArmSpec,
        joints: JointMap,
        *,
        session: str = "leader",
        relative: bool = False,
    ) -> None:
        self._arm, self._joints, self._relative = arm, joints, relative
        self._follower, self._stream = follower, Stream(follower, session)
        self._before: tuple[float, Array] | None = None  # the last reading of the leader
        self._offset_J: Array | None = None
        self.engaged, self.trouble = False, ""

    @property
    def session(self) -> str:
        return self._stream.session

    def engage(self) -> None:
        """The clutch is pressed: from now on the follower follows."""
        self._before = self._offset_J = None
        self._stream.reset()
        self.engaged, self.trouble = True, ""

    def disengage(self) -> None:
        """The clutch is released: the follower stops within the last chunk."""
        self.engaged = False

    def next(self, state: ArmState) -> Chunk | None:
        if not self.engaged:
            return None
        leader_q = self._read()
        if leader_q is None:
            return None
        target_J = self._joints(leader_q)
        if self._offset_J is None:
            here_J = np.where(np.isfinite(state.goal_J), state.goal_J, state.q_J)
            self._offset_J = here_J - target_J if self._relative else np.zeros_like(target_J)
        # a hand may well lead beyond the follower's travel: it then stays at the limit
        target_J = np.clip(target_J + self._offset_J, self._follower.low_J, self._follower.high_J)
        return self._stream.send(target_J, state.time_s)

    def on_event(self, event: str) -> None:
        if event in ("paused", "fault", "released"):
            self.disengage()

    def _read(self) -> Array | None:
        """The leader's joints, or None once it cannot be believed."""
        try:
            state = self._arm.read()
        except (LinkLost, BusError) as error:
            return self._lost(f"the leader is lost ({error})")
        if not np.isfinite(state.q_J).all():
            return self._lost("the leader's position is not finite")
        oldest = int(np.argmax(state.age_J))
        if state.age_J[oldest] > SILENT_S:
            name = self._arm.spec.names[oldest]
            return self._lost(f"the leader's {name} has been silent for {1e3 * state.age_J[oldest]:.0f} ms")
        if self._before is not None:
            before_s, before_q = self._before
            most = np.maximum(JUMP_RAD, JUMP_SPEED * self._arm.spec.velocity_J * (state.time_s - before_s))
            step = np.abs(state.q_J - before_q)
            if (step > most).any():
                j = int(np.argmax(step / most))
                return self._lost(f"the leader's {self._arm.spec.names[j]} jumped by {step[j]:.2f} rad")
        self._before = (state.time_s, state.q_J)
        return state.q_J

    def _lost(self, why: str) -> None:
        self.trouble = why
        self.disengage()
