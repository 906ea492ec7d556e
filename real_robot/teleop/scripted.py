"""Sources without a person: a path as a function of time, and the replay of a recorded episode."""

from collections.abc import Callable

import numpy as np

from real_robot.core.types import ArmSpec, ArmState, Array, Chunk
from real_robot.teleop.stream import Stream
from vla.core.errors import SpecMismatchError

HORIZON, EVERY = 16, 4  # steps of a replayed chunk, and steps between two


class Scripted:
    """Follows `path(seconds since it became active)` -> (J,), given as an offset from where the arm stands then."""

    def __init__(self, spec: ArmSpec, path: Callable[[float], Array], *, session: str = "scripted") -> None:
        self._path, self._stream = path, Stream(spec, session)
        self._start: tuple[float, Array] | None = None
        self.trouble = ""

    @property
    def session(self) -> str:
        return self._stream.session

    def next(self, state: ArmState) -> Chunk | None:
        if self._start is None:
            self._start = (state.time_s, np.where(np.isfinite(state.goal_J), state.goal_J, state.q_J))
        start_s, from_J = self._start
        return self._stream.send(from_J + self._path(state.time_s - start_s), state.time_s)

    def on_event(self, event: str) -> None:
        self._start = None
        self._stream.reset()


class Replay:
    """Plays the actions of an episode at its own times: action t is due t + 1 steps after the start.

    Args:
        spec: of the arm.
        actions_TJ: (T, J) rad, as recorded.
        dt_s: between two.
        session: named in its chunks.
    """

    def __init__(self, spec: ArmSpec, actions_TJ: Array, dt_s: float, *, session: str = "replay") -> None:
        if actions_TJ.ndim != 2 or actions_TJ.shape[1] != len(spec.joints) or not len(actions_TJ):
            raise SpecMismatchError(f"actions have shape {actions_TJ.shape}, expected (T, {len(spec.joints)}), T >= 1")
        self._spec, self._actions_TJ, self._dt_s = spec, np.asarray(actions_TJ, np.float64), dt_s
        self.session, self.trouble = session, ""
        self._seq = 0
        self._start_s: float | None = None
        self._next = 0
        self.done = False

    def next(self, state: ArmState) -> Chunk | None:
        if self._start_s is None:
            self._start_s, self._next = state.time_s, 0
        step = int((state.time_s - self._start_s) / self._dt_s + 1e-6)
        self.done = step >= len(self._actions_TJ)
        if self.done or step < self._next:
            return None
        self._next = step + EVERY
        self._seq += 1
        q_HJ = self._actions_TJ[step : step + HORIZON]
        g = self._spec.gripper_index
        return Chunk(
            session=self.session,
            seq=self._seq,
            t_obs_s=self._start_s + step * self._dt_s,
            dt_s=self._dt_s,
            q_HN=q_HJ[:, self._spec.arm_N],
            gripper_H=None if g is None else q_HJ[:, g],
        )

    def on_event(self, event: str) -> None:
        """Active again after an alignment: from the start."""
        self._start_s = None
