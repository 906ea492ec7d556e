"""One joint, one tick: follow a wanted position as closely as position, velocity, acceleration and jerk allow.

What is special: two things are kept apart. *Shaping* (`_shape`) picks a good acceleration with the speed that can
still be stopped, towards the target and towards the limits; it may be as rough as it likes. The *certificate* is a
stop worked out to the tick: the new state is taken only together with a stop that ends inside the limits, otherwise
the joint does the next tick of the stop it already holds. So the bounds hold for any sequence of targets, by
induction, and every state carries the braking manoeuvre that a protective stop plays. A reference that keeps the
bounds passes through unchanged.
"""

import math
from typing import NamedTuple

from real_robot.core.braking import AT_REST, Bounds, Stop, plan_stop, stoppable_speed
from real_robot.core.types import Verdict

# plain integers: `|` of enum members costs a microsecond each
_NON_FINITE, _POSITION, _BRAKING = int(Verdict.NON_FINITE), int(Verdict.POSITION), int(Verdict.BRAKING)
_VELOCITY, _ACCELERATION, _JERK = int(Verdict.VELOCITY), int(Verdict.ACCELERATION), int(Verdict.JERK)
_SLACK = 1e-9  # [rad or m], for rounding
_SHAPE = 0.7  # share of the acceleration that shaping plans with; the rest covers the rounding to ticks


class JointMotion(NamedTuple):
    """What one joint was last told, with the stop it holds (`played` ticks of it are over). A tuple, for speed."""

    p: float
    v: float = 0.0
    a: float = 0.0
    target: float = math.nan
    stop: Stop = AT_REST
    played: int = 0


def advance(now: JointMotion, target: float, speed_cap: float, bounds: Bounds) -> tuple[JointMotion, int]:
    """The next tick towards `target` at no more than `speed_cap` (soft) and within `bounds` (hard).

    Outside [low, high] (a limp arm may be found there) only the way back in is open. A target that is not finite is
    refused: the joint stops.
    """
    if not math.isfinite(target):
        return brake(now, bounds), _NON_FINITE
    low = bounds.low - _SLACK if bounds.low - _SLACK < now.p else now.p
    high = bounds.high + _SLACK if bounds.high + _SLACK > now.p else now.p
    verdict = 0
    if not bounds.low <= target <= bounds.high:
        target, verdict = min(max(target, bounds.low), bounds.high), _POSITION
    cap = speed_cap if speed_cap < bounds.velocity else bounds.velocity
    a, shaped = _shape(now, target, cap, low, high, bounds)
    v = now.v + a * bounds.dt_s
    p = now.p + v * bounds.dt_s
    stop = plan_stop(v, a, bounds)
    if (
        stop is not None
        and p + stop.forward <= high
        and p - stop.backward >= low
        and stop.speed <= bounds.velocity + _SLACK
    ):
        return JointMotion(p, v, a, target, stop, 0), verdict | shaped
    return brake(now, bounds, target), verdict | shaped | _BRAKING


def brake(now: JointMotion, bounds: Bounds, target: float = math.nan) -> JointMotion:
    """The next tick of the stop that the joint holds; stands still once that is over."""
    tick = now.played + 1
    if tick > now.stop.ticks:
        return JointMotion(now.p, 0.0, 0.0, target, AT_REST, 0)
    a = now.stop.acceleration(tick)
    v = now.v + a * bounds.dt_s if tick < now.stop.ticks else 0.0
    return JointMotion(now.p + v * bounds.dt_s, v, a, target, now.stop, tick)


def stop_way(now: JointMotion, bounds: Bounds) -> float:
    """How far [rad or m, signed] the joint goes until it rests if it brakes from now on."""
    if now.played == 0:
        return now.stop.distance
    v, way = now.v, 0.0
    for tick in range(now.played + 1, now.stop.ticks + 1):
        v += now.stop.acceleration(tick) * bounds.dt_s
        way += v * bounds.dt_s
    return way


def _shape(now: JointMotion, target: float, cap: float, low: float, high: float, b: Bounds) -> tuple[float, int]:
    """An acceleration within its bounds, and which rules had a say."""
    dt, step = b.dt_s, b.step
    verdict = 0
    drift = (target - now.target) / dt if now.target == now.target else 0.0  # the target's own speed
    v_land = (target - now.p) / dt
    reaction, deceleration = dt + b.acceleration / b.jerk, _SHAPE * b.acceleration
    on_track = abs(v_land) <= cap and abs(v_land - drift) <= step * dt
    if on_track:
        v = v_land
    else:
        if abs(v_land) > cap:
            verdict |= _VELOCITY
        drift = min(max(drift, -cap), cap)
        error = target - now.p - drift * dt
        v = drift + math.copysign(stoppable_speed(abs(error), deceleration, reaction), error)
        v = min(max(v, -cap), cap)
    v_up = stoppable_speed(high - now.p, deceleration, dt)
    v_down = stoppable_speed(now.p - low, deceleration, dt)
    if not -v_down <= v <= v_up:
        v, on_track, verdict = min(max(v, -v_down), v_up), False, verdict | _POSITION
    wanted = (v - now.v) / dt
    a = wanted
    if not on_track or abs(wanted) > b.acceleration or abs(wanted - now.a) > step:
        a = math.copysign(stoppable_speed(abs(v - now.v), b.jerk, dt), wanted)
    if abs(a) > b.acceleration:
        a, verdict = math.copysign(b.acceleration, a), verdict | _ACCELERATION
    if abs(a - now.a) > step:
        a, verdict = now.a + math.copysign(step, a - now.a), verdict | _JERK
    return a, verdict
