"""Offline reinforcement learning on chunks: gather -> improve -> ranking test -> evaluate. See --help.

Special: this file only composes. Worker processes load the policy from its folder, once each.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from scripts.entry import entry
from sim.experts import expert_for
from sim.vector import EnvPool
from vla.core.errors import CorruptFileError, GrasplineError, unknown_name
from vla.core.protocols import Env, Task
from vla.policies.load import load_policy, policy_hash
from vla.rl.diagnostics import check_divergence, critic_metrics
from vla.rl.features import Features, PolicyFeatures, StateFeatures
from vla.rl.gather import REWARD, SUFFIX, Controller, Demonstrator, Explorer, Row, read_recording, record_to, to_replay
from vla.rl.interfaces import ChunkBatch
from vla.rl.misjudged import misjudged
from vla.rl.player import ChunkPlayer, load_player, make_algorithm, player_hash, problem_of, save_player
from vla.rl.problem import Problem
from vla.rl.ranking import Judged, Protocol, judge_row, mean_interval, sentence, verdict
from vla.rl.replay import Replay, concatenate
from vla.rl.sampling import Sampler, success_weights
from vla.rl.success_frames import attainable, duplicated
from vla.rollout.collect import collect_plan
from vla.rollout.evaluate import evaluate, write_json
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan, select_tasks
from vla.rollout.provenance import hardware, software
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult, run_episodes
from vla.train.improve import Rows, improve

FREE = ("out", "resume", "workers", "checkpoint_every", "log_every", "experiment")  # no result depends on them
SUCCESS_FRAMES = ("as_they_are", "oversample", "duplicate")
SUCCESS_REPEATS = 6  # how many times a success is seen where it is repeated
ALARM_AFTER = 500  # updates: before that a critic says whatever its first weights say


def main(config: DictConfig) -> None:
    """Gathers what is missing, learns, asks whether the critic can choose, evaluates; the last line is the result."""
    started = time.monotonic()
    plain: Any = OmegaConf.to_container(config, resolve=True)
    _check(plain)
    out, make_env = Path(plain["out"]), partial(instantiate, plain["env"])
    env = make_env()
    tasks = select_tasks(env.tasks, plain["tasks"])
    features = _features(plain["policy"], env, tasks)
    features.spec.check_same(env.spec, here="policy", there="the env")
    env.close()
    _claim(out / "improve.json", {key: value for key, value in plain.items() if key not in FREE}, plain["resume"])
    replay = _gather(plain, make_env, tasks).with_returns(REWARD, plain["discount"], after_truncation="nothing")
    problem = problem_of(
        features,
        horizon=plain["horizon"],
        discount=plain["discount"],
        tasks=len(replay.tasks),
        high=attainable(plain["discount"], _copies(plain)),
    )
    player = _learn(plain, replay, features, problem, out)
    ranking = _rank(plain, make_env, tasks, player, out)
    results = _evaluate(plain, make_env, tasks, player, out)
    summary = {
        "algorithm": _algorithm(plain)[0],
        "seed": plain["seed"],
        "data": _described(replay),
        **_scores(results, tasks, features.spec.dt_s),
        "ranking": ranking,
        "minutes_of_this_call": round((time.monotonic() - started) / 60, 2),
        "provenance": results["provenance"],
    }
    write_json(out / "results.json", summary)
    print(_line(summary))


def _check(plain: Mapping[str, Any]) -> None:
    for key in ("steps", "batch", "horizon", "checkpoint_every", "log_every"):
        if not isinstance(plain[key], int) or plain[key] < 1:
            raise GrasplineError(f"{key} is {plain[key]}, expected a whole number of at least 1")
    if plain["success_frames"] not in SUCCESS_FRAMES:
        raise unknown_name("success_frames", str(plain["success_frames"]), SUCCESS_FRAMES)
    if not isinstance(plain["data"], list) or not plain["data"]:
        raise GrasplineError(f"data is {plain['data']}, expected a list of folders such as [outputs/improve_data]")


def _copies(plain: Mapping[str, Any]) -> int:
    """Of the last frame of every success."""
    return SUCCESS_REPEATS - 1 if plain["success_frames"] == "duplicate" else 0


def _algorithm(plain: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Its name, that of its file, and its settings."""
    settings = dict(plain["algorithm"])
    return settings.pop("_target_").split(".")[-2], settings


def _features(policy: str, env: Env, tasks: Sequence[Task]) -> Features:
    if policy == "state":
        return StateFeatures(spec=env.spec, instructions=list(dict.fromkeys(task.instruction for task in tasks)))
    return PolicyFeatures(load_policy(policy))


def _gather(plain: Mapping[str, Any], make_env: Callable[[], Env], tasks: Sequence[Task]) -> Replay:
    """Plays what the first data folder lacks; then all of the folders as one replay."""
    first, *others = (Path(folder) for folder in plain["data"])
    asked, features = plain["gather"], _identity(plain["policy"])
    told = {"env": plain["env"], "tasks": [task.name for task in tasks], "features": features, "seed": asked["seed"]}
    for number, kind in enumerate(("demonstrations", "attempts")):
        folder, wanted = first / kind, dict(asked[kind])
        if not (episodes := wanted.pop("episodes")):
            continue
        if kind == "attempts":
            wanted |= {"player": _identity(wanted["player"] or plain["policy"]), "horizon": plain["horizon"]}
        _claim(folder / "gather.json", {**told, **wanted}, resume=True)
        rows = [Row(**vars(row)) for row in collect_plan(tasks, episodes, asked["seed"] + number)]
        missing = [row for row in rows if not (folder / f"{row.name}{SUFFIX}").exists()]
        _record(make_env, missing, partial(_controller, kind, json.dumps(plain)), folder, plain["workers"])
    found = [path for folder in (first, *others) for path in sorted(folder.glob(f"*/[!.]*{SUFFIX}"))]
    if not found:
        raise GrasplineError(f"data={plain['data']}: no episodes there, and gather asks for none")
    seen = [misjudged(read_recording(path), **plain["judge"], seed=asked["seed"]) for path in found]
    told = {"source": "simulator", **plain["judge"], "success_copies": _copies(plain)}
    return concatenate([to_replay([duplicated(each, _copies(plain))], told) for each in seen])


def _identity(policy: str) -> str:
    """What tells one policy's features or attempts from another's."""
    if policy == "state":
        return "state"
    return player_hash(Path(policy)) if (Path(policy) / "player.json").exists() else policy_hash(policy)


@cache
def _controller(kind: str, settings: str) -> tuple[Controller, Features]:
    """Who plays, as a worker builds it, once."""
    plain = json.loads(settings)
    env = instantiate(plain["env"])
    features = _features(plain["policy"], env, select_tasks(env.tasks, plain["tasks"]))
    if kind == "demonstrations":
        asked = plain["gather"]["demonstrations"]
        speed, noise = tuple(asked["speed"]), tuple(asked["noise"])
        return Demonstrator(make_expert=expert_for, features=features, speed=speed, noise=noise), features
    asked = plain["gather"]["attempts"]
    if asked["player"] is not None:
        propose = load_player(Path(asked["player"])).propose
    elif isinstance(features, PolicyFeatures):
        propose = partial(_own_chunk, features, plain["horizon"])
    else:
        raise GrasplineError("gather.attempts.episodes: policy=state plays nothing itself; give gather.attempts.player")
    return Explorer(propose=propose, features=features, execute=plain["horizon"], noise=asked["noise"]), features


def _own_chunk(features: PolicyFeatures, horizon: int, features_D: np.ndarray, seed: int) -> np.ndarray:
    return features.own_chunk(features_D)[:horizon]


def _record(
    make_env: Callable[[], Env], rows: list[Row], controller: Callable[[], Any], folder: Path, workers: int
) -> None:
    def arguments(row: Row) -> tuple[Any, ...]:
        return (record_to, row, controller, folder)

    for row, _, error in _in_workers(make_env, rows, arguments, workers, f"gathering {folder.name}"):
        if error is not None:
            raise GrasplineError(f"{row.name}: {error}. The same command goes on from there")


def _in_workers(
    make_env: Callable[[], Env],
    rows: Sequence[Row],
    arguments: Callable[[Row], tuple[Any, ...]],
    workers: int,
    title: str,
) -> list[tuple[Row, Any, str | None]]:
    """Calls a function for each row beside an env: (row, what it returned, error), in the order of the rows."""
    if not rows:
        return []
    done: dict[Row, tuple[Row, Any, str | None]] = {}
    waiting, running = sorted(rows, key=lambda row: row.task)[::-1], {}
    slots = min(workers or 1, len(rows))
    with (
        EnvPool(make_env, num_slots=slots, num_workers=workers) as pool,
        tqdm(total=len(rows), desc=title, unit="episode", mininterval=1.0) as bar,
    ):
        while waiting or running:
            for slot in range(pool.num_slots):
                if waiting and slot not in running:
                    running[slot] = waiting.pop()
                    pool.call(slot, *arguments(running[slot]))
            for reply in pool.wait():
                row = running.pop(reply.slot)
                done[row] = (row, reply.value, reply.error)
                bar.update()
    return [done[row] for row in rows]


def _described(replay: Replay) -> dict[str, Any]:
    demo_E = replay.demo_N[replay.begin_E]
    lengths_E = replay.end_E - replay.begin_E
    kinds = {"demonstrations": demo_E, "attempts": ~demo_E}
    return {
        kind: {
            "episodes": int(of_E.sum()),
            "successes": int(replay.success_E[of_E].sum()),
            "steps": int(lengths_E[of_E].sum()),
        }
        for kind, of_E in kinds.items()
    }


def _learn(plain: Mapping[str, Any], replay: Replay, features: Features, problem: Problem, out: Path) -> ChunkPlayer:
    name, settings = _algorithm(plain)
    torch.manual_seed(plain["seed"])
    algorithm = make_algorithm(name, problem, settings)
    player = ChunkPlayer(features=features, algorithm=algorithm, horizon=problem.horizon)
    sampler = Sampler(
        replay,
        batch_size=plain["batch"],
        horizon=problem.horizon,
        version=REWARD,
        discount=problem.discount,
        seed=plain["seed"],
        weights_N=_weights(plain, replay),
        padding=plain["padding"],
        one_look=plain["one_look"],
    )
    improve(
        algorithm,
        sampler.batches,
        steps=plain["steps"],
        seed=plain["seed"],
        out=out,
        metrics=Rows(out / "metrics.jsonl"),
        checkpoint_every=plain["checkpoint_every"],
        log_every=plain["log_every"],
        inspect=partial(_inspect, player, problem),
    )
    save_player(out, player=player, name=name, problem=problem, settings=settings)
    return player


def _inspect(player: ChunkPlayer, problem: Problem, done: int, batch: ChunkBatch) -> dict[str, float]:
    """The critic's values beside measured returns. Raises DivergenceError where they cannot be true."""
    if player.critic is None:
        return {}
    chosen_BHA = player.algorithm.choose(batch.features_BGD[:, 0], torch.Generator().manual_seed(0))
    found = critic_metrics(player.critic, batch, chosen_BHA)
    if done >= ALARM_AFTER:
        check_divergence(found, low=problem.low, high=problem.high)
    return found


def _weights(plain: Mapping[str, Any], replay: Replay) -> np.ndarray:
    """How often each step is drawn as the start of a chunk."""
    factor = SUCCESS_REPEATS if plain["success_frames"] == "oversample" else 1
    weights_N = success_weights(replay, last=plain["horizon"], factor=factor)
    if plain["demo_share"] is None:
        return weights_N
    share, demo_N = plain["demo_share"], replay.demo_N
    if not 0 <= share <= 1 or demo_N.all() or not demo_N.any():
        raise GrasplineError(f"demo_share is {share}: expected a share in [0, 1], and data of both kinds")
    return np.where(demo_N, share / weights_N[demo_N].sum(), (1 - share) / weights_N[~demo_N].sum()) * weights_N


def _rank(
    plain: Mapping[str, Any], make_env: Callable[[], Env], tasks: Sequence[Task], player: ChunkPlayer, out: Path
) -> dict[str, Any] | None:
    """The ranking test on held-out initial states; None where there is no critic, or no test is asked for."""
    asked = plain["ranking"]
    if player.critic is None or not asked["states"]:
        return None
    protocol = Protocol(
        candidates=asked["candidates"],
        noise=asked["noise"],
        execute=plain["horizon"],
        repeats=asked["repeats"],
        discount=plain["discount"],
    )
    # A seed of its own: not the episodes that are evaluated.
    plan = make_plan(tasks, asked["states"], "heldout", plain["evaluation"]["seed"] + 1)
    rows = [Row(**vars(row)) for row in plan]

    def arguments(row: Row) -> tuple[Any, ...]:
        return (_judge, row, str(out), player_hash(out), protocol)

    found = _in_workers(make_env, rows, arguments, plain["workers"], "ranking test")
    if errors := [error for _, _, error in found if error is not None]:
        raise GrasplineError(f"ranking test: {errors[0]}")
    judged: list[Judged] = [value for _, value, _ in found if value is not None]
    told = verdict(judged)
    write_json(out / "ranking.json", {**told, "protocol": vars(protocol), "rows": [_plain(each) for each in judged]})
    print(sentence(told))
    return told


def _judge(env: Env, row: Row, folder: str, identity: str, protocol: Protocol) -> Judged | None:
    player = _player(folder, identity)
    return judge_row(env, row, player.features, player.propose, player.judge, protocol)


@cache
def _player(folder: str, identity: str) -> ChunkPlayer:
    return load_player(Path(folder))


def _plain(judged: Judged) -> dict[str, Any]:
    arrays = {name: value.tolist() for name, value in vars(judged).items() if isinstance(value, np.ndarray)}
    return {**vars(judged.row), "after_steps": judged.after_steps, **arrays}


def _evaluate(
    plain: Mapping[str, Any], make_env: Callable[[], Env], tasks: Sequence[Task], player: ChunkPlayer, out: Path
) -> dict[str, Any]:
    asked = plain["evaluation"]
    plan = make_plan(tasks, asked["episodes"], "heldout", asked["seed"])
    identity = {
        "policy": {"name": str(out), "hash": player_hash(out)},
        "env": plain["env"],
        "protocol": {"horizon": player.horizon, "execute": player.horizon, "init_states": "heldout"},
        "software": software(),
        "hardware": hardware(),
    }
    executor = RecedingHorizon(player.horizon)
    slots = min(4, len(plan))
    with (
        EnvPool(make_env, num_slots=slots, num_workers=plain["workers"]) as pool,
        tqdm(total=len(plan), desc="evaluating", unit="episode", mininterval=1.0) as bar,
    ):

        def run(rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
            run_episodes(pool, player, rows, executor, on_result)

        def count(result: EpisodeResult) -> None:
            bar.update()

        return evaluate(run, plan, out / "evaluation", identity, count)


def _scores(results: Mapping[str, Any], tasks: Sequence[Task], dt_s: float) -> dict[str, Any]:
    """Success and time. Time over successes alone flatters whoever fails in hard episodes, so it is not alone."""
    caps = {task.name: task.horizon for task in tasks}
    rows = results["rows"]
    all_N = np.array([row["steps"] if row["success"] else caps[row["task"]] for row in rows], float)
    won_N = all_N[[row["success"] for row in rows]]
    low, high = mean_interval(all_N)
    return {
        "success": results["total"],
        "cycle_steps": {"mean": float(all_N.mean()), "low": low, "high": high},
        "cycle_s": float(all_N.mean()) * dt_s,
        "steps_to_success": float(won_N.mean()) if len(won_N) else None,
        "per_task": results["per_task"],
        "errors": results["errors"],
    }


def _line(summary: Mapping[str, Any]) -> str:
    score, cycle = summary["success"], summary["cycle_steps"]
    return (
        f"{summary['algorithm']} seed {summary['seed']}: {score['successes']} of {score['episodes']} succeed "
        f"({score['low']:.0%}-{score['high']:.0%}); {cycle['mean']:.1f} steps a cycle with failures at the cap "
        f"({cycle['low']:.1f}-{cycle['high']:.1f})"
    )


def _claim(path: Path, mine: Mapping[str, Any], resume: bool) -> None:
    """Marks a folder as that of these settings. Raises GrasplineError if it is of others, unless starting over."""
    if not resume:
        shutil.rmtree(path.parent, ignore_errors=True)
    told = json.loads(json.dumps(mine))
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise CorruptFileError(f"{path}: not JSON ({error})") from error
        if differing := [key for key in sorted({*found, *told}) if found.get(key) != told.get(key)]:
            key = differing[0]
            raise GrasplineError(
                f"{path.parent} was made with other settings ({', '.join(differing)}): {key} was {found.get(key)}, is "
                f"now {told.get(key)}. Choose another folder, or delete that one"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)


if __name__ == "__main__":
    entry("improve", main)
