"""Setpoints by time: what is late, what replaces what, how it ends. Ticks of 10 ms, chunks at 30 Hz."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline

from real_robot.core.arms import so101_spec
from real_robot.core.filter import Filter
from real_robot.core.timeline import Timeline
from real_robot.core.types import ArmSpec, Chunk
from vla.core.errors import SpecMismatchError

DT, TICK = 1.0 / 30.0, 0.01


def curve(t_T: np.ndarray) -> np.ndarray:
    """A smooth motion (T, 5) that begins at rest at zero."""
    return 0.4 * (1.0 - np.cos(1.5 * np.asarray(t_T)))[:, None] * np.array([1.0, -0.8, 0.6, 0.9, -0.5])


def chunk(t_obs_s: float, horizon: int = 16, *, seq: int = 0, shift: float = 0.0, **changed) -> Chunk:
    q_HN = curve(t_obs_s + DT * np.arange(1, horizon + 1)) + shift
    return Chunk(**({"session": "a", "seq": seq, "t_obs_s": t_obs_s, "dt_s": DT, "q_HN": q_HN} | changed))


def play(timeline: Timeline, arrivals: list[tuple[float, Chunk]], until_s: float) -> tuple[np.ndarray, list]:
    """Samples each tick; a chunk is pushed at the first tick not before its arrival."""
    waiting, setpoints, times = list(arrivals), [], np.arange(0, round(until_s / TICK) + 1) * TICK
    for now_s in times:
        while waiting and waiting[0][0] <= now_s + 1e-9:
            timeline.push(waiting.pop(0)[1], now_s)
        setpoints.append(timeline.sample(now_s))
    return times, setpoints


@pytest.fixture
def timeline(spec: ArmSpec) -> Timeline:
    timeline = Timeline(spec)
    timeline.reset(np.zeros(6), 0.0)
    return timeline


def test_setpoints_are_met_at_their_times(timeline: Timeline) -> None:
    """Setpoint i at t_obs + (i + 1) dt, whatever the latency, once the switch has blended."""
    arrivals = [(t + 0.12, chunk(t, seq=i)) for i, t in enumerate(np.arange(0, 2.0, 8 * DT))]
    times, setpoints = play(timeline, arrivals, 2.0)
    q_TN = np.array([s.q_J[:5] for s in setpoints])
    settled = (times > 0.3) & (times < 1.9)
    assert np.abs(q_TN - curve(times))[settled].max() < 2e-3  # the spline's own error
    shifted = np.abs(q_TN - curve(times + DT))[settled].max()
    assert shifted > 1e-2  # one step off would show


def test_between_setpoints_runs_a_hermite_spline(timeline: Timeline) -> None:
    sent = chunk(0.0, 20)
    _, setpoints = play(timeline, [(0.0, sent)], 0.45)
    due_H = DT * np.arange(1, 21)
    slopes_HN = np.gradient(sent.q_HN, due_H, axis=0)
    oracle = CubicHermiteSpline(due_H, sent.q_HN, slopes_HN)
    for i in range(15, 40):
        np.testing.assert_allclose(setpoints[i].q_J[:5], oracle(i * TICK), atol=1e-9)
        np.testing.assert_allclose(setpoints[i].dq_J[:5], oracle(i * TICK, 1), atol=1e-9)


def test_overdue_setpoints_are_dropped(timeline: Timeline) -> None:
    assert timeline.push(chunk(0.0), now_s=4.5 * DT) == 4
    assert timeline.push(chunk(0.0), now_s=100.0) == 16
    assert timeline.end_s == pytest.approx(16 * DT)  # the old tail stays
    assert timeline.push(chunk(0.0, valid_until_s=8.2 * DT), now_s=4.5 * DT) == 4
    assert timeline.end_s == pytest.approx(8 * DT)


def test_velocity_is_continuous_across_switches(timeline: Timeline) -> None:
    """No tick changes the speed by more than the spline and the blend explain; a plain jump would be 1 rad/s."""
    arrivals = [(t + 0.1, chunk(t, seq=i, shift=0.01 * (-1) ** i)) for i, t in enumerate(np.arange(0, 2, 8 * DT))]
    _, setpoints = play(timeline, arrivals, 2.0)
    q_TN = np.array([s.q_J[:5] for s in setpoints])
    v_TN = np.diff(q_TN, axis=0) / TICK
    # a quintic over an offset e in T has at most 5.8 e / T^2 of acceleration: 0.02 and 67 ms give 26 rad/s^2
    assert np.abs(np.diff(v_TN, axis=0)).max() < (26 + 8) * TICK
    reported_TN = np.array([s.dq_J[:5] for s in setpoints])
    assert np.abs(reported_TN[1:] - v_TN).max() < 0.2


def test_a_switch_without_a_blend_would_jump(timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("real_robot.core.timeline._fade", lambda *_: None)
    arrivals = [(t + 0.1, chunk(t, seq=i, shift=0.01 * (-1) ** i)) for i, t in enumerate(np.arange(0, 2, 8 * DT))]
    _, setpoints = play(timeline, arrivals, 2.0)
    v_TN = np.diff(np.array([s.q_J[:5] for s in setpoints]), axis=0) / TICK
    assert np.abs(np.diff(v_TN, axis=0)).max() > 34 * TICK


def test_the_end_of_the_tail_is_a_planned_stop(timeline: Timeline, spec: ArmSpec) -> None:
    """The arm rests on the last setpoint, having begun to brake before it, inside its acceleration, along its path."""
    horizon = 12
    q_HN = np.linspace(0, 1, horizon + 1)[1:, None] * np.array([0.6, -0.6, 0.4, 0.3, 0.2])  # 1.5 rad/s at the end
    times, setpoints = play(timeline, [(0.0, chunk(0.0, horizon, q_HN=q_HN))], 1.2)
    q_TN = np.array([s.q_J[:5] for s in setpoints])
    v_TN = np.diff(q_TN, axis=0) / TICK
    end_s = horizon * DT
    before = times[1:] <= end_s
    assert np.abs(v_TN[before][-1]).max() < 0.9 * np.abs(v_TN).max()  # already falling
    np.testing.assert_allclose(q_TN[-1], q_HN[-1], atol=1e-5)
    assert (np.abs(q_TN) <= np.abs(q_HN[-1]) + 1e-9).all()  # never past the last setpoint
    rest = next(i for i, s in enumerate(setpoints) if s.resting and times[i] > 0.2)
    assert times[rest] <= end_s + 1.5 / 7.5 + 3 * TICK
    assert np.abs(np.diff(v_TN, axis=0))[20:].max() / TICK < spec.acceleration_J[0]
    np.testing.assert_allclose(q_TN[:, 1], -q_TN[:, 0], atol=1e-9)  # on the path all the time
    assert setpoints[-1].starved_s == pytest.approx(1.2 - end_s) and setpoints[20].starved_s == 0.0


def test_a_tail_that_is_replaced_in_time_is_not_slowed(timeline: Timeline) -> None:
    arrivals = [(t, chunk(t, seq=i)) for i, t in enumerate(np.arange(0, 1.5, 8 * DT))]
    times, setpoints = play(timeline, arrivals, 1.5)
    assert not any(s.starved_s or s.resting for s in setpoints[1:])
    np.testing.assert_allclose(setpoints[-1].q_J[:5], curve(times[-1:])[0], atol=2e-3)


def test_a_pause_of_the_daemon_is_skipped_not_caught_up(timeline: Timeline) -> None:
    timeline.push(chunk(0.0, 40), 0.0)
    for i in range(30):
        timeline.sample(i * TICK)
    np.testing.assert_allclose(timeline.sample(0.5).q_J[:5], curve(np.array([0.5]))[0], atol=2e-3)


def test_the_gripper_runs_apart_and_never_overshoots(timeline: Timeline) -> None:
    gripper_H = np.where(np.arange(16) < 8, 0.0, 1.2)
    _, setpoints = play(timeline, [(0.0, chunk(0.0, gripper_H=gripper_H))], 1.0)
    gripper_T = np.array([s.q_J[5] for s in setpoints])
    assert gripper_T.min() >= 0.0 and gripper_T.max() <= 1.2 and gripper_T[-1] == pytest.approx(1.2)
    assert (np.diff(gripper_T) >= -1e-12).all()
    timeline.push(chunk(1.0), 1.0)  # without a gripper channel it stays
    assert timeline.sample(1.1).q_J[5] == pytest.approx(1.2)


def test_reset_forgets(timeline: Timeline) -> None:
    timeline.push(chunk(0.0), 0.0)
    timeline.reset(np.full(6, 0.3), 0.2)
    assert timeline.sample(0.3).resting and (timeline.sample(0.4).q_J == 0.3).all()
    assert timeline.end_s == -np.inf


def test_a_chunk_of_the_wrong_width_is_refused(timeline: Timeline) -> None:
    with pytest.raises(SpecMismatchError, match="expected"):
        timeline.push(chunk(0.0, q_HN=np.zeros((4, 6))), 0.0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_comes_the_filtered_reference_keeps_the_bounds(data: st.DataObject) -> None:
    """Random chunks at random times, late, twice, overlapping, far apart: bounds hold and nothing is not a number."""
    spec = so101_spec(normal_speed=True)
    timeline, guard = Timeline(spec), Filter(spec)
    timeline.reset(np.zeros(6), 0.0)
    state, commands = guard.rest(np.zeros(6)), [np.zeros(6)] * 3
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for tick in range(120):
        now_s = tick * TICK
        if rng.random() < 0.1:
            horizon = int(rng.integers(1, 12))
            sent = Chunk(
                session="a",
                seq=tick,
                t_obs_s=now_s - float(rng.uniform(0, 0.3)),
                dt_s=float(rng.uniform(0.005, 0.1)),
                q_HN=rng.uniform(-2, 2, (horizon, 5)),
                gripper_H=rng.uniform(-0.3, 2, horizon),
            )
            timeline.push(sent, now_s)
        setpoint = timeline.sample(now_s)
        assert np.isfinite(setpoint.q_J).all()
        state = guard.step(state, setpoint.q_J).state
        commands.append(state.q_J)
    q_TJ = np.array(commands)
    v_TJ = np.diff(q_TJ, axis=0) / TICK
    assert (q_TJ <= spec.high_J + 1e-8).all() and (q_TJ >= spec.low_J - 1e-8).all()
    assert (np.abs(v_TJ) <= spec.velocity_J + 1e-6).all()
    assert (np.abs(np.diff(v_TJ, axis=0)) / TICK <= spec.acceleration_J + 1e-5).all()
