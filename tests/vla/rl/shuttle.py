"""A thing on a line that is pushed to the right end, then to the left end, and so on: practice without resets, small.

x in [-1.2, 1.2], an action in [-1, 1] moves it by a tenth; at 0.8 or beyond it is right, at -0.8 or below left; beyond
1.1 it is lost.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from vla.core.protocols import Task
from vla.core.spec import Axis, Embodiment
from vla.core.types import Float, Observation, Step
from vla.rl.actor_process import Acting
from vla.rl.features import StateFeatures
from vla.rl.gather import Explorer
from vla.rl.learner import Learner
from vla.rl.player import ChunkPlayer, make_algorithm, problem_of
from vla.rl.reset_free import ORACLE, Attempt, Experience, Judge, Practice, attempts

HORIZON, STRIDE, LONG = 3, 0.1, 30
SPEC = Embodiment(
    name="shuttle",
    state=(Axis(name="x", unit="m", low=-1.2, high=1.2),),
    action=(Axis(name="v", unit="0.1 m", low=-1, high=1),),
    cameras=(),
    control_hz=10.0,
)
WORDS = {"right": "push it to the right", "left": "push it to the left"}
FEATURES = StateFeatures(spec=SPEC, instructions=list(WORDS.values()))


class Shuttle:
    """Implements `vla.rl.reset_free.PracticeEnv`."""

    spec = SPEC

    def __init__(self, *, reset_every: int = 10_000, slow_s: float = 0.0) -> None:
        self.tasks: Mapping[str, Task] = {
            name: Task(name=name, instruction=words, horizon=LONG, num_init_states=10, num_train_states=5)
            for name, words in WORDS.items()
        }
        self.x, self.asked, self._reset_every, self._slow_s = 0.0, "right", reset_every, slow_s
        self._since: int | None = None

    def reset(self, task: str, init_state: int, seed: int) -> None:
        self.x, self.asked, self._since = float(np.random.default_rng(init_state).uniform(-0.5, 0.5)), task, 0

    def go_on(self, task: str, init_state: int) -> tuple[str, int]:
        due = self._since is not None and self._since >= self._reset_every
        cause = "first" if self._since is None else "stuck" if self.stuck() else "due" if due else ""
        if cause:
            self.reset(task, init_state, 0)
        self.asked = task
        return cause, 0

    def step(self, action_A: np.ndarray) -> Step:
        time.sleep(self._slow_s)
        executed_A = SPEC.clip(action_A)
        self.x = float(np.clip(self.x + STRIDE * executed_A[0], -1.2, 1.2))
        self._since = (self._since or 0) + 1
        done = self.holds(self.asked)
        return Step(executed_A=executed_A, terminated=done, truncated=False, success=done)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        state_S = np.array([self.x], np.float32)
        return Observation(images={}, state_S=state_S, instruction=WORDS[self.asked], time_s=0.0)

    def holds(self, task: str) -> bool:
        return self.x >= 0.8 if task == "right" else self.x <= -0.8

    def stuck(self) -> bool:
        return abs(self.x) > 1.1

    def where(self) -> Float:
        return np.array([self.x, 0, 0], np.float32)

    def snapshot(self) -> bytes:
        return np.array(self.x).tobytes()

    def restore(self, snapshot: bytes) -> None:
        self.x = float(np.frombuffer(snapshot)[0])

    def close(self) -> None: ...


@dataclass(frozen=True)
class Push:
    """Chunks towards the end that is asked for, at a constant speed."""

    speed: float = 1.0

    def __call__(self, features_D: Float, seed: int) -> Float:
        return np.full((HORIZON, 1), self.speed * (features_D[1] - features_D[2]), np.float32)


def practice(propose=Push(), judge: Judge = ORACLE, env: Shuttle | None = None, **others) -> Practice:
    explorer = Explorer(propose=propose, features=FEATURES, execute=HORIZON, noise=others.pop("noise", 0.0))
    told = {"seed": 0, "init_states": (5, 5), "features": FEATURES, **others}
    return Practice(env=env or Shuttle(), controller=explorer, judge=judge, **told)


def first(count: int, asked: Practice) -> list[Attempt]:
    return list(islice(attempts(asked), count))


def learner(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    problem = problem_of(FEATURES, horizon=HORIZON, discount=0.9, tasks=2)
    made = make_algorithm("filtered_bc", problem, {"actor_width": 16, "actor_layers": 1, "actor_rate": 1e-3})
    assert isinstance(made, Learner)
    return made


def acting(seed: int = 0, slow_s: float = 0.0) -> Acting:
    """Who practises with a small network; made in the actor's process too."""
    playing = learner(seed)
    player = ChunkPlayer(features=FEATURES, algorithm=playing, horizon=HORIZON)
    return practice(player.propose, env=Shuttle(slow_s=slow_s), seed=seed, noise=0.3), playing


def experience(seed: int = 0, demos: int = 6) -> Experience:
    """With demonstrations at half speed."""
    shown = [shown_by_an_expert(each) for each in first(demos, practice(Push(0.5), seed=seed))]
    settings = {"horizon": HORIZON, "discount": 0.9, "batch": 32, "demo_share": 0.5, "seed": seed}
    return Experience(shown, judge="oracle", **settings)


def shown_by_an_expert(attempt: Attempt) -> Attempt:
    return replace(attempt, recording=replace(attempt.recording, demo=True))
