"""A loop of fixed rate: one call a tick, lateness measured, and never two ticks to make up for a lost one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from real_robot.core.types import Clock

EDGES_S = np.r_[0.0, np.geomspace(1e-5, 1.0, 101)]  # of the histogram, twenty bins a decade


class Lateness:
    """How late ticks began, as a histogram: constant memory over days."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(EDGES_S), np.int64)
        self.worst_s = 0.0

    def __len__(self) -> int:
        return int(self._counts.sum())

    def add(self, late_s: float) -> None:
        self._counts[int(np.searchsorted(EDGES_S, max(late_s, 0.0), side="right")) - 1] += 1
        self.worst_s = max(self.worst_s, late_s)

    def quantile(self, share: float) -> float:
        """Upper edge of the bin in which the quantile lies [s], at most the worst that was seen."""
        if not len(self):
            return 0.0
        place = int(np.searchsorted(np.cumsum(self._counts), share * len(self)))
        return min(float(EDGES_S[min(place + 1, len(EDGES_S) - 1)]), self.worst_s)

    def __str__(self) -> str:
        p50, p99 = self.quantile(0.5), self.quantile(0.99)
        return f"p50 {1e3 * p50:.2f} ms, p99 {1e3 * p99:.2f} ms, worst {1e3 * self.worst_s:.2f} ms, {len(self)} ticks"


@contextmanager
def first_in_line(level: int = 10) -> Iterator[bool]:
    """The calling thread before all ordinary ones of the machine (SCHED_FIFO) while it lasts.

    Gives False, and changes nothing, where the system does not permit it (Linux: root or an rtprio limit).
    """
    before, how = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(level))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, before, how)


def run_loop(
    tick: Callable[[], None], clock: Clock, dt_s: float, keep_going: Callable[[], bool], lateness: Lateness
) -> None:
    """Calls `tick` every `dt_s` while `keep_going()`. A tick that was missed is skipped: no burst to catch up."""
    due_s = clock.now() + dt_s
    while keep_going():
        clock.sleep_until(due_s)
        late_s = clock.now() - due_s
        lateness.add(late_s)
        tick()
        due_s += dt_s * (1 + max(0, int(late_s / dt_s + 1e-9)))
