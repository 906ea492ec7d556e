"""A policy improves by its own attempts: clone -> rounds of groups -> evaluate both, for several seeds. See --help.

Special: this file only composes. Method and baseline play the same held-out episodes, so what is reported is the paired
difference; its verdict needs every seed on one side and an interval without zero.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import trange

from agents.adapters.merge import breadcrumbs, task_arithmetic, ties
from scripts.entry import entry
from sim.experts import expert_for
from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Env, Task
from vla.rl.algorithms.bc import BC
from vla.rl.features import StateFeatures
from vla.rl.gather import REWARD, Demonstrator, Row, record, to_replay
from vla.rl.on_policy import informative_groups, play_group
from vla.rl.player import ChunkPlayer, make_algorithm, problem_of, save_player
from vla.rl.problem import Problem
from vla.rl.ranking import mean_interval
from vla.rl.sampling import Sampler
from vla.rollout.collect import collect_plan
from vla.rollout.evaluate import write_json
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.provenance import hardware, software
from vla.rollout.runner import run_episode
from vla.train.improve import Rows

type State = Mapping[str, Tensor]
type Wanted = Callable[[Row], bool]
SIDES = ("left", "right")


def main(config: DictConfig) -> None:
    """Runs every seed; the last line is the result."""
    started = time.monotonic()
    plain: Any = OmegaConf.to_container(config, resolve=True)
    _check(plain)
    env = instantiate(plain["env"])
    task = _task(env, plain["task"])
    features = StateFeatures(spec=env.spec, instructions=[task.instruction])
    problem = problem_of(features, horizon=plain["horizon"], discount=plain["discount"], tasks=1)
    run = Run(plain=plain, env=env, task=task, features=features, problem=problem)
    one = run.merged if plain["merge"] else run.improved
    seeds = [one(seed) for seed in plain["seeds"]]
    summary = {
        "method": plain["method"],
        "seeds": seeds,
        "compared": {name: _compared(seeds, name) for name in seeds[0]["steps"] if name != "base"},
        "minutes": round((time.monotonic() - started) / 60, 2),
        "config": plain,
        "provenance": {"software": software(), "hardware": hardware()},
    }
    write_json(Path(plain["out"]) / "results.json", summary)
    for name, told in summary["compared"].items():
        print(_line(f"{plain['method']} {name}", told, summary["minutes"]))


def _check(plain: Mapping[str, Any]) -> None:
    if plain["method"] not in plain["methods"]:
        raise unknown_name("method", plain["method"], plain["methods"])
    if plain["attempts"] < 2:
        raise GrasplineError(f"attempts is {plain['attempts']}, expected at least 2: nothing is left to compare with")
    for key in ("rounds", "groups", "tries"):
        if plain[key] < 1:
            raise GrasplineError(f"{key} is {plain[key]}, expected at least 1")


def _task(env: Env, name: str | None) -> Task:
    """The task by name, or the env's only one."""
    chosen = next(iter(env.tasks)) if name is None and len(env.tasks) == 1 else str(name)
    if chosen not in env.tasks:
        raise unknown_name("task", chosen, env.tasks)
    return env.tasks[chosen]


class Run:
    """What every seed shares."""

    def __init__(
        self, *, plain: Mapping[str, Any], env: Env, task: Task, features: StateFeatures, problem: Problem
    ) -> None:
        self.plain, self.env, self.task, self.features, self.problem = plain, env, task, features, problem
        self.out = Path(plain["out"])
        evaluation = plain["evaluation"]
        self.plan = make_plan([task], evaluation["episodes"], "heldout", evaluation["seed"])
        self.sizes = {key: plain[key] for key in ("actor", "actor_width", "actor_layers")}

    def improved(self, seed: int) -> dict[str, Any]:
        """Steps of each held-out episode before and after."""
        base = self.base(seed)
        better, played = self.improve(base, seed, f"seed_{seed}", lambda row: True)
        return {"seed": seed, "episodes": played, **self.outcomes({"base": base, "improved": better})}

    def merged(self, seed: int) -> dict[str, Any]:
        """Two specialists and their merges, on goals to the left, to the right, and all."""
        base = self.base(seed)
        tuned, played = [], 0
        for side in SIDES:
            state, more = self.improve(base, seed, f"seed_{seed}_{side}", lambda row, at=side: self.side(row) == at)
            tuned.append(state)
            played += more
        merges = {
            "task_arithmetic": task_arithmetic(base, tuned, 0.5),
            "ties": ties(base, tuned, 1.0, keep=0.5),
            "breadcrumbs": breadcrumbs(base, tuned, 0.5, keep=0.9, remove=0.01),
        }
        found = self.outcomes({"base": base, **dict(zip(SIDES, tuned, strict=True)), **merges})
        sides = [self.side(Row(task=row.task, init_state=row.init_state, seed=row.seed)) for row in self.plan]
        return {"seed": seed, "episodes": played, "sides": sides, **found}

    def side(self, row: Row) -> str:
        """Where the goal of an episode is: right where the axis `side_axis` of its first state is above 0."""
        axes = [axis.name for axis in self.env.spec.state]
        if (name := self.plain["side_axis"]) not in axes:
            raise unknown_name("side_axis", name, axes)
        self.env.reset(row.task, row.init_state, row.seed)
        return "right" if self.env.observe(()).state_S[axes.index(name)] > 0 else "left"

    def base(self, seed: int) -> State:
        """The actor that imitates demonstrations."""
        asked = self.plain["base"]
        demonstrator = Demonstrator(
            make_expert=expert_for, features=self.features, speed=tuple(asked["speed"]), noise=tuple(asked["noise"])
        )
        rows = [Row(**vars(row)) for row in collect_plan([self.task], asked["episodes"], seed)]
        replay = to_replay(
            [record(self.env, row, demonstrator, self.features) for row in rows], {"source": "simulator"}
        )
        sampler = Sampler(
            replay.with_returns(REWARD, self.problem.discount, after_truncation="nothing"),
            batch_size=asked["batch"],
            horizon=self.problem.horizon,
            version=REWARD,
            discount=self.problem.discount,
            seed=seed,
        )
        torch.manual_seed(seed)
        cloning = BC(problem=self.problem, actor_rate=asked["rate"], **self.sizes)
        for step in range(asked["steps"]):
            cloning.update(sampler.batch(step))
        return cloning.actor.state_dict()

    def improve(self, base: State, seed: int, name: str, wanted: Wanted) -> tuple[State, int]:
        """The actor after all rounds, and how many episodes they took. Saves the player."""
        settings = {**self.plain["methods"][self.plain["method"]], **self.sizes}
        algorithm, branch = settings.pop("algorithm"), settings.pop("branch")
        torch.manual_seed(seed)
        learner: Any = make_algorithm(algorithm, self.problem, settings)
        learner.actor.load_state_dict(base)
        metrics, episodes = Rows(self.out / name / "metrics.jsonl"), 0
        metrics.begin(0)
        for number in trange(self.plain["rounds"], desc=f"{self.plain['method']} {name}", mininterval=5.0):

            def play(row: Row, number: int = number) -> Any:
                asked = {"attempts": self.plain["attempts"], "discount": self.problem.discount, "branch": branch}
                return play_group(self.env, row, self.features, learner.actor, seed=number, **asked)

            rows = filter(wanted, self.rows(seed, number))
            found, groups = informative_groups(play, rows, wanted=self.plain["groups"], limit=self.plain["tries"])
            episodes += groups * self.plain["attempts"]
            if found is not None:
                told = learner.learn_from(found)
                metrics.log(number + 1, {**told, "groups": groups, "return": float(found.return_E.mean())})
        player = ChunkPlayer(features=self.features, algorithm=learner, horizon=self.problem.horizon)
        save_player(self.out / name, player=player, name=algorithm, problem=self.problem, settings=settings)
        return learner.actor.state_dict(), episodes

    def rows(self, seed: int, number: int) -> Iterator[Row]:
        """Endless episodes for training: the extra placements, else the states for training."""
        rng, task = np.random.default_rng([seed, number, 17]), self.task
        low, high = 0, task.num_train_states
        if task.num_extra_states:
            low, high = task.num_init_states, task.num_init_states + task.num_extra_states
        while True:
            yield Row(task=task.name, init_state=int(rng.integers(low, high)), seed=int(rng.integers(2**31)))

    def outcomes(self, actors: Mapping[str, State]) -> dict[str, Any]:
        """For each actor the steps of each held-out episode, those that failed at the cap, and its successes."""
        results = {name: self._played(state) for name, state in actors.items()}
        return {
            "steps": {name: [steps for steps, _ in rows] for name, rows in results.items()},
            "successes": {name: sum(won for _, won in rows) for name, rows in results.items()},
        }

    def _played(self, state: State) -> list[tuple[int, bool]]:
        """Steps and success of the actor's mean in each held-out episode."""
        playing = BC(problem=self.problem, **self.sizes)
        playing.actor.load_state_dict(state)
        player = ChunkPlayer(features=self.features, algorithm=playing, horizon=self.problem.horizon)
        results = [run_episode(self.env, player, row, RecedingHorizon(self.problem.horizon)) for row in self.plan]
        return [(one.steps if one.success else self.task.horizon, one.success) for one in results]


def _compared(seeds: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Steps saved against the base, paired by episode; for merges on either side too."""
    saved_SE = np.array([np.subtract(one["steps"]["base"], one["steps"][name]) for one in seeds], float)
    low, high = mean_interval(saved_SE.ravel())
    by_seed = saved_SE.mean(axis=1)
    verdict = "not at this scale"
    if low > 0 and (by_seed > 0).all():
        verdict = "reproduced"
    elif high < 0 and (by_seed < 0).all():
        verdict = "opposite"
    told = {
        "steps": float(np.mean([one["steps"][name] for one in seeds])),
        "base_steps": float(np.mean([one["steps"]["base"] for one in seeds])),
        "successes": sum(one["successes"][name] for one in seeds),
        "base_successes": sum(one["successes"]["base"] for one in seeds),
        "of": int(saved_SE.size),
        "saved": float(saved_SE.mean()),
        "low": low,
        "high": high,
        "saved_by_seed": by_seed.tolist(),
        "verdict": verdict,
    }
    if "sides" in seeds[0]:
        at = {side: np.array([[where == side for where in one["sides"]] for one in seeds]) for side in SIDES}
        told["saved_by_side"] = {side: float(saved_SE[mask].mean()) for side, mask in at.items()}
    return told


def _line(name: str, told: Mapping[str, Any], minutes: float) -> str:
    sides = f"; by side {json.dumps(told['saved_by_side'])}" if "saved_by_side" in told else ""
    by_seed = ", ".join(f"{saved:.1f}" for saved in told["saved_by_seed"])
    return (
        f"{name}: {told['base_steps']:.1f} -> {told['steps']:.1f} steps a cycle, {told['saved']:.1f} saved "
        f"({told['low']:.1f} to {told['high']:.1f}; by seed {by_seed}){sides}; successes {told['base_successes']} -> "
        f"{told['successes']} of {told['of']}; {minutes:.1f} min; {told['verdict']}"
    )


if __name__ == "__main__":
    entry("improve_online", main)
