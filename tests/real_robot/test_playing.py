"""The policy's side of playing: times, merging, and real-time chunking against closed forms."""

import math

import numpy as np
import pytest

from real_robot.playing import Ask, Playing, Scheduler, crossfade, ensemble, rtc_velocity, rtc_weights
from scripts import bench_latency
from scripts.bench_latency import Seen, guided, modes, plain, play
from vla.core.errors import NonFiniteError, SpecMismatchError


def made(playing: Playing, horizon: int = 10, gripper: int | None = None) -> Scheduler:
    return Scheduler(playing, horizon=horizon, dt_s=0.1, session="s", gripper=gripper)


def ramp(start_s: float, slope: float = 1.0, horizon: int = 10) -> np.ndarray:
    """The motion q(t) = slope t, as a chunk from a picture at start_s."""
    due_H = start_s + 0.1 * np.arange(1, horizon + 1)
    return np.stack([slope * due_H, due_H * 0], 1)


def test_by_time_a_chunk_keeps_the_time_of_its_picture() -> None:
    scheduler = made(Playing(execute=5))
    assert scheduler.due(1.0)
    scheduler.ask(1.0)
    assert not scheduler.due(1.2)  # one question at a time
    chunk = scheduler.answer(ramp(1.0), 1.25)
    assert (chunk.t_obs_s, chunk.seq, chunk.session) == (1.0, 1, "s") and len(chunk.q_HN) == 10
    assert not scheduler.due(1.49) and scheduler.due(1.5)


def test_from_arrival_a_chunk_starts_when_it_comes() -> None:
    scheduler = made(Playing(execute=5, timed=False))
    scheduler.ask(1.0)
    assert scheduler.answer(ramp(1.0), 1.25).t_obs_s == 1.25


def test_waiting_sends_what_is_executed_and_asks_when_it_is_over() -> None:
    scheduler = made(Playing(execute=4, wait=True, timed=False))
    scheduler.ask(1.0)
    chunk = scheduler.answer(ramp(1.0), 1.3)
    assert len(chunk.q_HN) == 4 and not scheduler.due(1.69) and scheduler.due(1.7)


def test_the_policy_learns_what_is_committed_and_for_how_long() -> None:
    scheduler = made(Playing(execute=5))
    assert scheduler.ask(0.0).committed_KA.size == 0
    scheduler.answer(ramp(0.0), 0.25)
    ask = scheduler.ask(0.5)
    assert np.allclose(ask.committed_KA, ramp(0.5)[:5])  # aligned: the same motion, five steps left
    assert ask.delay == math.ceil(0.25 / 0.1) + 1
    scheduler.failed()
    assert scheduler.due(0.5)


def test_the_gripper_goes_apart() -> None:
    scheduler = made(Playing(execute=5), gripper=1)
    scheduler.ask(0.0)
    chunk = scheduler.answer(ramp(0.0), 0.1)
    assert chunk.q_HN.shape == (10, 1) and chunk.gripper_H is not None and not chunk.gripper_H.any()


def test_bad_answers_and_settings_are_named() -> None:
    scheduler = made(Playing(execute=5))
    with pytest.raises(ValueError, match="no question"):
        scheduler.answer(ramp(0.0), 0.0)
    scheduler.ask(0.0)
    with pytest.raises(SpecMismatchError, match="expected \\(10, A\\)"):
        scheduler.answer(ramp(0.0)[:9], 0.1)
    with pytest.raises(NonFiniteError):
        scheduler.answer(ramp(0.0) * np.nan, 0.1)
    with pytest.raises(ValueError, match="hold only"):
        made(Playing(execute=11))
    with pytest.raises(ValueError, match="ensemble_decay"):
        Playing(execute=1, ensemble_decay=0.1, fade=2)


def test_a_crossfade_starts_at_the_old_and_ends_at_the_new() -> None:
    old_KA, new_HA = np.zeros((6, 1)), np.ones((8, 1))
    assert np.allclose(crossfade(old_KA, new_HA, 2, 3)[:, 0], [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    assert np.array_equal(crossfade(old_KA[:0], new_HA, 2, 3), new_HA)


def test_the_ensemble_is_acts_whatever_the_spacing() -> None:
    """Oracle: algorithm 2 of ACT written per step, over all pairs."""
    rng = np.random.default_rng(0)
    times = [0, 1, 4, 6]
    chunks = [rng.normal(size=(8, 2)) for _ in times]
    got_HA = ensemble([(0.1 * t, chunk) for t, chunk in zip(times, chunks, strict=True)], 0.1, 0.3)
    for i in range(8):
        said = [chunk[times[-1] + i - t] for t, chunk in zip(times, chunks, strict=True) if times[-1] + i - t < 8]
        w = np.exp(-0.3 * np.arange(len(said)))
        assert np.allclose(got_HA[i], w @ np.array(said) / w.sum())


def test_agreeing_chunks_are_played_unchanged_by_every_way_that_goes_by_time() -> None:
    for playing in (Playing(execute=3), Playing(execute=3, fade=4), Playing(execute=3, ensemble_decay=0.01)):
        scheduler = made(playing)
        for number in range(4):
            scheduler.ask(0.3 * number)
            chunk = scheduler.answer(ramp(0.3 * number), 0.3 * number + 0.25)
            assert np.allclose(chunk.q_HN, ramp(0.3 * number))
    late = made(Playing(execute=3, timed=False))  # and one that does not shifts the motion by its latency
    late.ask(0.0)
    chunk = late.answer(ramp(0.0), 0.25)
    assert np.allclose(chunk.q_HN[0, 0] - (chunk.t_obs_s + chunk.dt_s), -0.25)


def test_weights_by_hand() -> None:
    w_H = rtc_weights(8, 2, 3)
    c = np.array([(5 - i) / 4 for i in (2, 3, 4)])
    assert np.allclose(w_H, [1, 1, *(c * (np.exp(c) - 1) / (np.e - 1)), 0, 0, 0])
    assert (np.diff(rtc_weights(50, 10, 25)) <= 0).all()
    with pytest.raises(ValueError, match="delay"):
        rtc_weights(8, 6, 3)


def flow(
    beta: float, weights_H: np.ndarray, previous_HA: np.ndarray, sigma: float = 1.0, steps: int = 10
) -> np.ndarray:
    """The exact flow from noise to N(0, sigma^2), guided; A1 = gain x, so J^T u = gain u."""
    x_HA = np.random.default_rng(0).normal(size=previous_HA.shape)
    for step in range(steps):
        t = step / steps
        gain = t * sigma**2 / ((1 - t) ** 2 + (t * sigma) ** 2)
        v_HA = (gain * x_HA - x_HA) / (1 - t)
        x_HA = x_HA + rtc_velocity(
            v_HA, x_HA, previous_HA, weights_H, t=t, beta=beta, vjp=lambda u, g=gain: g * u
        ) / steps  # fmt: skip
    return x_HA


def test_guidance_pulls_the_frozen_steps_and_leaves_the_free_ones() -> None:
    previous_HA = np.full((8, 2), 1.5)
    weights_H = rtc_weights(8, 3, 3)
    free_HA, held_HA = flow(5.0, np.zeros(8), previous_HA), flow(5.0, weights_H, previous_HA)
    assert np.allclose(held_HA[5:], free_HA[5:])  # weight 0
    assert np.abs(held_HA[:3] - 1.5).max() < 0.35 * np.abs(free_HA[:3] - 1.5).max()
    assert np.allclose(flow(0.0, weights_H, previous_HA), free_HA)  # mutation: no guidance, no pull


def test_the_strength_is_that_of_the_paper() -> None:
    """(1 - t) / (t r^2) with r^2 = (1 - t)^2 / (t^2 + (1 - t)^2), bounded by beta."""
    one = np.ones((1, 1))
    for t in (0.1, 0.5, 0.8, 0.99):
        r2 = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
        got = rtc_velocity(0 * one, 0 * one, one, np.ones(1), t=t, beta=5.0, vjp=lambda u: u)
        assert got.item() == pytest.approx(min(5.0, (1 - t) / (t * r2)))
    assert rtc_velocity(0 * one, 0 * one, one, np.ones(1), t=0.0, beta=5.0, vjp=lambda u: u).item() == 5.0


def seen(y: float) -> Seen:
    return Seen(p_2=np.array([0.1, y]), v_2=np.zeros(2), goal_2=np.array([0.5, 0.0]), goal_v_2=np.zeros(2))


def test_the_benchmarks_policy_samples_its_two_modes_and_guidance_keeps_one(monkeypatch: pytest.MonkeyPatch) -> None:
    here = seen(0.0)
    monkeypatch.setattr(bench_latency, "FLOW_STEPS", 100)  # the ten steps of the benchmark are 5 mm off
    monkeypatch.setattr(bench_latency, "FLOW", bench_latency._flow_tables())
    path_MH2, log_M = modes(here)
    assert np.allclose(np.exp(log_M), 0.5)
    ends = np.array([plain(here, Ask(t_obs_s=0.0, committed_KA=np.zeros((0, 2)), delay=0), rng)[20, 1]
                     for rng in map(np.random.default_rng, range(60))])  # fmt: skip
    off = np.abs(ends) - path_MH2[0, 20, 1]
    assert abs(off.mean()) < 0.004 and 0.006 < off.std() < 0.014  # 0.1 m x 0.15 x sqrt(21 / 50) = 0.0097 m
    assert 15 < (ends > 0).sum() < 45
    monkeypatch.undo()
    ask = Ask(t_obs_s=0.0, committed_KA=path_MH2[0], delay=8)
    free = [plain(here, ask, rng)[20, 1] > 0 for rng in map(np.random.default_rng, range(100))]
    kept = [guided(here, ask, rng)[20, 1] > 0 for rng in map(np.random.default_rng, range(100))]
    assert abs(np.mean(free) - 0.5) < 0.15 and np.mean(kept) > 0.68  # a tie: guidance turns most, not all


def test_without_latency_the_ways_that_go_by_time_succeed_and_none_starves() -> None:
    for name in ("by time", "real-time, guided"):
        scores = play(name, 0.0, 0)
        assert scores["success"] == 1.0 and scores["starved"] == 0.0
    assert play("receding horizon", 0.4, 0)["starved"] > 0.3
    assert play("by time", 0.4, 0)["starved"] < 0.15
