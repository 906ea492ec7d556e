"""Success rates with intervals: `python -m scripts.evaluate env=tabletop tasks=all policy=outputs/run`. See --help.

Special: this file only composes; worker processes import it again, so what is heavy is imported where it is needed.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from scripts.entry import CONFIG_DIR, entry
from sim.vector import EnvPool
from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Env, Policy, Task
from vla.rollout.baselines import RandomPolicy, ZeroPolicy
from vla.rollout.evaluate import Run, evaluate, write_json
from vla.rollout.executor import Executor, RecedingHorizon, TemporalEnsemble
from vla.rollout.function import FunctionPolicy, function_named
from vla.rollout.plan import make_plan, select_tasks
from vla.rollout.protocol import Protocol
from vla.rollout.provenance import gl_renderer, hardware, software
from vla.rollout.ray_run import Alive, RayRun, Watched
from vla.rollout.remote import RemotePolicy
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult, run_episodes, run_in_workers
from vla.rollout.sequential import StopWhen
from vla.rollout.video import FilmedEnv, choose_rows, film_name

EXECUTORS = ("workers", "ray")
BASELINES = {"random": RandomPolicy, "zero": ZeroPolicy}
UNNAMED = {"episodes": 60, "init_states": "heldout", "execute": 8, "seed": 0}  # what null means without a protocol


def main(config: DictConfig) -> None:
    if config.executor not in EXECUTORS:
        raise unknown_name("executor", str(config.executor), EXECUTORS)
    protocol = _protocol(config)
    env_config = _perturbed(config, _env(config, protocol))
    make_env: Callable[[], Env] = instantiate(env_config, _partial_=True, _convert_="all")
    env = make_env()
    tasks = select_tasks(env.tasks, config.tasks if isinstance(config.tasks, str) else list(config.tasks))
    plan = _plan(config, protocol, tasks)
    stop = _stop_when(config)
    policy, policy_identity = policy_named(config.policy, env)
    executor = _executor(config, protocol, policy)
    identity = {
        "policy": policy_identity,
        "env": OmegaConf.to_container(env_config),
        "protocol": {
            "tasks": {task.name: {"max_steps": task.horizon} for task in tasks},
            "episodes": len(plan),
            "init_states": _setting(config, protocol, "init_states"),
            "seed": _setting(config, protocol, "seed"),
            "horizon": 1 if policy is None else policy.horizon,
            "execute": executor.execute if isinstance(executor, RecedingHorizon) else 1,
            "ensemble": config.ensemble,
            **_named(config, protocol, executor, plan, all_tasks=len(tasks) == len(env.tasks)),
        },
        "software": software(),
        "hardware": hardware(),
        **({} if stop is None else {"stop_when": {"target": stop.target, "alpha": stop.alpha}}),
    }
    env.close()
    out = Path(config.out)
    slots = 1 if config.executor == "ray" else min(config.batch, len(plan))
    limit_s = None if policy is None else config.timeout_s  # an expert plays a whole episode in one command
    with (
        EnvPool(make_env, num_slots=slots, num_workers=config.workers, timeout_s=limit_s) as pool,
        _Bar(len(plan)) as bar,
    ):
        identity["gl_renderer"] = _gl_renderer(pool, tasks[0].name)
        with _run(config, pool, make_env, policy, executor) as run:
            results = evaluate(run, plan, out, identity, bar.add, stop)
    _film(config, make_env, policy, executor, results, out)
    if isinstance(policy, RemotePolicy):
        policy.close()
    _print(results, out)
    if results["errors"]:
        first = next(row["error"] for row in results["rows"] if row["error"])
        raise GrasplineError(
            f"{results['errors']} of {len(results['rows'])} episodes ended in an error and count as failures, first: "
            f"{first}. The same command tries those again"
        )


def _protocol(config: DictConfig) -> Protocol | None:
    """The protocol as asked for: the published one, then what the command line says on top."""
    if config.get("protocol") is None:
        return None
    asked = {key: config[key] for key in ("init_states", "execute", "seed") if config[key] is not None}
    return replace(instantiate(config.protocol, _partial_=True, _convert_="all")(), **asked)


def _setting(config: DictConfig, protocol: Protocol | None, key: str) -> Any:
    """A key that may be null: the command line's value, or the protocol's, or the plain default."""
    if config[key] is not None:
        return config[key]
    return UNNAMED[key] if protocol is None else getattr(protocol, key)


def _env(config: DictConfig, protocol: Protocol | None) -> DictConfig:
    """The env's config with what the protocol sets. Refuses a change of the same key, since one of the two is lost."""
    if protocol is None:
        return config.env
    if config.env._target_ != "sim.libero.LiberoEnv":
        raise GrasplineError(f"protocol={protocol.name} is one of LIBERO: env must be a suite such as libero_spatial")
    suite = config.env.suite
    settings = protocol.env(suite)
    untouched = dict(OmegaConf.load(CONFIG_DIR / "env" / f"{suite}.yaml"))
    for key in settings:
        if config.env.get(key) != untouched.get(key):
            name = f"horizons.{suite}" if key == "horizon" else key
            raise GrasplineError(f"env.{key} is the protocol's to set: write protocol.{name}={config.env[key]} instead")
    env = config.env.copy()
    with open_dict(env):
        env.update(settings)
    return env


def _perturbed(config: DictConfig, env: DictConfig) -> DictConfig:
    """The env's config inside that of a harder one (sim/perturb.py), if one is asked for."""
    if config.perturbation is None:
        return env
    inner = {**dict(env), "_partial_": True}
    return OmegaConf.create({"_target_": "sim.perturb.Perturbed", "make_env": inner, **config.perturbation})


def _plan(config: DictConfig, protocol: Protocol | None, tasks: Sequence[Task]) -> list[EpisodePlan]:
    if protocol is not None:
        return protocol.plan(tasks, config.episodes)
    episodes, init_states, seed = (_setting(config, protocol, key) for key in ("episodes", "init_states", "seed"))
    return make_plan(tasks, episodes, init_states, seed)


def _named(
    config: DictConfig, protocol: Protocol | None, executor: Executor, plan: Sequence[EpisodePlan], *, all_tasks: bool
) -> dict[str, Any]:
    """The protocol's name, with what is not as published, and its constants as they were used."""
    if protocol is None:
        return {}
    files = {path.stem: path for path in (CONFIG_DIR / "protocol").glob("*.yaml")}
    if protocol.name not in files:
        raise unknown_name("protocol.name", protocol.name, files)
    published = instantiate(OmegaConf.load(files[protocol.name]), _convert_="all")
    if isinstance(executor, RecedingHorizon) and protocol.execute is not None:
        protocol = replace(protocol, execute=executor.execute)  # a policy's chunks may be shorter
    tasks = len({row.task for row in plan})
    others = {
        "tasks": not all_tasks,
        "episodes": len(plan) != protocol.trials * tasks,
        "ensemble": config.ensemble is not None,
        "stop_when": config.stop_when is not None,
    }
    return protocol.describe(published, also_changed=[name for name, changed in others.items() if changed])


def _stop_when(config: DictConfig) -> StopWhen | None:
    if config.stop_when is None:
        return None
    valid = ("target", "alpha")
    if not OmegaConf.is_dict(config.stop_when) or "target" not in config.stop_when:
        raise GrasplineError(f"stop_when={config.stop_when}: expected a table such as {{target: 0.9, alpha: 0.05}}")
    for key in config.stop_when:
        if key not in valid:
            raise unknown_name("config key", f"stop_when.{key}", [f"stop_when.{each}" for each in valid])
    return StopWhen(**config.stop_when)


def policy_named(name: str, env: Env) -> tuple[Policy | None, dict[str, str | None]]:
    """The policy and what identifies it; None for the expert, which is built beside each env."""
    if name == "expert":
        return None, {"name": name, "hash": None}
    if name in BASELINES:
        return BASELINES[name](spec=env.spec), {"name": name, "hash": None}
    if name.startswith(("ws://", "wss://")):
        token = os.environ.get("GRASPLINE_TOKEN")
        return RemotePolicy(name, spec=env.spec, token=token), {"name": name, "hash": None}
    if Path(name).is_dir():
        return _local_policy(Path(name), env)
    if ":" in name and "/" not in name:
        return FunctionPolicy(function_named(name), spec=env.spec), {"name": name, "hash": None}
    kinds = ("ws://<host>:<port>", "<module>:<function>", "<an existing run directory or lerobot policy>")
    raise unknown_name("policy", name, ["expert", *BASELINES, *kinds])


def _local_policy(folder: Path, env: Env) -> tuple[Policy, dict[str, str | None]]:
    import torch

    if (folder / "player.json").exists():
        from vla.rl.player import load_player, player_hash

        player = load_player(folder)
        player.spec.check_same(env.spec, here="the player", there="the env")
        return player, {"name": str(folder), "hash": player_hash(folder), "device": "cpu"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (folder / "config.json").exists() and not (folder / "policy.json").exists():
        from vla.policies.lerobot import LeRobotPolicy, lerobot_hash

        policy = LeRobotPolicy(folder, spec=env.spec, device=device)
        return policy, {"name": str(folder), "hash": lerobot_hash(folder), "device": device}
    from vla.policies.load import load_policy, policy_hash

    policy = load_policy(folder, device)
    policy.spec.check_same(env.spec, here="the policy", there="the env")
    return policy, {"name": str(folder), "hash": policy_hash(folder), "device": device}


def _expert(env: Env) -> Policy:
    from sim.experts import expert_for

    return expert_for(env.inner if isinstance(env, FilmedEnv) else env)


def _executor(config: DictConfig, protocol: Protocol | None, policy: Policy | None) -> Executor:
    if config.ensemble is not None:
        return TemporalEnsemble(config.ensemble)
    horizon = 1 if policy is None else policy.horizon
    return RecedingHorizon(min(_setting(config, protocol, "execute") or horizon, horizon))


@contextmanager
def _run(
    config: DictConfig, pool: EnvPool, make_env: Callable[[], Env], policy: Policy | None, executor: Executor
) -> Iterator[Run]:
    """What plays the rows: the pool, or actors that have envs and a policy of their own."""
    if config.executor == "workers":
        yield player(pool, policy, executor)
        return
    name = str(Path(config.policy).resolve()) if Path(config.policy).is_dir() else config.policy
    make_run = partial(_play_in_actor, make_env, name, executor, config.batch)
    with RayRun(make_run, slots=config.batch, timeout_s=config.timeout_s, **config.ray) as run:
        yield run


def _play_in_actor(make_env: Callable[[], Env], policy: str, executor: Executor, batch: int, alive: Alive) -> Run:
    env = make_env()
    loaded, _ = policy_named(policy, env)
    env.close()
    pool = EnvPool(make_env, num_slots=batch, num_workers=0)
    if loaded is not None:
        return player(pool, Watched(loaded, alive), executor)
    return player(pool, None, executor, make_expert=lambda env: Watched(_expert(env), alive))


def player(
    pool: EnvPool, policy: Policy | None, executor: Executor, make_expert: Callable[[Env], Policy] = _expert
) -> Run:
    def run(rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        if policy is None:
            run_in_workers(pool, make_expert, rows, executor, on_result)
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
        player(pool, policy, executor)(list(before), compare)
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
    if stopping := results.get("stopping"):
        print(_verdict(stopping, len(results["rows"])))
    print(f"wrote {out / 'results.json'}")


def _verdict(stopping: Mapping[str, Any], played: int) -> str:
    if stopping["decision"] is None:
        return f"all {played} episodes do not decide whether success is above or below {stopping['target']:.1%}"
    return (
        f"stopped after {played} of {stopping['planned']} episodes: success is {stopping['decision']} "
        f"{stopping['target']:.1%} (wrong with a probability of at most {stopping['alpha']:.1%})"
    )


if __name__ == "__main__":
    entry("evaluate", main)
