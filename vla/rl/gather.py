"""Episodes for offline reinforcement learning: demonstrations of mixed quality, and a policy's own attempts.

Special: failures are kept, for without them nothing tells a good chunk from a bad one; features are recorded at every
step and after the last one, so that any step can begin a chunk and any prefix can be bootstrapped; beside each step
stands what was planned from there on, which pads chunks that the end of an episode cuts, whatever the end was like.
An episode is a function of its row alone. Each is a file of its own, so a gathering that is killed goes on.

Letters: T time in an episode, D features, P longest plan, A action. Actions are normalised.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vla.core.errors import CorruptFileError
from vla.core.protocols import Env, Policy
from vla.core.spec import Embodiment
from vla.core.types import Float, Meta, Observation, Step
from vla.rl.features import Features
from vla.rl.problem import ACTION_LIMIT
from vla.rl.replay import Replay, Rewards

SUFFIX = ".safetensors"
REWARD = "success"  # the version of the rewards that is recorded
DECAY = 0.8  # of coloured noise, per step
_ARRAYS = ("features_TD", "actions_TA", "plan_TPA", "planned_T", "open_loop_T", "success_T")

type Propose = Callable[[Float, int], Float]  # features (D,) and a seed to a normalised chunk (H, A)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One episode to play."""

    task: str
    init_state: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.init_state}-{self.seed}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """One episode.

    features_TD  (T + 1, D) float32   the last row is of the observation in which it ended
    actions_TA   (T, A) float32       executed
    plan_TPA     (T, P, A) float32    what was last planned for this step and those after it
    planned_T    (T,) int64           how many of the P were
    open_loop_T  (T,) int64           steps from this one on that were to be played without looking again
    success_T    (T,) float32         the task's predicates held after the step
    clock_limit  the step at which the time would have been up
    """

    row: Row
    features_TD: Float
    actions_TA: Float
    plan_TPA: Float
    planned_T: NDArray[np.int64]
    open_loop_T: NDArray[np.int64]
    success_T: Float
    terminated: bool
    truncated: bool
    success: bool
    demo: bool
    clock_limit: int

    def __len__(self) -> int:
        return len(self.actions_TA)


type Act = Callable[[Observation, Float], tuple[Float, int]]
"""Observation and its features to the plan (n, A) from here on, and how much of it is played without looking again."""


class Controller(Protocol):
    """Whoever plays episodes."""

    @property
    def demo(self) -> bool: ...

    def start(self, env: Env, rng: np.random.Generator) -> Act:
        """Called after the env's reset; what it returns is asked once a step."""
        ...


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """An expert of mixed quality: for each episode a speed and a strength of noise are drawn.

    make_expert  the suite's expert for an env; its first action is played
    speed        lowest and highest factor on its continuous commands
    noise        lowest and highest standard deviation, in normalised units, of coloured noise on them
    """

    make_expert: Callable[[Env], Policy]
    features: Features
    speed: tuple[float, float] = (1.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.0)
    demo: bool = True

    def start(self, env: Env, rng: np.random.Generator) -> Act:
        expert, spec, action = self.make_expert(env), self.features.spec, self.features.transforms.action
        speed, drift = rng.uniform(*self.speed), Drift(rng, rng.uniform(*self.noise), spec)
        slower_A = np.where(spec.binary_A, 1.0, speed).astype(np.float32)

        def act(observation: Observation, features_D: Float) -> tuple[Float, int]:
            [chunk] = expert.act([observation], [int(rng.integers(2**63))])
            action_A = action.forward(spec.clip(chunk.actions_HA[0] * slower_A)) + drift()
            return np.clip(action_A, -ACTION_LIMIT, ACTION_LIMIT)[None].astype(np.float32), 1

        return act


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """A policy's chunks under coloured noise, drawn for each chunk; `execute` actions of each are played."""

    propose: Propose
    features: Features
    execute: int
    noise: float
    demo: bool = False

    def start(self, env: Env, rng: np.random.Generator) -> Act:
        plan: list[Float] = []  # what is left of the chunk that is being played
        left = 0

        def act(observation: Observation, features_D: Float) -> tuple[Float, int]:
            nonlocal left
            if left == 0:
                chunk_HA = self.propose(features_D, int(rng.integers(2**63)))
                plan[:] = noisy_chunk(chunk_HA, rng, self.noise, self.features.spec)
                left = min(self.execute, len(plan))
            remaining_HA, blind = np.stack(plan), left
            plan.pop(0)
            left -= 1
            return remaining_HA, blind

        return act


class Drift:
    """Coloured noise: each draw (A,) has standard deviation `sigma` and keeps DECAY of the last; 0 on binary axes."""

    def __init__(self, rng: np.random.Generator, sigma: float, spec: Embodiment) -> None:
        self._rng, self._scale_A = rng, np.where(spec.binary_A, 0.0, sigma)
        self._last_A = self._scale_A * rng.standard_normal(spec.action_dim)

    def __call__(self) -> NDArray:
        now_A, fresh_A = self._last_A, self._scale_A * self._rng.standard_normal(len(self._scale_A))
        self._last_A = DECAY * now_A + np.sqrt(1 - DECAY**2) * fresh_A
        return now_A


def noisy_chunk(chunk_HA: Float, rng: np.random.Generator, sigma: float, spec: Embodiment) -> Float:
    """A normalised chunk (H, A) under one draw of coloured noise, within the limits of the data."""
    drift = Drift(rng, sigma, spec)
    noise_HA = np.stack([drift() for _ in chunk_HA])
    return np.clip(chunk_HA + noise_HA, -ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)


def record(env: Env, row: Row, controller: Controller, features: Features) -> Recording:
    """Plays one episode to its end."""
    rng = np.random.default_rng([row.seed, 7])
    env.reset(row.task, row.init_state, row.seed)
    observation = env.observe(features.cameras)
    act = controller.start(env, rng)
    seen, executed, plans, blind, successes = [features(observation)], [], [], [], []
    step: Step | None = None
    while step is None or not (step.terminated or step.truncated):
        plan_PA, open_loop = act(observation, seen[-1])
        step = env.step(physical(plan_PA[0], features))
        observation = env.observe(features.cameras)
        seen.append(features(observation))
        executed.append(features.transforms.actions(step.executed_A))
        plans.append(plan_PA)
        blind.append(open_loop)
        successes.append(step.success)
    longest = max(map(len, plans))
    return Recording(
        row=row,
        features_TD=np.stack(seen),
        actions_TA=np.stack(executed),
        plan_TPA=np.stack([padded(plan_PA, longest) for plan_PA in plans]),
        planned_T=np.array([len(plan_PA) for plan_PA in plans]),
        open_loop_T=np.array(blind),
        success_T=np.array(successes, np.float32),
        terminated=step.terminated,
        truncated=step.truncated,
        success=step.success,
        demo=controller.demo,
        clock_limit=env.tasks[row.task].horizon,
    )


def physical(actions: Float, features: Features) -> Float:
    """Normalised actions (..., A) as the env takes them, within its bounds."""
    spec = features.spec
    return np.clip(features.transforms.inverse_actions(actions), spec.action_low_A, spec.action_high_A)


def padded(plan_PA: Float, length: int) -> Float:
    """The plan with zeros after its end."""
    return np.pad(plan_PA, ((0, length - len(plan_PA)), (0, 0)))


def record_to(
    env: Env, row: Row, make_controller: Callable[[], tuple[Controller, Features]], folder: Path
) -> tuple[bool, int]:
    """What a worker runs: plays the row into a file. Returns success and steps."""
    controller, features = make_controller()
    recording = record(env, row, controller, features)
    write_recording(folder, recording)
    return recording.success, len(recording)


def write_recording(folder: Path, recording: Recording) -> Path:
    """Writes `<folder>/<row>.safetensors`, all of it or nothing."""
    plain = {key: value for key, value in vars(recording).items() if key not in (*_ARRAYS, "row")}
    header = json.dumps({**plain, "row": asdict(recording.row)})
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{recording.row.name}.{os.getpid()}"
    save_file({name: np.ascontiguousarray(getattr(recording, name)) for name in _ARRAYS}, part, {"recording": header})
    return part.replace(folder / f"{recording.row.name}{SUFFIX}")


def read_recording(path: Path) -> Recording:
    """What `write_recording` wrote. Raises CorruptFileError."""
    try:
        with safe_open(path, "numpy") as file:
            header: Mapping = json.loads((file.metadata() or {})["recording"])
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        return Recording(**{**header, "row": Row(**header["row"])}, **arrays)
    except (SafetensorError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise CorruptFileError(f"{path}: not a recorded episode ({error}); delete it to play it again") from error


def to_replay(recordings: Sequence[Recording], provenance: Meta) -> Replay:
    """Recorded episodes end to end, with the reward `success`: 1 for the step that made the task's predicates hold."""
    each, tasks = list(recordings), tuple(sorted({one.row.task for one in recordings}))
    longest = max(one.plan_TPA.shape[1] for one in each)
    plans = [np.pad(one.plan_TPA, ((0, 0), (0, longest - one.plan_TPA.shape[1]), (0, 0))) for one in each]
    success = Rewards(reward_N=np.concatenate([one.success_T for one in each]), provenance=dict(provenance))
    lengths = [len(one) for one in each]
    return Replay(
        features_ND=np.concatenate([one.features_TD[:-1] for one in each]),
        actions_NA=np.concatenate([one.actions_TA for one in each]),
        episode_N=np.repeat(np.arange(len(each)), lengths),
        executed_N=np.ones(sum(lengths), bool),
        demo_N=np.repeat([one.demo for one in each], lengths),
        rewards={REWARD: success},
        final_features_ED=np.stack([one.features_TD[-1] for one in each]),
        final_known_E=np.ones(len(each), bool),
        terminated_E=np.array([one.terminated for one in each]),
        truncated_E=np.array([one.truncated for one in each]),
        clock_limit_E=np.array([one.clock_limit for one in each]),
        success_E=np.array([one.success for one in each]),
        task_E=np.array([tasks.index(one.row.task) for one in each]),
        tasks=tasks,
        predicted_NPA=np.concatenate(plans),
        predicted_N=np.concatenate([one.planned_T for one in each]),
        open_loop_N=np.concatenate([one.open_loop_T for one in each]),
    )
