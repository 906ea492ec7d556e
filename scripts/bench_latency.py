"""How to play a policy's chunks under latency: nine ways on one task, success, tracking, jerk and starvation.

python -m scripts.bench_latency     writes outputs/bench_latency.json and .png and prints the table of docs/latency.md

The task: round a post, on either side, to a target that swings, and stay with it. What is special: the policy is a
known function (a flow whose two modes are the two sides, exact, without a network), so what differs between the rows
is the playing alone; the robot's own timeline (real_robot/core/timeline.py) plays the chunks in all of them.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig

from real_robot.core.timeline import Timeline
from real_robot.core.types import ArmSpec, Array, JointSpec
from real_robot.playing import Ask, Playing, Scheduler, rtc_velocity, rtc_weights
from scripts.entry import entry
from vla.core.errors import unknown_name

HORIZON, EXECUTE, DT_S = 50, 25, 0.02  # of the policy
TICK_S = 0.01  # of the robot
POST_M2, POST_RADIUS_M, CLEAR_M = np.array([0.25, 0.0]), 0.07, 0.13
SPEED_M_S, ACCELERATION_M_S2 = 0.4, 2.5  # of the policy's paths
NEAR_M, STAY_S, EPISODE_S, STEADY_S = 0.03, 1.0, 7.0, 4.0
NATURAL_RAD_S, PLANT_M_S2 = 30.0, 15.0  # of the plant: critically damped, limited
UNIT_M = 0.1  # the flow works in decimetres
SPREAD, SMOOTH_STEPS = 0.15, 12.0  # of the chunks round a mode: [decimetres] at the end, correlated over so many steps
FLOW_STEPS, BETA = 10, 5.0
JITTER = 0.3  # latency is uniform within +- 30 %


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the policy observes: positions [m] and velocities [m/s] of the point and of the target."""

    p_2: Array
    v_2: Array
    goal_2: Array
    goal_v_2: Array


type Sampler = Callable[[Seen, Ask, np.random.Generator], Array]


def plain(seen: Seen, ask: Ask, rng: np.random.Generator) -> Array:
    """Knows nothing of what is committed."""
    return _flow(seen, rng, np.zeros((HORIZON, 2)), np.zeros(HORIZON))


def guided(seen: Seen, ask: Ask, rng: np.random.Generator) -> Array:
    """Real-time chunking at run time: the flow is pulled towards the committed steps."""
    previous_HA = np.zeros((HORIZON, 2))
    committed_KA = ask.committed_KA[: HORIZON - EXECUTE]
    weights_H = np.zeros(HORIZON)
    if len(committed_KA):
        previous_HA[: len(committed_KA)] = committed_KA
        weights_H = rtc_weights(HORIZON, min(ask.delay, len(committed_KA)), EXECUTE)
        weights_H[len(committed_KA) :] = 0.0
    return _flow(seen, rng, previous_HA, weights_H)


def conditioned(seen: Seen, ask: Ask, rng: np.random.Generator) -> Array:
    """What a policy trained on committed prefixes has learnt: the chunk goes on where the prefix ends."""
    prefix_DA = ask.committed_KA[: ask.delay]
    if len(prefix_DA) < 2:
        return plain(seen, ask, rng)
    ahead_s = len(prefix_DA) * DT_S
    rolled = Seen(
        p_2=prefix_DA[-1],
        v_2=(prefix_DA[-1] - prefix_DA[-2]) / DT_S,
        goal_2=seen.goal_2 + ahead_s * seen.goal_v_2,
        goal_v_2=seen.goal_v_2,
    )
    return np.vstack([prefix_DA, plain(rolled, ask, rng)])[:HORIZON]


METHODS: dict[str, tuple[Playing, Sampler]] = {
    "open loop": (Playing(execute=HORIZON, wait=True, timed=False), plain),
    "receding horizon": (Playing(execute=EXECUTE, wait=True, timed=False), plain),
    "asynchronous": (Playing(execute=EXECUTE, timed=False), plain),
    "by time": (Playing(execute=EXECUTE), plain),
    "by time, fade": (Playing(execute=EXECUTE, fade=10), plain),
    "ensemble": (Playing(execute=1, ensemble_decay=0.01), plain),
    "ensemble, newest first": (Playing(execute=1, ensemble_decay=-0.2), plain),
    "real-time, guided": (Playing(execute=EXECUTE), guided),
    "real-time, conditioned": (Playing(execute=EXECUTE), conditioned),
}


def modes(seen: Seen) -> tuple[Array, Array]:
    """The policy's two paths (2, H, 2) [m], left and right of the post, and their log-probabilities (2,)."""
    paths = [_path(seen, complex(POST_M2[0], side * CLEAR_M)) for side in (1.0, -1.0)]
    lean = (seen.p_2[1] + 0.2 * seen.v_2[1]) / 0.02
    return np.stack([np.real(paths), np.imag(paths)], -1), -np.logaddexp(0.0, np.array([-lean, lean]))


def _path(seen: Seen, via: complex) -> list[complex]:
    """H positions past `via` to the target, which is taken to go on straight; the plane as complex numbers [m]."""
    p, v, goal, goal_v = (complex(*each_2) for each_2 in (seen.p_2, seen.v_2, seen.goal_2, seen.goal_v_2))
    path = []
    for i in range(1, HORIZON + 1):
        before = p.real < via.real
        way = (via if before else goal + i * DT_S * goal_v) - p
        far = abs(way)
        speed = SPEED_M_S if before else min(SPEED_M_S, 8.0 * far, math.sqrt(3.0 * far))
        wanted = way / max(far, 1e-9) * speed + (0.0 if before else goal_v)
        change = wanted - v
        v += change * min(1.0, ACCELERATION_M_S2 * DT_S / max(abs(change), 1e-9))
        p += v * DT_S
        path.append(p)
    return path


def _flow(seen: Seen, rng: np.random.Generator, previous_HA: Array, weights_H: Array) -> Array:
    """A sample of the exact flow to a mixture of two Gaussians round the modes, guided where weights are not zero.

    x_t = (1 - t) noise + t actions is Gaussian for each mode: mean t mu, covariance (1 - t)^2 I + t^2 K.
    """
    path_MHA, log_M = modes(seen)
    mean_MHA = (path_MHA - seen.p_2) / UNIT_M
    goal_HA = (previous_HA - seen.p_2) / UNIT_M
    x_HA = rng.normal(size=(HORIZON, 2))
    for step, (precision_HH, gain_HH) in enumerate(FLOW):
        t = step / len(FLOW)
        off_MHA = x_HA - t * mean_MHA
        pull_MHA = -precision_HH @ off_MHA  # gradient of each mode's log-density
        score_M = log_M + 0.5 * (off_MHA * pull_MHA).sum((1, 2))
        w_M = np.exp(score_M - score_M.max())
        w_M /= w_M.sum()
        clean_MHA = mean_MHA + gain_HH @ off_MHA
        pull_MHA = pull_MHA - np.tensordot(w_M, pull_MHA, 1)
        vjp = partial(_pulled_back, w_M, clean_MHA, pull_MHA, gain_HH)
        v_HA = (np.tensordot(w_M, clean_MHA, 1) - x_HA) / (1.0 - t)
        v_HA = rtc_velocity(v_HA, x_HA, goal_HA, weights_H, t=t, beta=BETA, vjp=vjp)
        x_HA = x_HA + v_HA / len(FLOW)
    return x_HA * UNIT_M + seen.p_2


def _pulled_back(w_M: Array, clean_MHA: Array, pull_MHA: Array, gain_HH: Array, u_HA: Array) -> Array:
    """J^T u for the posterior mean sum_m w_m clean_m, whose weights depend on x too."""
    share_M = w_M * (clean_MHA * u_HA).sum((1, 2))
    return gain_HH @ u_HA + np.tensordot(share_M, pull_MHA, 1)


def _flow_tables() -> list[tuple[Array, Array]]:
    """For each Euler step: the precision of x_t and the gain t K precision, K the covariance round a mode."""
    i_H = np.arange(1, HORIZON + 1)
    grow_H = SPREAD * np.sqrt(i_H / HORIZON)
    k_HH = grow_H[:, None] * grow_H * np.exp(-0.5 * ((i_H[:, None] - i_H) / SMOOTH_STEPS) ** 2)
    tables = []
    for step in range(FLOW_STEPS):
        t = step / FLOW_STEPS
        precision_HH = np.linalg.inv((1.0 - t) ** 2 * np.eye(HORIZON) + t * t * k_HH)
        tables.append((precision_HH, t * k_HH @ precision_HH))
    return tables


FLOW = _flow_tables()


def plane() -> ArmSpec:
    """Two sliders, for the timeline."""
    limits = {"low": -1.0, "high": 1.0, "margin": 0.01, "max_velocity": 1.0, "max_acceleration": 6.0}
    joints = tuple(JointSpec(name=name, **limits, max_jerk=200.0, max_effort=10.0) for name in "xy")
    return ArmSpec(name="plane", joints=joints, control_hz=1.0 / TICK_S)


def play(method: str, latency_s: float, seed: int) -> dict[str, float]:
    """One episode."""
    playing, sample = METHODS[method]
    rng = np.random.default_rng(seed)
    phase, swing = rng.uniform(0, 2 * np.pi), 2 * np.pi * 0.15
    scheduler = Scheduler(playing, horizon=HORIZON, dt_s=DT_S, session="bench")
    timeline = Timeline(plane())
    timeline.reset(np.zeros(2), 0.0)
    p_2, v_2 = np.zeros(2), np.zeros(2)
    under_way: tuple[float, Array] | None = None
    path, goals, accelerations, starved = [], [], [], []
    for tick in range(round(EPISODE_S / TICK_S)):
        now_s = tick * TICK_S
        goal_2 = np.array([0.5, 0.1 * np.sin(swing * now_s + phase)])
        goal_v_2 = np.array([0.0, 0.1 * swing * np.cos(swing * now_s + phase)])
        if tick % 2 == 0 and scheduler.due(now_s):
            ask = scheduler.ask(now_s)
            actions_HA = sample(Seen(p_2=p_2, v_2=v_2, goal_2=goal_2, goal_v_2=goal_v_2), ask, rng)
            under_way = now_s + latency_s * rng.uniform(1 - JITTER, 1 + JITTER), actions_HA
        if under_way is not None and now_s >= under_way[0] - 1e-9:
            timeline.push(scheduler.answer(under_way[1], now_s), now_s)
            under_way = None
        setpoint = timeline.sample(now_s)
        pull_2 = NATURAL_RAD_S**2 * (setpoint.q_J - p_2) + 2 * NATURAL_RAD_S * (setpoint.dq_J - v_2)
        a_2 = np.clip(pull_2, -PLANT_M_S2, PLANT_M_S2)
        v_2 = v_2 + TICK_S * a_2
        p_2 = p_2 + TICK_S * v_2
        path.append(p_2)
        goals.append(goal_2)
        accelerations.append(a_2)
        starved.append(setpoint.starved_s > 0.0 or (setpoint.resting and tick > 0))
    return _scores(np.array(path), np.array(goals), np.array(accelerations), np.array(starved))


def _scores(path_T2: Array, goals_T2: Array, a_T2: Array, starved_T: Array) -> dict[str, float]:
    far_T = np.linalg.norm(path_T2 - goals_T2, axis=1)
    hit = bool((np.linalg.norm(path_T2 - POST_M2, axis=1) < POST_RADIUS_M).any())
    stay = np.convolve(far_T < NEAR_M, np.ones(round(STAY_S / TICK_S)), "valid")
    stayed = np.flatnonzero(stay > STAY_S / TICK_S - 0.5)
    steady_T = far_T[round(STEADY_S / TICK_S) :]
    return {
        "success": float(not hit and len(stayed) > 0),
        "hit": float(hit),
        "reach_s": float(stayed[0] * TICK_S) if len(stayed) else EPISODE_S,
        "error_mm": 1e3 * float(np.sqrt((steady_T**2).mean())),
        "jerk_m_s3": float(np.sqrt((np.diff(a_T2, axis=0) ** 2).sum(1).mean()) / TICK_S),
        "starved": float(starved_T[1:].mean()),
    }


def main(config: DictConfig) -> None:
    """Plays, prints, writes."""
    for name in config.methods or ():
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    rows = []
    for name in config.methods or METHODS:
        for latency_ms in config.latency_ms:
            rows.append(_row(name, latency_ms, config.seeds, config.episodes))
            print(_line(rows[-1]), flush=True)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"episodes": config.episodes, "seeds": list(config.seeds), "rows": rows}, indent=1))
    plot(rows, out.with_suffix(".png"))


def _row(name: str, latency_ms: float, seeds: list[int], episodes: int) -> dict[str, Any]:
    """Means over all episodes, and the lowest and highest seed's success."""
    runs = [[play(name, latency_ms / 1e3, 1000 * seed + i) for i in range(episodes)] for seed in seeds]
    means = [{key: float(np.mean([run[key] for run in each])) for key in each[0]} for each in runs]
    row: dict[str, Any] = {key: float(np.mean([mean[key] for mean in means])) for key in means[0]}
    success = [mean["success"] for mean in means]
    return {"method": name, "latency_ms": latency_ms, **row, "success_seeds": success}


def _line(row: dict[str, Any]) -> str:
    seeds = ", ".join(f"{100 * share:.0f}" for share in row["success_seeds"])
    return (
        f"| {row['method']} | {row['latency_ms']} | {100 * row['success']:.0f} ({seeds}) | {100 * row['hit']:.0f} "
        f"| {row['reach_s']:.1f} | {row['error_mm']:.0f} | {row['jerk_m_s3']:.0f} | {100 * row['starved']:.0f} |"
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Success, error, jerk and starvation against latency, one line a method."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    panels = (("success", "success", 1), ("error_mm", "error behind the target [mm]", 1))
    panels += (("jerk_m_s3", "jerk, RMS [m/s³]", 1), ("starved", "time without setpoints [%]", 100))
    names = list(dict.fromkeys(row["method"] for row in rows))
    for axes, (key, title, scale) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for number, name in enumerate(names):
            mine = [row for row in rows if row["method"] == name]
            x = [row["latency_ms"] for row in mine]
            y = [scale * row[key] for row in mine]
            style = {"marker": "osD^vPX*h"[number % 9], "color": f"C{number % 10}", "label": name}
            axes.plot(x, y, **style, linewidth=1.4, markersize=5)
        axes.set(title=title, xlabel="latency [ms], ± 30 %")
        axes.grid(alpha=0.3)
    figure.axes[2].set_yscale("log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    entry("bench_latency", main)
