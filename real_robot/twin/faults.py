"""The script of faults of one servo: what goes wrong, from when, for how long. Times are those of the bus's clock."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Window:
    """A fault that is on from start_s to end_s, with its one number."""

    start_s: float
    end_s: float
    value: float


class FaultScript:
    """Faults of one servo. Every method takes `after` and `for_` in seconds from now; the default is at once and for
    ever.

    On the wire: silent, flip_bit, delay_reply, wrong_id, stale_reply, truncate, double, garbage, duplicate.
    In the servo: jump, freeze, stall, overload, heat; `reboot` and `hardware_error` belong to the servo itself.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._now = clock
        self._windows: dict[str, list[Window]] = {}

    def active(self, kind: str, at_s: float) -> float | None:
        """The value of a fault that is on at that time, or None."""
        if kind not in self._windows:  # the common case, several times a tick
            return None
        for window in self._windows[kind]:
            if window.start_s <= at_s < window.end_s:
                return window.value
        return None

    def heal(self) -> None:
        """Ends every fault of this servo. What a fault has already done (a reboot, an error bit) stays done."""
        self._windows.clear()

    def silent(self, *, after: float = 0.0, for_: float = math.inf) -> None:
        """Neither hears nor answers, as with its plug pulled; goes on towards its last goal."""
        self._add("silent", 1.0, after, for_)

    def flip_bit(self, p: float, *, after: float = 0.0, for_: float = math.inf) -> None:
        """One random bit of a reply is wrong, in a share p of the replies."""
        self._add("flip_bit", p, after, for_)

    def truncate(self, p: float = 1.0, *, after: float = 0.0, for_: float = math.inf) -> None:
        """A share p of the replies ends halfway."""
        self._add("truncate", p, after, for_)

    def double(self, p: float = 1.0, *, after: float = 0.0, for_: float = math.inf) -> None:
        """A share p of the replies comes twice."""
        self._add("double", p, after, for_)

    def garbage(self, p: float = 1.0, *, after: float = 0.0, for_: float = math.inf) -> None:
        """In front of a share p of the replies stand a few bytes of noise, headers among them."""
        self._add("garbage", p, after, for_)

    def delay_reply(self, seconds: float, *, after: float = 0.0, for_: float = math.inf) -> None:
        """Replies come this much later than they should."""
        self._add("delay_reply", seconds, after, for_)

    def stale_reply(self, *, after: float = 0.0, for_: float = math.inf) -> None:
        """Each reply is held back until the next request, and then comes in front of that one's own reply."""
        self._add("stale_reply", 1.0, after, for_)

    def wrong_id(self, device_id: int | None = None, *, after: float = 0.0, for_: float = math.inf) -> None:
        """Answers under another ID: this one, or its own plus 100."""
        self._add("wrong_id", -1 if device_id is None else device_id, after, for_)

    def duplicate(self, *, after: float = 0.0, for_: float = math.inf) -> None:
        """A second servo of the same ID, a quarter turn away, answers behind this one."""
        self._add("duplicate", 1.0, after, for_)

    def jump(self, counts: float, *, after: float = 0.0, for_: float = math.inf) -> None:
        """The encoder is off by this much."""
        self._add("jump", counts, after, for_)

    def freeze(self, *, after: float = 0.0, for_: float = math.inf) -> None:
        """The encoder shows what it showed when this began."""
        self._add("freeze", 1.0, after, for_)

    def stall(self, *, after: float = 0.0, for_: float = math.inf) -> None:
        """The joint is blocked, as by an obstacle."""
        self._add("stall", 1.0, after, for_)

    def overload(self, *, after: float = 0.0, for_: float = math.inf) -> None:
        """The servo believes that it is overloaded."""
        self._add("overload", 1.0, after, for_)

    def heat(self, celsius: float, *, after: float = 0.0, for_: float = math.inf) -> None:
        """The winding is at least this hot."""
        self._add("heat", celsius, after, for_)

    def _add(self, kind: str, value: float, after: float, for_: float) -> None:
        start_s = self._now() + after
        # the newest wins where two overlap
        self._windows.setdefault(kind, []).insert(0, Window(start_s=start_s, end_s=start_s + for_, value=value))
