"""Braking of one joint in discrete time: the speed that can still be stopped, and a whole stop worked out in advance.

The joint obeys, once per tick of length dt,

    a_k = a_{k-1} + j_k dt      v_k = v_{k-1} + a_k dt      p_k = p_{k-1} + v_k dt

so v, a and j are exactly the finite differences of the commanded positions: what a log of commands shows is what is
bounded here. |v| <= V, |a| <= A, |j| <= J.

What is special: a stop under a jerk limit takes three phases (swing the acceleration over, hold it, let it go), and
rounding those to whole ticks makes a closed-form "can I still stop?" wrong by a tick just where it matters. So
nothing is proved about a formula: `plan_stop` returns one concrete stop, its bounds checked tick by tick in closed
form, with the exact way it goes. Who holds a checked stop and takes a new state only together with its own checked
stop never leaves the limits, whatever is asked for (`limiter.py`).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

_SLACK = 1.0 + 1e-9  # relative, for rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Bounds of one joint: position [rad or m], their time derivatives, and the tick [s].

    step  largest change of the acceleration in one tick
    """

    low: float
    high: float
    velocity: float
    acceleration: float
    jerk: float
    dt_s: float
    step: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", self.jerk * self.dt_s)


class Stop(NamedTuple):
    """A stop in whole ticks, from velocity v and acceleration a at tick 0 to rest. A tuple: made per joint and tick.

    sign      the direction in which the joint still moves when it lets go of its acceleration: +1 or -1
    start     acceleration at tick 0, times sign
    swing     ticks in which the acceleration falls by `jerk_step` each
    hold      ticks at -peak
    release   ticks in which it goes back to zero in equal steps; at the last one the joint is at rest
    distance  signed way from tick 0 to rest
    forward   how far it goes at most towards +, along the stop (>= 0)
    backward  how far it goes at most towards - (>= 0)
    speed     bound of |v| along the stop
    """

    sign: float
    start: float
    jerk_step: float
    peak: float
    swing: int
    hold: int
    release: int
    distance: float
    forward: float
    backward: float
    speed: float

    @property
    def ticks(self) -> int:
        return self.swing + self.hold + self.release

    def acceleration(self, tick: int) -> float:
        """Acceleration of tick 1, 2, ...; zero from the last one on."""
        if tick <= self.swing:
            return self.sign * (self.start - tick * self.jerk_step)
        if tick <= self.swing + self.hold:
            return -self.sign * self.peak
        return -self.sign * self.peak * max(0.0, 1.0 - (tick - self.swing - self.hold) / self.release)


AT_REST = Stop(1.0, 0.0, 0.0, 0.0, 0, 1, 1, 0.0, 0.0, 0.0, 0.0)


def stoppable_speed(distance: float, deceleration: float, reaction_s: float) -> float:
    """Largest speed v >= 0 with v * reaction + v^2 / (2 a) <= distance, so v = a (-r + sqrt(r^2 + 2 D / a)).

    With one tick as the reaction this is a bound for discrete time: the tick in which v is granted covers v dt, and
    braking by a dt a tick then covers at most v^2 / (2 a) - v dt / 2. Never more than distance / reaction.
    """
    if distance <= 0.0:
        return 0.0
    return deceleration * (math.sqrt(reaction_s * reaction_s + 2.0 * distance / deceleration) - reaction_s)


def plan_stop(v: float, a: float, bounds: Bounds) -> Stop | None:
    """A stop from velocity `v` and acceleration `a` within the bounds on acceleration and jerk; None if none is found.

    Continuous time gives the peak, B^2 = J v + a^2 / 2 (seen in the direction of motion); ticks are rounded from it and
    the peak is then solved for again, so that the joint is at rest exactly at the last tick.
    """
    if v == 0.0 and a == 0.0:
        return AT_REST
    likely = 1.0 if v + a * abs(a) / (2.0 * bounds.jerk) >= 0.0 else -1.0
    for sign in (likely, -likely):  # near rest the ticks may turn the sign
        square, toward = bounds.jerk * sign * v + 0.5 * a * a, sign * a
        peak = math.sqrt(square) if square > 0.0 else 0.0
        if peak > bounds.acceleration:
            peak = bounds.acceleration
        most = int((peak + toward) / bounds.step) if peak + toward > 0.0 else 0
        for swing, more in ((most, 0), (most - 1, 0), (most - 1, 1)):
            if swing >= 0 and (stop := _fit(sign * v, toward, peak, swing, more, sign, bounds)) is not None:
                return stop
    return None


def _fit(v: float, a: float, peak: float, swing: int, more: int, sign: float, bounds: Bounds) -> Stop | None:
    """The stop with so many ticks of swing and `more` than the fewest of hold, or None where that breaks a bound."""
    dt, step = bounds.dt_s, bounds.step
    v1 = v + dt * swing * (a - step * (swing + 1) * 0.5)  # after the swing
    if v1 < 0.0:
        return None
    release = int(peak / step - 1e-9) + 1
    half = (release - 1) * 0.5
    least = v1 / (dt * peak) - half if peak > 0.0 else 0.0
    hold = (int(least - 1e-9) + 1 if least > 1.0 else 1) + more
    peak = v1 / (dt * (hold + half))
    if peak > bounds.acceleration * _SLACK or peak > release * step * _SLACK:
        return None
    if abs(peak + a - swing * step) > step * _SLACK:
        return None
    distance = dt * (
        swing * (v + dt * (swing + 1) * (0.5 * a - step * (swing + 2) / 6.0))
        + hold * (v1 - peak * dt * (hold + 1) * 0.5)
        + peak * dt * (release - 1) * (release - 2) / 6.0
    )
    # where it still goes the other way, it turns before its acceleration is gone: a is a/2 or more on average
    back = v * v / max(a, 1e-12) - v * dt if v < 0.0 else 0.0
    ahead = distance + back if distance > -back else 0.0
    top = v + a * a / (2.0 * bounds.jerk) if a > 0.0 else v
    speed = top if top > -v else -v
    if sign > 0.0:
        return Stop(sign, a, step, peak, swing, hold, release, distance, ahead, back, speed)
    return Stop(sign, a, step, peak, swing, hold, release, -distance, back, ahead, speed)
