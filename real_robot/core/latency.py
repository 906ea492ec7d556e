"""How long a chunk takes from its picture until it can be played, and whether that can work at all.

A sliding window: one slow answer is forgotten, where an all-time maximum would inflate the delay until a restart.
"""

import math
from collections import deque

import numpy as np

from real_robot.core.faults import RefusedError

WINDOW = 50


class LatencyWindow:
    """Percentiles of the last 50 latencies [s]."""

    def __init__(self, *, window: int = WINDOW) -> None:
        self._seen: deque[float] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, latency_s: float) -> None:
        if not (math.isfinite(latency_s) and latency_s >= 0.0):
            raise ValueError(f"latency_s is {latency_s}, expected a finite number >= 0")
        self._seen.append(latency_s)

    def quantile(self, share: float) -> float:
        """0 while nothing has been seen."""
        return float(np.quantile(np.array(self._seen), share, method="higher")) if self._seen else 0.0

    @property
    def p50(self) -> float:
        return self.quantile(0.5)

    @property
    def p95(self) -> float:
        return self.quantile(0.95)

    def delay_steps(self, dt_s: float) -> int:
        """d, the steps of a chunk that will be over when it arrives: p95 in steps, and one more."""
        return math.ceil(self.p95 / dt_s - 1e-9) + 1

    def feasible(self, horizon: int, dt_s: float) -> bool:
        """False where chunks of this length would starve the arm: p95 above (H - 1) dt."""
        return self.p95 <= (horizon - 1) * dt_s

    def report(self, horizon: int, dt_s: float) -> str:
        """The numbers of a preflight: chunk length, latency, how many steps may be played of each, worst reaction."""
        delay, most = self.delay_steps(dt_s), max(0, horizon - self.delay_steps(dt_s))
        steps = f"{delay} to {most}" if delay <= most else "none"
        return (
            f"chunk {horizon} x {1e3 * dt_s:.0f} ms = {horizon * dt_s:.2f} s; latency p50 {1e3 * self.p50:.0f} ms, "
            f"p95 {1e3 * self.p95:.0f} ms; steps played per chunk: {steps}; "
            f"worst reaction {self.p95 + max(delay, 1) * dt_s:.2f} s"
        )

    def require(self, horizon: int, dt_s: float) -> None:
        """Raises RefusedError with the numbers where the arm would starve."""
        if not self.feasible(horizon, dt_s):
            raise RefusedError(
                f"latency: p95 is {1e3 * self.p95:.0f} ms, a chunk of {horizon} x {1e3 * dt_s:.0f} ms allows "
                f"{1e3 * (horizon - 1) * dt_s:.0f} ms. Longer chunks, a slower rate or a faster policy are needed"
            )
