"""Demonstrations from an expert: perturbed actions executed, clean labels kept.

What the demonstrations cover decides what the policy can recover from (DART, Laskey et al. 2017). So an episode starts
with a few random steps, coloured noise rides on every executed action, now and then the arm is kicked; the label of a
frame is the expert's clean action at the state that was really reached. Failures are dropped.

Frames in which nothing is done can be left out, by the rule with which OpenVLA's authors (arXiv 2406.09246) made
LIBERO's data anew: the other actions are played again from the same start, and what is seen then is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla.core.protocols import Env, Policy, Task
from vla.core.spec import Embodiment
from vla.core.types import Episode, Float, Step
from vla.data.staging import write_staged
from vla.rollout.provenance import software
from vla.rollout.runner import EpisodePlan, act_seed


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What is done to the executed actions. All zero: the expert's own clean episodes.

    sigmas        one is drawn per episode: standard deviation of the noise that is fed in at each step
    decay         share of the noise that stays to the next step (Ornstein-Uhlenbeck)
    turn_share    how strongly noise and kicks act on rotations, relative to translations
    preroll       up to so many steps of one random motion before recording starts
    kick_chance   per step, that a kick of `kick_steps` steps in a random direction starts
    linger        steps recorded after success, so that the policy learns to let go and leave
    """

    sigmas: Sequence[float] = (0.05, 0.1, 0.2)
    decay: float = 0.8
    turn_share: float = 0.25
    preroll: int = 9
    kick_chance: float = 0.008
    kick_steps: int = 4
    linger: int = 3


NOOP = 1e-4  # norm of the motion, in the action's own units, below which nothing is done


def collect_plan(tasks: Sequence[Task], episodes: int, seed: int) -> list[EpisodePlan]:
    """`episodes` rows spread evenly over the tasks; never a held-out initial state.

    Each task goes through its training states, then through the further placements its suite makes, then around again
    with other noise. More episodes extend a plan without changing its beginning.
    """
    plan = []
    for number in range(-(-episodes // len(tasks))):
        for task in tasks:
            states = task.num_train_states + task.num_extra_states
            state = number % states
            if state >= task.num_train_states:
                state += task.num_init_states - task.num_train_states
            plan.append(EpisodePlan(task=task.name, init_state=state, seed=act_seed(seed, number)))
    return plan[:episodes]


def row_name(row: EpisodePlan) -> str:
    """A name for the episode of this row, the same in every run."""
    return f"{row.task}-{row.init_state}-{row.seed}"


def collect_row(
    env: Env,
    make_expert: Callable[[Env], Policy],
    row: EpisodePlan,
    perturbation: Perturbation,
    attempts: int,
    drop_noops: bool,
    folder: Path,
) -> bool:
    """Records one success of `row` into `folder`, trying again with other noise; False if none came.

    With `drop_noops` an episode is a success if it is one without its idle frames too.
    """
    expert = make_expert(env)
    for attempt in range(attempts):
        rng = np.random.default_rng([row.seed, attempt])
        episode = record_episode(env, expert, row, perturbation, rng)
        if episode.success and drop_noops:
            rng = np.random.default_rng([row.seed, attempt])
            episode = without_noops(env, row, episode, perturbation, rng)
        if episode.success:
            write_staged(folder, row_name(row), episode)
            return True
    return False


def record_episode(
    env: Env, expert: Policy, row: EpisodePlan, perturbation: Perturbation, rng: np.random.Generator
) -> Episode:
    """One episode of the expert under noise, with every camera at every step."""
    sigma = _start(env, row, perturbation, rng)
    noise = _Noise(env.spec, sigma, perturbation, rng)
    observations, actions, labels, successes = [env.observe()], [], [], []
    step: Step | None = None
    linger = perturbation.linger
    while step is None or not step.truncated:
        if step is not None and step.terminated:
            if linger == 0:
                break
            linger -= 1
        [chunk] = expert.act([observations[-1]], [row.seed])
        label_A = env.spec.clip(chunk.actions_HA[0])
        step = env.step(env.spec.clip(label_A + noise.next()))
        observations.append(env.observe())
        actions.append(step.executed_A)
        labels.append(label_A)
        successes.append(step.success)
    assert step is not None
    return Episode(
        observations=observations,
        actions_TA=np.stack(actions),
        labels_TA=np.stack(labels),
        rewards={"success": np.array(successes, np.float32)},
        terminated=step.terminated,
        truncated=step.truncated,
        success=step.success,
        meta=_meta(row, sigma),
    )


def noops_T(spec: Embodiment, actions_TA: Float, labels_TA: Float) -> NDArray[np.bool_]:
    """(T,) bool: the frames in which nothing was done and nothing is to be imitated.

    Executed action and label both move by less than NOOP on all axes but the gripper's, and leave the gripper as the
    frame kept before has it. All False where a zero does not mean "stay" (axes that command places, not motions).
    """
    gripper_A = np.array([axis.binary or "gripper" in axis.name for axis in spec.action])
    moves = [axis for axis, gripper in zip(spec.action, gripper_A, strict=True) if not gripper]
    idle_T = np.zeros(len(actions_TA), bool)
    if not all(np.isfinite(axis.high) and axis.low == -axis.high for axis in moves):
        return idle_T
    both_T2A = np.stack([actions_TA, labels_TA], axis=1)
    still_T = (np.linalg.norm(both_T2A[:, :, ~gripper_A], axis=2) < NOOP).all(axis=1)
    kept_2G = None
    for t in range(len(idle_T)):
        gripper_2G = both_T2A[t][:, gripper_A]
        idle_T[t] = still_T[t] and (kept_2G is None or np.array_equal(gripper_2G, kept_2G))
        kept_2G = kept_2G if idle_T[t] else gripper_2G
    return idle_T


def without_noops(
    env: Env, row: EpisodePlan, episode: Episode, perturbation: Perturbation, rng: np.random.Generator
) -> Episode:
    """The episode with its idle frames left out, as the env shows it when the other actions are played again.

    Whether it still succeeds is in `success`. Labels stay with their actions. An episode without idle frames is
    returned as it is. `rng`: in the state that `record_episode` was given, so that the start is the same.
    """
    kept_T = ~noops_T(env.spec, episode.actions_TA, episode.labels_TA)
    if kept_T.all() or not kept_T.any():
        return episode
    _start(env, row, perturbation, rng)
    observations, steps = [env.observe()], []
    for action_A in episode.actions_TA[kept_T]:
        steps.append(env.step(action_A))
        observations.append(env.observe())
    return replace(
        episode,
        observations=observations,
        actions_TA=np.stack([step.executed_A for step in steps]),
        labels_TA=episode.labels_TA[kept_T],
        rewards={"success": np.array([step.success for step in steps], np.float32)},
        terminated=steps[-1].terminated,
        truncated=steps[-1].truncated,
        success=steps[-1].success,
        meta={**episode.meta, "noops_dropped": int((~kept_T).sum())},
    )


class _Noise:
    """Coloured noise on the continuous axes of the action, with rare kicks."""

    def __init__(self, spec: Embodiment, sigma: float, perturbation: Perturbation, rng: np.random.Generator) -> None:
        turns_A = ["rad" in axis.unit for axis in spec.action]
        self._scale_A = np.where(spec.binary_A, 0.0, np.where(turns_A, perturbation.turn_share, 1.0))
        self._sigma, self._p, self._rng = sigma, perturbation, rng
        self._noise_A = np.zeros(spec.action_dim)
        self._kick_A = np.zeros(spec.action_dim)
        self._kick_left = 0

    def next(self) -> Float:
        fresh_A = self._sigma * self._rng.standard_normal(len(self._noise_A))
        self._noise_A = self._p.decay * self._noise_A + fresh_A * self._scale_A
        if self._kick_left == 0 and self._rng.random() < self._p.kick_chance:
            self._kick_left = self._p.kick_steps
            self._kick_A = self._rng.uniform(-1, 1, len(self._noise_A)) * self._scale_A
        kick_A = self._kick_A if self._kick_left > 0 else 0.0
        self._kick_left = max(self._kick_left - 1, 0)
        return (self._noise_A + kick_A).astype(np.float32)


def _start(env: Env, row: EpisodePlan, perturbation: Perturbation, rng: np.random.Generator) -> float:
    """Resets and moves off the usual start; the episode's sigma."""
    env.reset(row.task, row.init_state, row.seed)
    sigma = float(rng.choice(perturbation.sigmas)) if len(perturbation.sigmas) else 0.0
    _preroll(env, perturbation, rng)
    return sigma


def _preroll(env: Env, perturbation: Perturbation, rng: np.random.Generator) -> None:
    """Moves the arm off its usual start, unrecorded, with open gripper."""
    spec = env.spec
    motion_A = rng.uniform(-1, 1, spec.action_dim)
    turns_A = np.array(["rad" in axis.unit for axis in spec.action])
    motion_A = np.where(turns_A, perturbation.turn_share * motion_A, motion_A)
    for _ in range(rng.integers(0, perturbation.preroll + 1)):
        env.step(spec.clip(np.where(spec.binary_A, spec.action_low_A, motion_A)))


def _meta(row: EpisodePlan, sigma: float) -> dict[str, Any]:
    versions = {name: value for name, value in software().items() if value is not None}
    return {
        "task": row.task,
        "init_state": row.init_state,
        "seed": row.seed,
        "policy": "expert",
        "noise_sigma": sigma,
        **versions,
    }
