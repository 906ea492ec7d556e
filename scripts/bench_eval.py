"""Episodes an hour of evaluation, ours beside others, all measured in one run on the same policy and episodes.

make bench-eval     writes outputs/bench_eval.json and prints each figure beside its bar

Each way is timed from a loaded policy to its last episode, so the start of its processes and the building of its scenes
count. Special: the policy has random weights and never succeeds, so that every episode has the same number of steps.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import DictConfig

from scripts.bench_peers import Match, StockEnv, lerobot_eval, vla_eval
from scripts.entry import entry
from sim.libero import LiberoEnv, libero_panda
from sim.vector import EnvPool
from vla.core.errors import GrasplineError
from vla.core.protocols import Env, Policy
from vla.core.types import Observation, Step
from vla.data.transforms import Transforms
from vla.policies.load import load_policy, save_policy
from vla.policies.threads import single_thread
from vla.policies.tiny import tiny_policy
from vla.rollout.baselines import ZeroPolicy
from vla.rollout.evaluate import write_json
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.runner import EpisodePlan, EpisodeResult, run_episodes

IMAGE_SIZE = 256  # [px]
PARTS = ("physics", "rendering", "policy", "waiting")
SETTINGS = {  # of lerobot-eval
    "2 processes": {"batch": 2, "processes": True, "rebuild": True},
    "2 processes, soft resets": {"batch": 2, "processes": True, "rebuild": False},
    "4 processes, soft resets": {"batch": 4, "processes": True, "rebuild": False},
    "without processes, soft resets": {"batch": 2, "processes": False, "rebuild": False},
}
BARS = {
    "vs_render_every_step": (">=", 5.0),
    "vs_lerobot_eval": (">=", 4.0),
    "memory_mb_per_100_episodes": ("<=", 10.0),
}


class EveryStepEnv(LiberoEnv):
    """Ours, except that both cameras are drawn in every step, whether or not anybody looks."""

    def reset(self, task: str, init_state: int, seed: int) -> None:
        super().reset(task, init_state, seed)
        self._last = super().observe()

    def step(self, action_A: np.ndarray) -> Step:
        step = super().step(action_A)
        self._last = super().observe()
        return step

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        return self._last


def main(config: DictConfig) -> None:
    """Plays the same episodes in every way, compares, writes."""
    _check(config)
    out = Path(config.out)
    folder = out.parent / "bench_eval"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_random_policy(folder / "policy")
    with single_thread():
        policy = load_policy(folder / "policy").eval()
        ways = own_ways(config, policy)
        _print_ways(ways)
        match = Match(
            **{key: config[key] for key in ("suite", "tasks", "horizon", "execute", "workers", "assets")},
            image_size=IMAGE_SIZE,
            policy=(folder / "policy").resolve(),
        )
        if config.tune:
            ways |= lerobot_ways(match, config.tune, config.episodes, folder)
        if config.vla_eval is not None:
            (folder / "vla_eval").mkdir()
            seconds = vla_eval(match, config.episodes, (folder / "vla_eval").resolve(), Path(config.vla_eval))
            ways["vla-eval"] = timed(config.episodes, seconds)
        figures: dict[str, Any] = {
            "settings": dict(config) | {"slots": list(config.slots)},
            "ways": ways,
            **ratios(ways),
        }
        if config.memory:
            figures |= memory(config)
    _print_ways(ways)
    for name in (name for name in figures if isinstance(figures[name], float)):
        sign, bar = BARS.get(name, ("", ""))
        print(f"{name:32}{figures[name]:10.2f}  {sign} {bar}")
    write_json(out, figures)
    print(out)


def own_ways(config: DictConfig, policy: Policy) -> dict[str, dict[str, float]]:
    """Rows of the ways that run on our pool. One process plays an eighth of the episodes: it takes long enough."""
    settings = {"suite": config.suite, "assets": config.assets, "image_size": IMAGE_SIZE, "horizon": config.horizon}
    tasks = list(LiberoEnv(**settings).tasks.values())[: config.tasks]
    plan = make_plan(tasks, config.episodes, "all", 0)
    few = make_plan(tasks, max(1, config.episodes // 8), "all", 0)
    ours, drawing, stock = (partial(kind, **settings) for kind in (LiberoEnv, EveryStepEnv, StockEnv))
    ways = {f"ours, {slots} envs": (ours, plan, slots, config.workers) for slots in config.slots}
    ways |= {
        "ours, one process": (ours, few, 1, 0),
        "LIBERO's loop": (stock, plan, config.workers, config.workers),
        "LIBERO's loop, one process": (stock, few, 1, 0),
        "ours, drawing every step": (drawing, plan, config.workers, config.workers),
        "ours, drawing every step, one process": (drawing, few, 1, 0),
    }
    return {name: play(policy, config.execute, *way) for name, way in ways.items()}


def play(
    policy: Policy, execute: int, make_env: Callable[[], Env], plan: Sequence[EpisodePlan], slots: int, workers: int
) -> dict[str, float]:
    """Plays a plan; how fast, and of the time of an episode in its slot, what share goes where."""
    rows: list[EpisodeResult] = []
    began = time.perf_counter()
    with EnvPool(make_env, num_slots=slots, num_workers=workers) as pool:
        run_episodes(pool, policy, plan, RecedingHorizon(execute), rows.append)
        seconds = time.perf_counter() - began
    if errors := [row.error for row in rows if row.error]:
        raise GrasplineError(f"{len(errors)} of {len(plan)} episodes ended in an error, first: {errors[0]}")
    spent = np.array([[row.physics_s, row.render_s, row.policy_s, row.wall_s] for row in rows]).sum(axis=0)
    spent[3] -= spent[:3].sum()
    shares = dict(zip(PARTS, (spent / spent.sum()).tolist(), strict=True))
    return {**timed(len(rows), seconds), "steps": float(sum(row.steps for row in rows)), **shares}


def timed(episodes: int, seconds: float) -> dict[str, float]:
    """A row of the table."""
    return {"episodes": float(episodes), "seconds": seconds, "episodes_per_hour": 3600 * episodes / seconds}


def lerobot_ways(match: Match, tune: int, episodes: int, folder: Path) -> dict[str, dict[str, float]]:
    """lerobot-eval in each setting on a few episodes, then in the fastest on all."""
    rates: dict[str, dict[str, float]] = {}

    def measure(name: str, setting: Mapping[str, Any], count: int) -> dict[str, float]:
        place = (folder / name.replace(" ", "_").replace(",", "")).resolve()
        place.mkdir()
        return timed(count, lerobot_eval(match, count, place, **setting))

    for name, setting in SETTINGS.items():
        rates[f"lerobot-eval, {name}, tried"] = measure(f"tried {name}", setting, tune)
    best = max(SETTINGS, key=lambda name: rates[f"lerobot-eval, {name}, tried"]["episodes_per_hour"])
    return {**rates, f"lerobot-eval, {best}": measure(best, SETTINGS[best], episodes)}


def ratios(ways: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How many times as many episodes an hour as each other way, its best row against our best."""

    def best(start: str, without: str = "one process") -> float:
        rows = [row for name, row in ways.items() if name.startswith(start) and without not in name]
        return max((row["episodes_per_hour"] for row in rows), default=float("nan"))

    ours = max(row["episodes_per_hour"] for name, row in ways.items() if name.startswith("ours, ") and "envs" in name)
    others = {
        "vs_render_every_step": best("LIBERO's loop"),
        "vs_own_env_every_step": best("ours, drawing"),
        "vs_lerobot_eval": best("lerobot"),
        "vs_vla_eval": best("vla-eval"),
    }
    return {name: ours / rate for name, rate in others.items() if not math.isnan(rate)}


def memory(config: DictConfig) -> dict[str, float]:
    """Growth of a worker's memory [MB for 100 episodes]: two tasks by turns, the scene built anew eight times."""
    make_env = partial(
        LiberoEnv, suite=config.suite, assets=config.assets, image_size=IMAGE_SIZE, horizon=2, settle_steps=0
    )
    tasks = list(make_env().tasks.values())[:2]
    policy, each, used_mb = ZeroPolicy(spec=libero_panda(IMAGE_SIZE)), max(2, config.memory // 8), []
    policy.cameras = policy.spec.camera_names  # so that pictures are drawn
    with EnvPool(make_env, num_slots=1, num_workers=1) as pool:
        worker = psutil.Process(pool.pids[0])

        def note(result: EpisodeResult) -> None:
            if result.error:
                raise GrasplineError(result.error)
            used_mb.append(worker.memory_info().rss / 2**20)

        for turn in range(8):
            run_episodes(pool, policy, make_plan([tasks[turn % 2]], each, "all", 0), RecedingHorizon(1), note)
    settled_mb = np.array(used_mb[2 * each :])  # both tasks have been built once
    growth = np.polyfit(np.arange(len(settled_mb)), settled_mb, 1)[0]
    return {"memory_mb": float(settled_mb.mean()), "memory_mb_per_100_episodes": float(100 * growth)}


def save_random_policy(folder: Path) -> None:
    """Writes a run directory: the small policy for LIBERO, random weights, chunks of eight."""
    spec, rng = libero_panda(IMAGE_SIZE), np.random.default_rng(0)
    states = rng.standard_normal((99, spec.state_dim))
    transforms = Transforms.fit(spec, states, rng.uniform(-1, 1, (99, spec.action_dim)))
    torch.manual_seed(0)
    policy = tiny_policy(spec=spec, transforms=transforms, cameras=spec.camera_names, horizon=8)
    folder.mkdir()
    save_policy(folder, policy)


def _check(config: DictConfig) -> None:
    for key, least in (("tasks", 1), ("episodes", 1), ("horizon", 1), ("workers", 1), ("tune", 0), ("memory", 0)):
        if not isinstance(config[key], int) or config[key] < least:
            raise GrasplineError(f"{key} is {config[key]}, expected a whole number of at least {least}")
    if not 1 <= config.execute <= 8:
        raise GrasplineError(f"execute is {config.execute}, expected 1 to 8")
    for key in ("episodes", "tune"):
        if config[key] % config.tasks:
            raise GrasplineError(f"{key} is {config[key]}, expected a multiple of tasks ({config.tasks})")


def _print_ways(ways: Mapping[str, Mapping[str, float]]) -> None:
    print(f"{'':44}{'episodes':>9}{'seconds':>9}{'an hour':>9}" + "".join(f"{part:>11}" for part in PARTS))
    for name, row in ways.items():
        shares = "".join(f"{100 * row[part]:10.0f}%" for part in PARTS if part in row)
        print(f"{name:44}{row['episodes']:9.0f}{row['seconds']:9.1f}{row['episodes_per_hour']:9.0f}{shares}")


if __name__ == "__main__":
    entry("bench_eval", main)
