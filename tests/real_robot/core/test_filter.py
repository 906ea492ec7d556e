"""The filter: bounds hold for anything, measured on the commands alone by finite differences."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from real_robot.core import limiter
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.braking import AT_REST
from real_robot.core.filter import Filter
from real_robot.core.types import ArmSpec, Verdict
from vla.core.errors import NonFiniteError, SpecMismatchError

WILD = [np.nan, np.inf, -np.inf, 1e30, -1e308, 5e-324, -0.0, 7.0, -7.0]


def excess(spec: ArmSpec, q_TJ: np.ndarray) -> dict[str, float]:
    """How far commands go beyond each bound (negative: within), from positions alone; the arm rested before."""
    q_TJ = np.vstack([q_TJ[:1]] * 3 + [q_TJ])
    v_TJ = np.diff(q_TJ, axis=0) / spec.dt_s
    a_TJ = np.diff(v_TJ, axis=0) / spec.dt_s
    j_TJ = np.diff(a_TJ, axis=0) / spec.dt_s
    jerk_J = np.array([joint.max_jerk for joint in spec.joints])
    return {
        "finite": float((~np.isfinite(q_TJ)).sum()) - 0.5,
        "position": float(np.maximum(q_TJ - spec.high_J, spec.low_J - q_TJ).max()) - 1e-8,
        "velocity": float((np.abs(v_TJ) - spec.velocity_J).max()) - 1e-6,
        "acceleration": float((np.abs(a_TJ) - spec.acceleration_J).max()) - 1e-5,
        "jerk": float((np.abs(j_TJ) - jerk_J).max()) - 1e-3,
    }


def play(spec: ArmSpec, targets_TJ: np.ndarray, start_J: np.ndarray, holds_T: np.ndarray | None = None) -> np.ndarray:
    """Commands (T + 1, J), the first one the start."""
    guard = Filter(spec)
    state = guard.rest(start_J)
    commands = [state.q_J]
    for t, target_J in enumerate(targets_TJ):
        held = holds_T is not None and holds_T[t]
        filtered = guard.hold(state) if held else guard.step(state, target_J)
        state = filtered.state
        commands.append(filtered.command.q_J)
    return np.array(commands)


def storm(spec: ArmSpec, rng: np.random.Generator, ticks: int) -> np.ndarray:
    """Targets of every sort: jumps, runs into limits, smooth curves, numbers that are none."""
    joints = len(spec.joints)
    targets_TJ = rng.uniform(-4.0, 4.0, (ticks, joints))
    stretch_T = np.repeat(rng.integers(0, 5, ticks // 25 + 1), 25)[:ticks]
    walk_TJ = np.cumsum(rng.normal(0.0, 0.05, (ticks, joints)), axis=0)
    t_T1 = spec.dt_s * np.arange(ticks)[:, None]
    curve_TJ = 2.0 * np.sin(rng.uniform(0.5, 6.0, joints) * t_T1 + rng.uniform(0.0, 6.0, joints))
    edge_TJ = np.where(rng.random((ticks, joints)) < 0.5, spec.low_J, spec.high_J)
    steady_TJ = np.repeat(rng.uniform(-2.5, 2.5, (ticks // 40 + 1, joints)), 40, axis=0)[:ticks]
    for kind, source_TJ in enumerate((walk_TJ, curve_TJ, edge_TJ, steady_TJ)):
        targets_TJ[stretch_T == kind] = source_TJ[stretch_T == kind]
    wild_TJ = rng.random((ticks, joints)) < 0.02
    targets_TJ[wild_TJ] = rng.choice(WILD, wild_TJ.sum())
    return targets_TJ


def test_a_storm_of_setpoints_leaves_no_bound() -> None:
    spec = so101_spec(normal_speed=True)
    rng = np.random.default_rng(0)
    q_TJ = play(spec, storm(spec, rng, 6_000), np.zeros(6), rng.random(6_000) < 0.05)
    assert max(excess(spec, q_TJ).values()) <= 0.0, excess(spec, q_TJ)


@pytest.mark.slow
@pytest.mark.parametrize("make", [so101_spec, koch_spec])
def test_a_million_setpoints(make) -> None:
    """Half a million wanted postures for each of two arms; not one violation."""
    spec = make(normal_speed=True)
    worst = dict.fromkeys(["finite", "position", "velocity", "acceleration", "jerk"], -np.inf)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        q_TJ = play(spec, storm(spec, rng, 50_000), np.zeros(6), rng.random(50_000) < 0.03)
        worst = {name: max(worst[name], value) for name, value in excess(spec, q_TJ).items()}
    print(worst)
    assert max(worst.values()) <= 0.0, worst


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.floats(), st.floats(-3, 3)), min_size=1, max_size=60),
    st.floats(-1.8, 1.8),
    st.sampled_from([1, 5, 25]),
)
def test_any_targets_any_start(targets: list[float], start: float, repeat: int) -> None:
    spec = so101_spec(normal_speed=True)
    start_J = np.clip(np.full(6, start), spec.low_J, spec.high_J)
    q_TJ = play(spec, np.repeat(np.array(targets)[:, None], repeat, axis=0) * np.ones(6), start_J)
    assert max(excess(spec, q_TJ).values()) <= 0.0


def test_without_the_certificate_limits_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shaping alone, each state believed to be stoppable: the storm finds the hole, so the tests above can fail."""
    monkeypatch.setattr(limiter, "plan_stop", lambda v, a, bounds: AT_REST)
    spec = so101_spec(normal_speed=True)
    found = excess(spec, play(spec, storm(spec, np.random.default_rng(0), 5000), np.zeros(6)))
    assert found["position"] > 0.0


def test_what_keeps_the_bounds_passes_unchanged(spec: ArmSpec) -> None:
    t_T1 = 0.01 * np.arange(600)[:, None]
    wanted_TJ = 0.6 * (1 - np.cos(2.0 * t_T1)) * np.array([0.9, -0.9, 0.5, 1.1, -0.3, 0.7])
    np.testing.assert_allclose(play(spec, wanted_TJ, np.zeros(6))[1:], wanted_TJ, rtol=0, atol=1e-15)


def test_a_step_is_reached_quickly_and_hardly_overshot(spec: ArmSpec) -> None:
    q_TJ = play(spec, np.full((150, 6), 0.9), np.zeros(6))
    assert q_TJ.max() < 0.91
    assert (np.abs(q_TJ[70:] - 0.9) < 2e-3).all()
    assert (q_TJ[-1] == 0.9).all()


def test_a_target_beyond_a_limit_ends_at_the_soft_limit(spec: ArmSpec) -> None:
    guard = Filter(spec)
    state = guard.rest(np.zeros(6))
    for _ in range(300):
        filtered = guard.step(state, spec.high_J + 0.1)
        state = filtered.state
        assert filtered.command.verdict & Verdict.POSITION
    np.testing.assert_allclose(state.q_J, spec.high_J, atol=1e-3)
    assert (state.q_J <= spec.high_J + 1e-8).all()


def test_numbers_that_are_none_stop_the_joint_they_stand_for(spec: ArmSpec) -> None:
    guard = Filter(spec)
    state = guard.rest(np.zeros(6))
    for _ in range(30):
        state = guard.step(state, np.full(6, 0.8)).state
    bad_J = np.full(6, 0.8)
    bad_J[2] = np.nan
    for _ in range(60):
        filtered = guard.step(state, bad_J)
        state = filtered.state
    assert filtered.verdict_J[2] & Verdict.NON_FINITE and not filtered.verdict_J[1] & Verdict.NON_FINITE
    assert state.joints[2].v == 0.0 and abs(state.q_J[2] - 0.8) > 0.05
    assert abs(state.q_J[1] - 0.8) < 5e-3


def test_hold_stops_within_the_bounds_and_stays(spec: ArmSpec) -> None:
    ticks, holds_T = 400, np.arange(400) >= 40
    q_TJ = play(spec, np.full((ticks, 6), 1.6), np.full(6, -0.1), holds_T)
    assert max(excess(spec, q_TJ).values()) <= 0.0
    v_T = np.abs(np.diff(q_TJ, axis=0)).max(axis=1) / 0.01
    assert v_T[38] > 2.5
    assert (v_T[40 + 3 + 20 + 3 + 2 :] == 0.0).all()  # 3 rad/s at 15 rad/s^2 is 20 ticks, and the swings of the jerk


def test_an_arm_found_outside_its_limits_only_comes_back(spec: ArmSpec) -> None:
    start_J = spec.high_J + 0.04
    q_TJ = play(spec, np.vstack([np.full((50, 6), 9.0), np.zeros((400, 6))]), start_J)
    assert (q_TJ <= start_J).all() and (q_TJ[50:] <= spec.high_J + 1e-9).all()
    np.testing.assert_allclose(q_TJ[-1], 0.0, atol=1e-6)


def test_heat_slows_down_and_nan_heat_stops(spec: ArmSpec) -> None:
    guard = Filter(spec)
    for derate, fastest in [(1.0, 3.0), (0.25, 0.75), (0.0, 0.0), (np.nan, 0.0), (-1.0, 0.0)]:
        state = guard.rest(np.full(6, -1.0))
        speeds = []
        for _ in range(60):
            state = guard.step(state, np.full(6, 1.0), derate=derate).state
            speeds.append(np.abs(state.dq_J).max())
        assert max(speeds) == pytest.approx(fastest, abs=0.06)


def test_reduced_speed_bounds_the_tool() -> None:
    """Joint speeds times their largest levers stay below 0.25 m/s, whatever is asked for."""
    spec = so101_spec()
    lever_J = np.array([joint.lever_m for joint in spec.joints])
    q_TJ = play(spec, np.repeat(np.random.default_rng(3).uniform(-1, 1, (20, 6)), 80, axis=0), np.zeros(6))
    tool_T = (np.abs(np.diff(q_TJ, axis=0)) / spec.dt_s) @ lever_J
    assert np.quantile(tool_T, 0.9) > 0.2 and tool_T.max() < 0.26
    one_TJ = np.zeros((150, 6))
    one_TJ[:, 0] = 1.0
    assert np.abs(np.diff(play(spec, one_TJ, np.zeros(6)), axis=0)).max() / 0.01 == pytest.approx(
        0.25 / 0.4405, rel=0.02
    )


def test_same_inputs_same_outputs(spec: ArmSpec) -> None:
    targets_TJ = storm(spec, np.random.default_rng(5), 300)
    assert play(spec, targets_TJ, np.zeros(6)).tobytes() == play(spec, targets_TJ, np.zeros(6)).tobytes()


def test_rest_refuses_what_is_no_posture(spec: ArmSpec) -> None:
    with pytest.raises(NonFiniteError):
        Filter(spec).rest(np.array([0, 0, np.nan, 0, 0, 0]))
    with pytest.raises(SpecMismatchError):
        Filter(spec).rest(np.zeros(5))


def test_cost_of_a_tick(spec: ArmSpec) -> None:
    """Far above what it takes alone on a core, since cores are shared; `-s` prints the percentiles."""
    guard = Filter(spec)
    state, targets_TJ, seconds = guard.rest(np.zeros(6)), storm(spec, np.random.default_rng(0), 3000), []
    for target_J in targets_TJ:
        begin = time.thread_time()
        state = guard.step(state, target_J).state
        seconds.append(time.thread_time() - begin)
    print("filter [us], p50 p90 p99:", np.round(1e6 * np.percentile(seconds, [50, 90, 99]), 1))
    assert np.median(seconds) < 300e-6
