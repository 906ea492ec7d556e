"""Joints driven by speed, from keys or sticks: the target moves while the deadman is held."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from real_robot.core.types import ArmSpec, ArmState, Array, Chunk
from real_robot.teleop.stream import Stream

JOG_SPEED = 0.5  # [rad/s] at full deflection
LONGEST_STEP_S = 0.05  # a pause of the process moves the target by no more than this


@dataclass(frozen=True, kw_only=True, eq=False)
class Jog:
    """What a device asks for. share_J: (J,) in [-1, 1] of the jog speed. Nothing moves without `deadman`."""

    share_J: Array
    deadman: bool


class JogSource:
    """A `Teleop` for any device that gives a `Jog`.

    Args:
        spec: of the arm.
        read: the device at a time [s]; OSError: it is gone.
        session: named in its chunks.
        speed: at full deflection [rad/s].
        stops: how often the device's own e-stop was pressed since the last call; whoever ticks the arm asks.
    """

    def __init__(
        self,
        spec: ArmSpec,
        read: Callable[[float], Jog],
        *,
        session: str = "jog",
        speed: float = JOG_SPEED,
        stops: Callable[[], int] = lambda: 0,
    ) -> None:
        self._spec, self._read, self._speed, self.stops = spec, read, speed, stops
        self._stream = Stream(spec, session)
        self._target_J: Array | None = None
        self._last_s = 0.0
        self.trouble = ""

    @property
    def session(self) -> str:
        return self._stream.session

    def next(self, state: ArmState) -> Chunk | None:
        try:
            jog = self._read(state.time_s)
        except OSError as error:
            self.trouble = f"the device is lost ({error})"
            return None
        if not jog.deadman:
            self._let_go()
            return None
        if self._target_J is None:
            self._target_J = np.where(np.isfinite(state.goal_J), state.goal_J, state.q_J)
            self._last_s = state.time_s
        passed_s = min(state.time_s - self._last_s, LONGEST_STEP_S)
        self._last_s = state.time_s
        moved_J = self._target_J + passed_s * self._speed * np.clip(jog.share_J, -1.0, 1.0)
        self._target_J = np.clip(moved_J, self._spec.low_J, self._spec.high_J)
        return self._stream.send(self._target_J, state.time_s)

    def on_event(self, event: str) -> None:
        if event == "active":
            self.trouble = ""
        self._let_go()

    def _let_go(self) -> None:
        self._target_J = None
        self._stream.reset()
