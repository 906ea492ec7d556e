"""A policy improves by practice that nobody resets: demonstrations, offline, practice, evaluated twice. See --help.

Special: this file only composes. The same held-out placements, truly reset, are played before and after, so what is
reported is the paired difference; practice is judged by the simulator or by pictures, and true resets are counted.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from rewards.learned.frames import Encoder, camera_images
from rewards.learned.success import load_classifier
from scripts.entry import entry
from sim.experts import expert_for
from sim.reset_free import ResetFreeEnv
from vla.core.errors import GrasplineError, unknown_name
from vla.core.types import Float
from vla.policies.threads import single_thread
from vla.rl.actor_process import Acting, Pace, learn_apart, learn_in_turn
from vla.rl.algorithms.rlpd import RLPD
from vla.rl.algorithms.wsrl import WSRL
from vla.rl.features import StateFeatures
from vla.rl.gather import Demonstrator, Explorer
from vla.rl.learner import Learner
from vla.rl.player import ChunkPlayer, load_player, make_algorithm, problem_of, save_player
from vla.rl.reset_free import (
    ORACLE,
    Attempt,
    Experience,
    Helper,
    Judge,
    Practice,
    PracticeEnv,
    attempts,
    counted,
    load_attempt,
    save_attempt,
)
from vla.rl.side_by_side import difference, estimate
from vla.rollout.evaluate import write_json
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.provenance import hardware, software
from vla.rollout.runner import run_episode
from vla.train.improve import Rows, improve

DEMONSTRATING, PRACTISING = 100_000, 500_000  # first of the placements of either: a thousand for each seed


def main(config: DictConfig) -> None:
    """Runs every seed; the last line is the result."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    if plain["method"] not in plain["methods"]:
        raise unknown_name("method", plain["method"], plain["methods"])
    pace(plain)
    torch.set_num_threads(1)
    out = Path(plain["out"])
    seeds = [one_seed(plain, seed, out / f"seed_{seed}") for seed in plain["seeds"]]
    summary = {
        "seeds": seeds,
        **compared(seeds),
        "config": plain,
        "provenance": {"software": software(), "hardware": hardware()},
    }
    write_json(out / "results.json", summary)
    draw_visits(out / "visits.png", read_attempts(out / f"seed_{plain['seeds'][0]}" / "attempts"), make_env(plain))
    print(line(plain, summary))


def pace(plain: Mapping[str, Any]) -> Pace:
    asked = {key: plain["practice"][key] for key in ("steps", "warm_up", "most_behind", "publish")}
    try:
        return Pace(**asked, per_step=plain["methods"][plain["method"]]["per_step"])
    except ValueError as error:
        raise GrasplineError(f"practice: {error}") from error


def make_env(plain: Mapping[str, Any], **others: Any) -> ResetFreeEnv:
    return ResetFreeEnv(**{**plain["env"], **others})


def features_of(env: ResetFreeEnv) -> StateFeatures:
    return StateFeatures(spec=env.spec, instructions=[task.instruction for task in env.tasks.values()])


def make_learner(plain: Mapping[str, Any], features: StateFeatures, seed: int, told: Mapping[str, Any]) -> Any:
    problem = problem_of(features, horizon=plain["horizon"], discount=plain["discount"], tasks=2)
    torch.manual_seed(seed)
    learner = make_algorithm(told["algorithm"], problem, told["settings"])
    assert isinstance(learner, Learner)
    return learner


# What comes before practice, shared by the runs with one `base`


def demonstrations(plain: Mapping[str, Any], seed: int) -> list[Attempt]:
    """The expert's, by turns in one scene; recorded once."""
    asked = plain["demonstrations"]
    folder = Path(plain["base"]) / f"demonstrations_{seed}"
    claim(folder / "asked.json", {"env": plain["env"], **asked})
    if len(read_attempts(folder)) < asked["episodes"]:
        env = make_env(plain, reset_every=asked["reset_every"])
        features = features_of(env)
        expert = Demonstrator(
            make_expert=expert_for,
            features=features,
            speed=tuple(asked["speed"]),
            noise=tuple(asked["noise"]),
        )
        practice = Practice(
            env=env,
            controller=expert,
            features=features,
            judge=ORACLE,
            seed=seed,
            init_states=(DEMONSTRATING + 1000 * seed, 1000),
        )
        for number, attempt in enumerate(islice(attempts(practice), asked["episodes"])):
            save_attempt(folder / f"{number:06d}.safetensors", attempt)
    return read_attempts(folder)


def experience(plain: Mapping[str, Any], seed: int) -> Experience:
    return Experience(
        demonstrations(plain, seed),
        judge=plain["judge"],
        horizon=plain["horizon"],
        discount=plain["discount"],
        batch=plain["batch"],
        demo_share=plain["methods"][plain["method"]]["demo_share"],
        seed=seed,
    )


def first_policy(plain: Mapping[str, Any], seed: int) -> tuple[Learner, list[dict[str, Any]]]:
    """What is learnt from demonstrations alone, and how it does on held-out placements; made once."""
    told = plain["methods"][plain["method"]]
    folder = Path(plain["base"]) / f"{plain['method']}_{seed}"
    keys = ("env", "horizon", "discount", "demonstrations", "offline_steps", "batch", "evaluation")
    claim(folder / "asked.json", {**{key: plain[key] for key in keys}, "method": told["settings"]})
    if (folder / "before.json").exists():
        algorithm = load_player(folder).algorithm
        assert isinstance(algorithm, Learner)
        return algorithm, json.loads((folder / "before.json").read_text())
    env = make_env(plain)
    learner, data = make_learner(plain, features_of(env), seed, told), experience(plain, seed)

    def batches(start: int) -> Any:
        return (data.batch(number) for number in count(start))

    improve(
        learner,
        batches,
        steps=plain["offline_steps"],
        seed=seed,
        out=folder,
        metrics=Rows(folder / "metrics.jsonl"),
        log_every=500,
    )
    save(plain, folder, learner, env, told)
    found = evaluated(plain, learner, env)
    write_json(folder / "before.json", found)
    return learner, found


def save(plain: Mapping[str, Any], folder: Path, learner: Learner, env: ResetFreeEnv, told: Mapping[str, Any]) -> None:
    player = player_of(plain, learner, env)
    problem = problem_of(player.features, horizon=plain["horizon"], discount=plain["discount"], tasks=2)
    save_player(folder, player=player, name=told["algorithm"], problem=problem, settings=told["settings"])


def player_of(plain: Mapping[str, Any], learner: Any, env: ResetFreeEnv) -> ChunkPlayer:
    return ChunkPlayer(features=features_of(env), algorithm=learner, horizon=plain["horizon"])


def evaluated(plain: Mapping[str, Any], learner: Learner, env: ResetFreeEnv) -> list[dict[str, Any]]:
    """Success and steps of each held-out placement."""
    asked, player = plain["evaluation"], player_of(plain, learner, env)
    plan = make_plan(list(env.tasks.values()), asked["episodes"], "heldout", asked["seed"])
    rows = [run_episode(env, player, row, RecedingHorizon(plain["horizon"])) for row in plan]
    return [
        {"task": row.task, "init_state": row.init_state, "success": row.success, "steps": row.steps} for row in rows
    ]


# Practice


def one_seed(plain: Mapping[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """One seed from its demonstrations to its results, which are read where they are there."""
    keys = [key for key in plain if key not in ("seeds", "out", "base", "experiment", "methods")]
    claim(out / "asked.json", {**{key: plain[key] for key in keys}, "told": plain["methods"][plain["method"]]})
    if (out / "results.json").exists():
        return json.loads((out / "results.json").read_text())
    learner, before = first_policy(plain, seed)
    started = time.monotonic()
    told = plain["methods"][plain["method"]]
    if told["then"] is not None:
        learner = warm_started(plain, seed, learner, told["then"])
    for name in ("attempts", "metrics.jsonl"):
        shutil.rmtree(out / name, ignore_errors=True) if name == "attempts" else (out / name).unlink(missing_ok=True)
    process = practise(plain, seed, learner, out)
    env = make_env(plain)
    save(plain, out, learner, env, told["then"] or told)
    minutes = (time.monotonic() - started) / 60
    found = {
        "seed": seed,
        "before": before,
        "after": evaluated(plain, learner, env),
        "practice": {**counted(read_attempts(out / "attempts")), **process, "minutes": round(minutes, 2)},
    }
    write_json(out / "results.json", found)
    return found


def warm_started(plain: Mapping[str, Any], seed: int, first: Learner, then: Mapping[str, Any]) -> Learner:
    learner = make_learner(plain, features_of(make_env(plain)), seed, then)
    if not isinstance(learner, WSRL):
        raise unknown_name("algorithm to go on with", then["algorithm"], ["wsrl"])
    learner.warm_start(first.state_dict())
    return learner


def practise(plain: Mapping[str, Any], seed: int, learner: Learner, out: Path) -> dict[str, int]:
    """Attempts and updates. Returns what the two processes did."""
    data, rows = experience(plain, seed), Rows(out / "metrics.jsonl")
    rows.begin(0)
    seen = {"attempts": 0, "steps": 0}

    def on_attempt(attempt: Attempt, updates: int) -> None:
        seen["steps"] += len(attempt)
        seen["attempts"] += 1
        row = {"attempt": seen["attempts"], "updates": updates, "lag": attempt.lag, "reset": int(attempt.reset != "")}
        rows.log(seen["steps"], {**row, "declared": attempt.recording.success, "done": attempt.rightly})
        if not plain["practice"]["apart"]:
            save_attempt(out / "attempts" / f"{seen['attempts'] - 1:06d}.safetensors", attempt)

    if not plain["practice"]["apart"]:
        acting = (practice_of(plain, seed, learner), learner)
        return {"updates": learn_in_turn(acting, data, pace(plain), on_attempt)}
    make = partial(acting_apart, json.dumps(plain), seed)
    return learn_apart(learner, data, pace(plain), on_attempt, make_acting=make, folder=out)


def acting_apart(settings: str, seed: int) -> Acting:
    """The actor's side, built in its process."""
    plain = json.loads(settings)
    told = plain["methods"][plain["method"]]
    learner = make_learner(plain, features_of(make_env(plain)), seed, told["then"] or told)
    return practice_of(plain, seed, learner), learner


def practice_of(plain: Mapping[str, Any], seed: int, learner: Learner) -> Practice:
    env = make_env(plain)
    features, expert, asked = features_of(env), expert_for(env), plain["help"]
    helper = Helper(
        act=lambda observation: expert.act([observation], [0])[0].actions_HA[0],
        takes_over=lambda steps, observation: steps >= asked["after"],
        budget=asked["budget"],
    )
    noise = plain["methods"][plain["method"]]["noise"]
    return Practice(
        env=env,
        controller=Explorer(
            propose=partial(explored, learner), features=features, execute=plain["horizon"], noise=noise
        ),
        features=features,
        judge=ORACLE if plain["judge"] == "oracle" else judge_of_pictures(Path(plain["judge"])),
        seed=seed,
        init_states=(PRACTISING + 1000 * seed, 1000),
        helper=helper if asked["budget"] else None,
    )


def explored(learner: Any, features_D: Float, seed: int) -> Float:
    """The chunk (H, A) to play while practising: a draw, where the algorithm explores by its own."""
    draw = learner.explore if isinstance(learner, RLPD) else learner.choose
    with single_thread(), torch.no_grad():
        return draw(torch.from_numpy(features_D)[None], torch.Generator().manual_seed(seed))[0].numpy()


def judge_of_pictures(folder: Path) -> Judge:
    """A classifier of scripts.train_reward, at the threshold, pace and patience it was calibrated for."""
    from vla.policies.backbones.efficientnet import imagenet_tower
    from vla.policies.backbones.minilm import encode

    name = json.loads((folder / "reward.json").read_text())["encoder"] if (folder / "reward.json").exists() else ""
    tower = imagenet_tower(int(name.partition("/")[2] or 128)).eval()
    torch.nn.init.zeros_(tower.place_NW)
    judge = load_classifier(folder=folder, encoder=Encoder(name=name, encode=tower), text=encode)
    cameras = tuple(camera.name for camera in judge.cameras)

    def looks_done(env: PracticeEnv, task: str) -> bool:
        images = camera_images([env.observe(cameras).images], judge.cameras)
        [score] = judge.score(judge.encoder.frames(images), env.tasks[task].instruction)
        return bool(score >= judge.threshold)

    return Judge(name=str(folder), looks_done=looks_done, every=judge.every, consecutive=judge.consecutive)


# Results


def read_attempts(folder: Path) -> list[Attempt]:
    return [load_attempt(path) for path in sorted(folder.glob("[!.]*.safetensors"))]


def claim(path: Path, asked: Mapping[str, Any]) -> None:
    """Marks a folder as that of these settings. Raises GrasplineError if it is of others."""
    told = json.loads(json.dumps(asked))
    if path.exists() and (there := json.loads(path.read_text())) != told:
        differ = sorted(key for key in told.keys() | there.keys() if told.get(key) != there.get(key))
        raise GrasplineError(f"{path.parent} was made with other settings ({', '.join(differ)}); give another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, told)


def compared(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Success before and after over all seeds and placements, and the paired difference, with intervals."""
    wins = {
        when: np.array([[row["success"] for row in one[when]] for one in seeds], float) for when in ("before", "after")
    }
    told = {when: vars(estimate(wins_SN)) for when, wins_SN in wins.items()}
    return {**told, "gained": vars(difference(wins["after"], wins["before"], relative=False))}


def line(plain: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    def percent(key: str) -> str:
        found = summary[key]
        return f"{100 * found['mean']:.0f} % ({100 * found['low']:.0f} to {100 * found['high']:.0f})"

    practised = [one["practice"] for one in summary["seeds"]]
    resets = "; ".join(", ".join(f"{n} {cause}" for cause, n in one["resets"].items()) for one in practised)
    return (
        f"{plain['method']}, judged by {plain['judge']}: {percent('before')} -> {percent('after')}, gained "
        f"{percent('gained')}; resets by seed: {resets}; right verdicts {sum(p['rightly_declared'] for p in practised)}"
        f" of {sum(p['declared'] for p in practised)}; {sum(p['steps'] for p in practised)} steps, "
        f"{sum(p['minutes'] for p in practised):.1f} min"
    )


def draw_visits(path: Path, some: Sequence[Attempt], env: ResetFreeEnv) -> None:
    """Where the thing was during practice, and where attempts began beside where true resets begin them."""
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for name, colour in zip(env.tasks, ("tab:orange", "tab:blue"), strict=True):
        paths = [each for each in some if each.recording.row.task == name]
        seen_N3 = np.concatenate([np.zeros((0, 3)), *(each.where_T3[::5] for each in paths)])
        left.scatter(seen_N3[:, 1], seen_N3[:, 0], s=2, alpha=0.3, color=colour, label=env.tasks[name].instruction)
        begun_N3 = np.array([each.where_T3[0] for each in paths if not each.reset]).reshape(-1, 3)
        right.scatter(begun_N3[:, 1], begun_N3[:, 0], s=9, color=colour, label=f"began: {name}")
    reset_N3 = np.array([each.where_T3[0] for each in some if each.reset]).reshape(-1, 3)
    right.scatter(reset_N3[:, 1], reset_N3[:, 0], s=30, marker="x", color="black", label="began after a true reset")
    left.set_title(f"the thing in {sum(map(len, some))} steps of practice")
    right.set_title(f"where {len(some)} attempts began")
    for axes in (left, right):
        axes.set_xlabel("y, to the robot's left [m]")
        axes.set_ylabel("x, away from the robot [m]")
        axes.set_aspect("equal")
        axes.legend(fontsize=7, loc="lower center")
    left.invert_xaxis()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    entry("improve_reset_free", main)
