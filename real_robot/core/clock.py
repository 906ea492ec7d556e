"""Time, real or virtual. Virtual time moves only in `sleep_until` and `advance`, and takes simulated plants with it."""

import time
from collections.abc import Callable


class RealClock:
    """The system's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        wait_s = time_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


class VirtualClock:
    """Deterministic time for tests, faster than the real one. It never goes back.

    Args:
        start_s: the first time.
        step_s: plants are advanced in steps of at most this [s], each ending on a multiple of it.
    """

    def __init__(self, *, start_s: float = 0.0, step_s: float = 1e-3) -> None:
        if not step_s > 0:
            raise ValueError(f"step_s is {step_s}, expected a positive number")
        self._now_s = start_s
        self._step_s = step_s
        self._plants: list[Callable[[float], None]] = []

    def attach(self, plant: Callable[[float], None]) -> None:
        """`plant(now_s)` is called after each step of time, in the order of attachment."""
        self._plants.append(plant)

    def now(self) -> float:
        return self._now_s

    def sleep_until(self, time_s: float) -> None:
        """Advances to `time_s`; a time that is over costs nothing."""
        while self._now_s < time_s:
            grid_s = (round(self._now_s / self._step_s) + 1) * self._step_s
            self._now_s = min(time_s, grid_s)
            for plant in self._plants:
                plant(self._now_s)

    def advance(self, seconds: float) -> None:
        self.sleep_until(self._now_s + seconds)
