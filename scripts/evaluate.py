"""Success rates with intervals: `python -m scripts.evaluate env=tabletop tasks=all policy=outputs/run`. See --help.

Special: this file only composes; worker processes import it again, so what is heavy is imported where it is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from scripts.entry import entry
from sim.vector import EnvPool
from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Env, Policy
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.evaluate import Run, evaluate, write_json
from vla.rollout.executor import Executor, RecedingHorizon, TemporalEnsemble
from vla.rollout.plan import make_plan, select_tasks
from vla.rollout.provenance import gl_renderer, software
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult, run_episodes, run_in_workers
from vla.rollout.video import FilmedEnv, choose_rows, film_name

BASELINES = {"random": RandomPolicy, "zero": ZeroPolicy}


def main(config: DictConfig) -> None:
    make_env: Callable[[], Env] = instantiate(config.env, _partial_=True, _convert_="all")
    env = make_env()
    tasks = select_tasks(env.tasks, config.tasks if isinstance(config.tasks, str) else list(config.tasks))
    plan = make_plan(tasks, config.episodes, config.init_states, config.seed)
    policy, policy_identity = _policy(config.policy, env)
    executor = _executor(config, policy)
    horizon = 1 if policy is None else policy.horizon
    identity = {
        "policy": policy_identity,
        "env": OmegaConf.to_container(config.env),
        "protocol": {
            "tasks": {task.name: {"max_steps": task.horizon} for task in tasks},
            "episodes": config.episodes,
            "init_states": config.init_states,
            "seed": config.seed,
            "horizon": horizon,
            "execute": executor.execute if isinstance(executor, RecedingHorizon) else 1,
            "ensemble": config.ensemble,
        },
        "software": software(),
    }
    env.close()
    out = Path(config.out)
    slots = min(config.batch, config.episodes)
    with EnvPool(make_env, num_slots=slots, num_workers=config.workers) as pool, _Bar(len(plan)) as bar:
        identity["gl_renderer"] = _gl_renderer(pool, tasks[0].name)
        results = evaluate(_player(pool, policy, executor), plan, out, identity, bar.add)
    _film(config, make_env, policy, executor, results, out)
    _print(results, out)
    if results["errors"]:
        first = next(row["error"] for row in results["rows"] if row["error"])
        raise GrasplineError(
            f"{results['errors']} of {len(plan)} episodes ended in an error and count as failures, first: {first}. "
            "The same command tries those again"
        )


def _policy(name: str, env: Env) -> tuple[Policy | None, dict[str, str | None]]:
    """The policy and what identifies it; None for the expert, which is built beside each env."""
    if name == "expert":
        return None, {"name": name, "hash": None}
    if name in BASELINES:
        return BASELINES[name](spec=env.spec), {"name": name, "hash": None}
    if not Path(name).is_dir():
        raise unknown_name("policy", name, ["expert", *BASELINES, "<an existing run directory>"])
    import torch

    from vla.policies.load import load_policy, policy_hash

    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(Path(name), device)
    policy.spec.check_same(env.spec, here="the policy", there="the env")
    return policy, {"name": name, "hash": policy_hash(Path(name)), "device": device}


def _expert(env: Env) -> Policy:
    from sim.experts import expert_for

    return expert_for(env.inner if isinstance(env, FilmedEnv) else env)


def _executor(config: DictConfig, policy: Policy | None) -> Executor:
    if config.ensemble is not None:
        return TemporalEnsemble(config.ensemble)
    return RecedingHorizon(min(config.execute, 1 if policy is None else policy.horizon))


def _player(pool: EnvPool, policy: Policy | None, executor: Executor) -> Run:
    def run(rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        if policy is None:
            run_in_workers(pool, _expert, rows, executor, on_result)
        else:
            run_episodes(pool, policy, rows, executor, on_result)

    return run


def _gl_renderer(pool: EnvPool, task: str) -> str | None:
    pool.call(0, gl_renderer, task)
    [reply] = pool.wait()
    if reply.error is not None:
        raise GrasplineError(f"the env does not start: {reply.error}")
    return reply.value


def _film(
    config: DictConfig,
    make_env: Callable[[], Env],
    policy: Policy | None,
    executor: Executor,
    results: Mapping[str, Any],
    out: Path,
) -> None:
    """Plays some rows again on film, and notes in replays.json whether they came out the same, which they must."""
    folder = out / "videos"
    chosen = [
        row
        for row in choose_rows(results["rows"], config.videos)
        if not (folder / film_name(row["task"], row["init_state"], row["seed"], row["success"])).exists()
    ]
    if not chosen:
        return
    before = {EpisodePlan(row["task"], row["init_state"], row["seed"]): row for row in chosen}
    differing: list[str] = []

    def compare(result: EpisodeResult) -> None:
        row = before[EpisodePlan(result.task, result.init_state, result.seed)]
        if result.error or (result.success, result.steps) != (row["success"], row["steps"]):
            differing.append(f"{result.task} {result.init_state} {result.seed}: {result.error or result.success}")

    filmed = partial(FilmedEnv, make_env=make_env, folder=folder)
    with EnvPool(filmed, num_slots=min(config.batch, len(chosen)), num_workers=config.workers) as pool:
        _player(pool, policy, executor)(list(before), compare)
    write_json(out / "replays.json", {"rows": len(chosen), "differing": differing})
    if differing:
        print(f"warning: {len(differing)} of {len(chosen)} replayed episodes came out differently: {differing[0]}")


class _Bar:
    """A progress bar that shows the running success rate."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="episode", dynamic_ncols=True, mininterval=0.5)
        self._successes = 0

    def add(self, result: EpisodeResult) -> None:
        self._successes += result.success
        self._bar.set_postfix_str(f"{self._successes} of {self._bar.n + 1} succeeded", refresh=False)
        self._bar.update()

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _print(results: Mapping[str, Any], out: Path) -> None:
    for name, score in [*results["per_task"].items(), ("total", results["total"])]:
        print(
            f"{name:40s} {score['successes']:4d} of {score['episodes']:4d}  {score['success']:6.1%}  "
            f"[{score['low']:.1%}, {score['high']:.1%}]"
        )
    print(f"wrote {out / 'results.json'}")


if __name__ == "__main__":
    entry("evaluate", main)
