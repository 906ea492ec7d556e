"""The door for chunks: what is garbage does not become a motion.

A little too far or too fast is clamped and counted (the filter bounds speed); clearly too far is refused as a whole,
since clamped garbage still drives the arm to its limits. Refusals never end a connection; three chunks with numbers
that are not finite within ten seconds are a fault of the sender.
"""

from collections import Counter, deque
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.filter import Scene
from real_robot.core.types import ArmSpec, Array, Chunk

MAX_HORIZON = 1000
MAX_DT_S = 1.0
EARLY_S = 0.02  # a picture may seem to come from the future by so much
BEYOND_RAD, BEYOND_SHARE = 0.2, 0.1  # past a limit: clamped up to the larger of the two
SPEED_FACTOR = 2.0
LOOK_RAD = 0.05  # between two postures whose clearance is measured
NON_FINITE_COUNT, NON_FINITE_S = 3, 10.0


class Refusal(StrEnum):
    """Why a chunk was refused; a code for the sender."""

    SESSION = "session"
    SEQUENCE = "sequence"
    SHAPE = "shape"
    NON_FINITE = "non_finite"
    TIME = "time"
    POSITION = "position"
    SPEED = "speed"
    COLLISION = "collision"
    ALIGNMENT = "alignment"
    OVERDUE = "overdue"
    STATE = "state"


@dataclass(frozen=True, kw_only=True, eq=False)
class Admitted:
    """A chunk that may be played, clamped where it had to be; or None with the reason.

    clamped  numbers that were moved to a limit
    detail   the numbers, for the sender and the log
    """

    chunk: Chunk | None
    refusal: Refusal | None = None
    detail: str = ""
    clamped: int = 0
    fault: Fault | None = None


class Admission:
    """Checks the chunks of one arm. `open` names the session whose chunks are taken and since when.

    Args:
        spec: the arm.
        scene: geometry for the check along the chunk; None leaves it out.
    """

    def __init__(self, spec: ArmSpec, scene: Scene | None = None) -> None:
        self._spec, self._scene = spec, scene
        self._session: str | None = None
        self._after_s = -np.inf
        self._seq = -1
        self._non_finite: deque[float] = deque(maxlen=NON_FINITE_COUNT)
        self.counts: Counter[str] = Counter()

    @property
    def session(self) -> str | None:
        """Whose chunks are taken."""
        return self._session

    def open(self, session: str | None, now_s: float) -> None:
        """From now on only chunks of `session` (None: of nobody) whose picture is not older than `now_s`.

        Numbers go on within a session, so a chunk from before a break cannot be replayed after it.
        """
        if session != self._session:
            self._seq = -1
            self._non_finite.clear()
        self._session, self._after_s = session, now_s

    def admit(self, chunk: Chunk, now_s: float, q_J: Array) -> Admitted:
        """Checks a chunk. `q_J` is where the arm is commanded to be; the way to the first setpoint is not judged."""
        no = self._origin(chunk, now_s) or self._form(chunk, now_s) or self._motion(chunk, q_J)
        if no is not None:
            self.counts[str(no.refusal)] += 1
            return no
        self._seq = chunk.seq
        admitted = self._clamped(chunk)
        self.counts["admitted"] += 1
        self.counts["clamped"] += admitted.clamped
        return admitted

    def _origin(self, chunk: Chunk, now_s: float) -> Admitted | None:
        if self._session is None or chunk.session != self._session:
            return refused(Refusal.SESSION, f"session '{chunk.session}' does not drive this arm")
        if chunk.seq <= self._seq:
            return refused(Refusal.SEQUENCE, f"seq {chunk.seq} after {self._seq}: numbers must grow")
        if not np.isfinite(chunk.t_obs_s) or chunk.t_obs_s > now_s + EARLY_S:
            return refused(Refusal.TIME, f"t_obs_s is {chunk.t_obs_s}, now is {now_s}")
        if chunk.t_obs_s < self._after_s:
            return refused(Refusal.TIME, f"its picture is {self._after_s - chunk.t_obs_s:.3f} s older than the start")
        return None

    def _form(self, chunk: Chunk, now_s: float) -> Admitted | None:
        if not 0.0 < chunk.dt_s <= MAX_DT_S:  # also for NaN
            return refused(Refusal.TIME, f"dt_s is {chunk.dt_s}, expected up to {MAX_DT_S}")
        q_HN, width = chunk.q_HN, len(self._spec.arm_N)
        if not _floats(q_HN) or q_HN.ndim != 2 or q_HN.shape[1] != width or not 1 <= len(q_HN) <= MAX_HORIZON:
            return refused(Refusal.SHAPE, f"q_HN is {_described(q_HN)}, expected floats (1 to {MAX_HORIZON}, {width})")
        gripper_H = chunk.gripper_H
        if gripper_H is not None and (not _floats(gripper_H) or gripper_H.shape != (len(q_HN),)):
            return refused(Refusal.SHAPE, f"gripper_H is {_described(gripper_H)}, expected floats ({len(q_HN)},)")
        if gripper_H is not None and self._spec.gripper_index is None:
            return refused(Refusal.SHAPE, f"{self._spec.name} has no gripper")
        bad = int((~np.isfinite(q_HN)).sum()) + (0 if gripper_H is None else int((~np.isfinite(gripper_H)).sum()))
        if bad:
            return replace(
                refused(Refusal.NON_FINITE, f"{bad} numbers are not finite"), fault=self._count_non_finite(now_s)
            )
        return None

    def _count_non_finite(self, now_s: float) -> Fault | None:
        self._non_finite.append(now_s)
        if len(self._non_finite) < NON_FINITE_COUNT or now_s - self._non_finite[0] > NON_FINITE_S:
            return None
        return fault(
            FaultCode.BAD_CHUNKS, f"{NON_FINITE_COUNT} chunks with NaN or infinity in {NON_FINITE_S:.0f} s", now_s
        )

    def _motion(self, chunk: Chunk, q_J: Array) -> Admitted | None:
        spec = self._spec
        waypoints_HJ = self._waypoints(chunk, q_J)
        beyond_J = np.maximum(BEYOND_RAD, BEYOND_SHARE * (spec.high_J - spec.low_J))
        over_HJ = np.maximum(waypoints_HJ - spec.high_J, spec.low_J - waypoints_HJ)
        if (over_HJ > beyond_J).any():
            h, j = np.unravel_index(np.argmax(over_HJ - beyond_J), over_HJ.shape)
            detail = f"step {h}: {spec.names[j]} at {waypoints_HJ[h, j]:.3g}, limit {over_HJ[h, j]:.3g} before that"
            return refused(Refusal.POSITION, detail)
        arm_HN = waypoints_HJ[:, spec.arm_N]
        speed_HN = np.abs(np.diff(arm_HN, axis=0)) / chunk.dt_s
        fast_HN = speed_HN > SPEED_FACTOR * spec.velocity_J[spec.arm_N]
        if fast_HN.any():
            h, n = np.argwhere(fast_HN)[0]
            name = spec.names[spec.arm_N[n]]
            return refused(Refusal.SPEED, f"step {h + 1}: {name} at {speed_HN[h, n]:.3g} rad/s from the step before")
        return self._collision(np.clip(waypoints_HJ, spec.low_J, spec.high_J), q_J)

    def _collision(self, waypoints_HJ: Array, q_J: Array) -> Admitted | None:
        """Refuses a chunk that goes nearer to something than the filter would let it, unless it starts there."""
        if self._scene is None:
            return None
        least_m = min(self._scene.stop_m, self._scene.clearance(q_J))
        looked_J = q_J
        for h, waypoint_J in enumerate(waypoints_HJ):
            if np.abs(waypoint_J - looked_J).max() < LOOK_RAD and h < len(waypoints_HJ) - 1:
                continue
            looked_J, clearance_m = waypoint_J, self._scene.clearance(waypoint_J)
            if clearance_m < least_m:
                return refused(Refusal.COLLISION, f"step {h}: clearance {1e3 * clearance_m:.0f} mm")
        return None

    def _waypoints(self, chunk: Chunk, q_J: Array) -> Array:
        """(H, J) with the gripper's channel in its place."""
        waypoints_HJ = np.tile(np.asarray(q_J, np.float64), (len(chunk.q_HN), 1))
        waypoints_HJ[:, self._spec.arm_N] = chunk.q_HN
        if chunk.gripper_H is not None and self._spec.gripper_index is not None:
            waypoints_HJ[:, self._spec.gripper_index] = chunk.gripper_H
        return waypoints_HJ

    def _clamped(self, chunk: Chunk) -> Admitted:
        spec = self._spec
        q_HN = np.asarray(chunk.q_HN, np.float64)
        inside_HN = np.clip(q_HN, spec.low_J[spec.arm_N], spec.high_J[spec.arm_N])
        clamped, gripper_H = int((inside_HN != q_HN).sum()), None
        if chunk.gripper_H is not None:
            g = spec.gripper_index
            gripper_H = np.clip(np.asarray(chunk.gripper_H, np.float64), spec.low_J[g], spec.high_J[g])
            clamped += int((gripper_H != chunk.gripper_H).sum())
        return Admitted(chunk=replace(chunk, q_HN=inside_HN, gripper_H=gripper_H), clamped=clamped)


def refused(refusal: Refusal, detail: str) -> Admitted:
    """The answer to a chunk that is not played."""
    return Admitted(chunk=None, refusal=refusal, detail=detail)


def _floats(array: object) -> bool:
    return isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64)


def _described(array: object) -> str:
    return f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
