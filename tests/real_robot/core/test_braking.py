"""Stops against a tick-by-tick simulation; the stoppable speed against braking as hard as the joint can."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from real_robot.core.braking import AT_REST, Bounds, plan_stop, stoppable_speed

BOUNDS = Bounds(low=-1.0, high=1.0, velocity=3.0, acceleration=15.0, jerk=500.0, dt_s=0.01)


def ways_of_braking(v: float, deceleration: float, dt_s: float) -> float:
    """How far a joint goes that is granted speed `v` for one tick and then brakes as hard as it can."""
    way = 0.0
    while v > 0.0:
        way += v * dt_s
        v -= deceleration * dt_s
    return way


@given(st.floats(0.0, 3.0), st.floats(0.5, 50.0), st.sampled_from([1e-3, 1e-2, 5e-2]))
def test_a_granted_speed_can_be_stopped_in_time(distance: float, deceleration: float, dt_s: float) -> None:
    v = stoppable_speed(distance, deceleration, dt_s)
    assert ways_of_braking(v, deceleration, dt_s) <= distance + 1e-9
    assert v * dt_s <= distance + 1e-12


def test_continuous_braking_would_overshoot() -> None:
    """Without the tick as reaction time, sqrt(2 a D) goes past the limit: the test above can fail."""
    v = (2 * 15.0 * 0.1) ** 0.5
    assert ways_of_braking(v, 15.0, 0.01) > 0.1
    assert stoppable_speed(0.1, 15.0, 0.01) == pytest.approx(15.0 * (-0.01 + (0.01**2 + 2 * 0.1 / 15.0) ** 0.5))


@given(st.floats(-3.0, 3.0), st.floats(-15.0, 15.0))
def test_a_stop_is_what_it_says(v: float, a: float) -> None:
    """Played tick by tick: bounds on acceleration and jerk, the way, its extremes, rest at the last tick."""
    stop = plan_stop(v, a, BOUNDS)
    if stop is None:
        return
    p, ahead, back, fastest = 0.0, 0.0, 0.0, abs(v)
    for tick in range(1, stop.ticks + 1):
        before, a = a, stop.acceleration(tick)
        assert abs(a) <= BOUNDS.acceleration * (1 + 1e-7)
        assert abs(a - before) <= BOUNDS.step * (1 + 1e-7)
        v += a * BOUNDS.dt_s
        p += v * BOUNDS.dt_s
        ahead, back, fastest = max(ahead, p), max(back, -p), max(fastest, abs(v))
    assert abs(v) < 1e-9 and a == 0.0
    assert p == pytest.approx(stop.distance, abs=1e-9)
    assert ahead <= stop.forward + 1e-9 and back <= stop.backward + 1e-9
    assert fastest <= stop.speed + 1e-9


def test_a_stop_is_nearly_always_found_and_as_short_as_can_be() -> None:
    """Against the best of continuous time from constant speed: v^2 / 2A + v A / 2J, or v sqrt(v / J) when slow.

    The tick in which the swing begins is already slower, so up to v dt is saved.
    """
    rng = np.random.default_rng(0)
    states = [(rng.uniform(-3, 3), rng.uniform(-15, 15)) for _ in range(3000)]
    assert np.mean([plan_stop(v, a, BOUNDS) is None for v, a in states]) < 0.01
    for v in np.linspace(0.05, 3.0, 60):
        stop = plan_stop(float(v), 0.0, BOUNDS)
        fast = v >= BOUNDS.acceleration**2 / BOUNDS.jerk
        best = v * v / 30.0 + v * 15.0 / 1000.0 if fast else v * (v / BOUNDS.jerk) ** 0.5
        assert stop is not None and best - 1.01 * v * 0.01 <= stop.distance <= best
    assert plan_stop(0.0, 0.0, BOUNDS) is AT_REST
