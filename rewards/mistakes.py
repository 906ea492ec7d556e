"""Episodes that fail in many ways, for judges of success: one that has seen only successes calls everything a success.

Whatever the way, the truth comes from the env: an episode that succeeds in spite of its mistake is a success.

    clean        the expert under noise
    early        the expert, cut off somewhere before it is done
    gripper      the fingers do the opposite for a while, now and then: things are dropped, or never grasped
    misjudged    the expert believes that one thing is a few centimetres elsewhere: grasps beside, places beside
    other_task   the expert does another task in the same scene: something was achieved, but not what was asked
    random       smooth random motions

Failed episodes among the training data follow RoboFuME (arXiv 2310.15145), which used random ones.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vla.core.errors import GrasplineError
from vla.core.protocols import Env, Policy
from vla.core.spec import Embodiment
from vla.core.types import Episode, Float, Observation, Step

WAYS = ("clean", "early", "gripper", "misjudged", "other_task", "random")
NOISE = (0.05, 0.1, 0.2)  # one is drawn per episode: standard deviation fed in at each step
NOISE_DECAY = 0.8
TURN_SHARE = 0.25  # how strongly noise acts on rotations
BURST_CHANCE, BURST_STEPS = 0.04, (6, 16)  # of the fingers' mistake
SHIFT_M = (0.05, 0.09)  # [m] by which a place is misjudged, horizontally
CUT = (0.5, 0.97)  # share of the steps before success that an early end keeps

type Believe = Callable[[Observation], Observation]


def play(
    env: Env,
    expert: Policy,
    *,
    task: str,
    init_state: int,
    seed: int,
    way: str,
    other_instruction: str | None = None,
    linger: int = 10,
    max_steps: int = 100,
) -> Episode:
    """One episode with every camera at every step; `success` is a reward term, true from the first step it holds.

    Args:
        env: reset by this call.
        expert: acts on privileged state; horizon 1.
        task: of the env.
        init_state: see `Task`.
        seed: everything random follows from it and from the way.
        way: one of WAYS.
        other_instruction: what the expert is told instead, for "other_task".
        linger: steps recorded after success.
        max_steps: after so many steps without success the episode is truncated, or by the env before.
    """
    if way not in WAYS:
        raise ValueError(f"way is '{way}', expected one of {WAYS}")
    rng = np.random.default_rng([seed, WAYS.index(way)])
    env.reset(task, init_state, seed)
    first = env.observe()
    believe = _belief(way, first, other_instruction, rng)
    disturb = _Disturbance(env.spec, way, rng)
    observations, actions, labels, successes = [first], [], [], []
    while sum(successes) <= linger and (len(actions) < max_steps or any(successes)):
        [chunk] = expert.act([believe(observations[-1])], [seed])
        label_A = env.spec.clip(chunk.actions_HA[0])
        step: Step = env.step(env.spec.clip(disturb(label_A)))
        observations.append(env.observe())
        actions.append(step.executed_A)
        labels.append(label_A)
        successes.append(step.success)
        if step.truncated:
            break
    keep = _cut(successes, rng) if way == "early" else len(actions)
    success = bool(successes[keep - 1])
    return Episode(
        observations=observations[: keep + 1],
        actions_TA=np.stack(actions[:keep]),
        labels_TA=np.stack(labels[:keep]),
        rewards={"success": np.array(successes[:keep], np.float32)},
        terminated=success,
        truncated=not success,
        success=success,
        meta={"task": task, "init_state": init_state, "seed": seed, "policy": "expert", "way": way},
    )


def _cut(successes: list[bool], rng: np.random.Generator) -> int:
    before = successes.index(True) if any(successes) else len(successes)
    return max(1, int(rng.uniform(*CUT) * before))


def _belief(way: str, first: Observation, other_instruction: str | None, rng: np.random.Generator) -> Believe:
    if way == "other_task":
        if other_instruction is None:
            raise ValueError("way 'other_task' needs an other_instruction")
        return lambda observation: replace(observation, instruction=other_instruction)
    if way != "misjudged":
        return lambda observation: observation
    places = sorted(
        name
        for name, value in first.privileged.items()
        if np.shape(value) == (3,) and not name.startswith(("eef", "hand"))
    )
    if not places:
        raise GrasplineError("way 'misjudged': this suite's privileged state has no places (3,) to be wrong about")
    place, angle = rng.choice(places), rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(*SHIFT_M) * np.array([np.cos(angle), np.sin(angle), 0.0])

    def shifted(observation: Observation) -> Observation:
        truth = dict(observation.privileged)
        return replace(observation, privileged={**truth, place: truth[place] + shift})

    return shifted


class _Disturbance:
    """What happens to the expert's action on its way to the motors."""

    def __init__(self, spec: Embodiment, way: str, rng: np.random.Generator) -> None:
        turns_A = np.array(["rad" in axis.unit for axis in spec.action])
        self._scale_A = np.where(spec.binary_A, 0.0, np.where(turns_A, TURN_SHARE, 1.0))
        self._spec, self._way, self._rng = spec, way, rng
        self._sigma = float(rng.choice(NOISE))
        self._noise_A = np.zeros(spec.action_dim)
        self._burst_left = 0

    def __call__(self, label_A: Float) -> Float:
        sigma = 0.35 if self._way == "random" else self._sigma
        self._noise_A = NOISE_DECAY * self._noise_A + sigma * self._rng.standard_normal(len(label_A)) * self._scale_A
        action_A = self._noise_A + (np.where(self._spec.binary_A, label_A, 0) if self._way == "random" else label_A)
        if self._way in ("gripper", "random"):
            action_A = self._fumble(action_A)
        return action_A.astype(np.float32)

    def _fumble(self, action_A: np.ndarray) -> np.ndarray:
        if self._burst_left == 0 and self._rng.random() < BURST_CHANCE:
            self._burst_left = int(self._rng.integers(*BURST_STEPS))
        if self._burst_left == 0:
            return action_A
        self._burst_left -= 1
        opposite_A = self._spec.action_low_A + self._spec.action_high_A - action_A
        return np.where(self._spec.binary_A, opposite_A, action_A)
