"""Idle frames: the published rule by hand, played again in an env, and an expert whose idling matters."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sim.aloha import aloha_spec
from sim.fake import FAKE, FakeEnv, FakeExpert
from vla.core.types import ActionChunk, Float, Observation, Step
from vla.data.staging import read_staged
from vla.rollout.collect import NOOP, Perturbation, collect_row, noops_T, record_episode, row_name, without_noops
from vla.rollout.runner import EpisodePlan

ROW = EpisodePlan(task="reach_green", init_state=3, seed=11)
CLEAN = Perturbation(sigmas=(), preroll=9, kick_chance=0.0, linger=2)


class IdleExpert(FakeExpert):
    """Solves the task, but does nothing in the frames whose time it finds in `idle` (by number)."""

    def __init__(self, idle: Sequence[int], noise: float = 0.0) -> None:
        super().__init__()
        self._idle = set(idle)
        self._noise = noise
        self._start_s: float | None = None

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        [chunk] = super().act(observations, seeds)
        self._start_s = chunk.start_s if self._start_s is None else self._start_s
        if round((chunk.start_s - self._start_s) * FAKE.control_hz) in self._idle:
            chunk.actions_HA[0, :6] = self._noise
        return [chunk]


def published_noops(actions: Sequence[np.ndarray]) -> list[bool]:
    """The published rule, one action at a time: against the action kept before, gripper last."""
    kept: list[np.ndarray] = []
    dropped = []
    for action in actions:
        still = np.sqrt(sum(float(x) ** 2 for x in action[:-1])) < 1e-4
        dropped.append(bool(still and (not kept or action[-1] == kept[-1][-1])))
        if not dropped[-1]:
            kept.append(action)
    return dropped


def actions(*rows: tuple[float, float]) -> Float:
    """(first axis, gripper) -> (T, 7)."""
    found_TA = np.zeros((len(rows), 7), np.float32)
    found_TA[:, 0], found_TA[:, 6] = np.array(rows, np.float32).T
    return found_TA


def test_the_rule_by_hand() -> None:
    idle_before, moves, idle, closes, idle_closed, opens = (0, 1), (0.5, -1), (0, -1), (0, 1), (5e-5, 1), (0, -1)
    plan_TA = actions(idle_before, moves, idle, closes, idle_closed, idle_closed, opens)
    expected = [True, False, True, False, True, True, False]
    assert noops_T(FAKE, plan_TA, plan_TA).tolist() == expected == published_noops(plan_TA)


def test_the_rule_is_the_published_one_on_random_actions() -> None:
    rng = np.random.default_rng(0)
    plan_TA = rng.uniform(-1, 1, (400, 7)).astype(np.float32)
    plan_TA[:, :6] *= rng.choice([0.0, NOOP / 10, 1.0], (400, 1))
    plan_TA[:, 6] = rng.choice([-1, 1], 400)
    found = noops_T(FAKE, plan_TA, plan_TA)
    assert found.tolist() == published_noops(plan_TA) and 40 < found.sum() < 360


def test_a_frame_counts_as_idle_only_if_both_what_was_done_and_what_is_learned_are() -> None:
    idle, moves = actions((0, -1), (0, -1)), actions((0, -1), (0.3, -1))
    assert noops_T(FAKE, idle, idle).tolist() == [True, True]
    assert noops_T(FAKE, moves, idle).tolist() == [True, False], "noise moved the arm"
    assert noops_T(FAKE, idle, moves).tolist() == [True, False], "the expert wanted to move"


def test_places_are_not_motions() -> None:
    """Joint targets of zero are a posture, so nothing is dropped where actions command places."""
    spec = aloha_spec(64, 64)
    zeros_TA = np.zeros((5, spec.action_dim), np.float32)
    assert not noops_T(spec, zeros_TA, zeros_TA).any()


def record(env: FakeEnv, expert: FakeExpert, perturbation: Perturbation = CLEAN):
    return record_episode(env, expert, ROW, perturbation, np.random.default_rng(5))


def filtered(env: FakeEnv, episode, perturbation: Perturbation = CLEAN):
    return without_noops(env, ROW, episode, perturbation, np.random.default_rng(5))


def test_idle_frames_are_left_out_and_the_rest_is_what_the_env_shows() -> None:
    env = FakeEnv()
    busy, idling = record(env, FakeExpert()), record(env, IdleExpert([2, 3, 4]))
    assert len(idling) == len(busy) + 3
    whole = filtered(env, idling)
    assert whole.success and whole.meta["noops_dropped"] == 3 and len(whole) == len(idling) - 3
    # the hand coasts while it idles, so what remains is not the busy episode; it is what the kept actions do
    other = FakeEnv()
    record(other, FakeExpert())  # whatever was played before does not matter
    again = filtered(other, idling)
    assert all(
        (a.state_S == b.state_S).all() and a.time_s == b.time_s and (a.images["wrist"] == b.images["wrist"]).all()
        for a, b in zip(whole.observations, again.observations, strict=True)
    )
    times_T = [observation.time_s for observation in whole.observations]
    assert np.allclose(np.diff(times_T), FAKE.dt_s), "an episode with frames cut out would jump here"
    assert (whole.observations[0].state_S == idling.observations[0].state_S).all(), "the same start, preroll and all"
    kept_T = ~noops_T(FAKE, idling.actions_TA, idling.labels_TA)
    assert (whole.actions_TA == idling.actions_TA[kept_T]).all() and not noops_T(
        FAKE, whole.actions_TA, whole.labels_TA
    ).any()


def test_without_idle_frames_not_a_bit_changes() -> None:
    env = FakeEnv()
    for perturbation in (CLEAN, Perturbation()):
        episode = record(env, FakeExpert(), perturbation)
        assert filtered(env, episode, perturbation) is episode
    noisy = record(env, IdleExpert([2, 3]), Perturbation())
    assert filtered(env, noisy, Perturbation()) is noisy, "noise leaves no idle frame: the executed action moves"


class GripperNeedsTime(FakeEnv):
    """Succeeds once the fingers have been told to close for eight steps: idle frames that matter."""

    def reset(self, task: str, init_state: int, seed: int) -> None:
        super().reset(task, init_state, seed)
        self._closing = 0

    def step(self, action_A: np.ndarray) -> Step:
        self._closing = self._closing + 1 if action_A[6] > 0 else 0
        step = super().step(action_A)
        done = step.success and self._closing >= 8
        return Step(executed_A=step.executed_A, terminated=done, truncated=step.truncated, success=done)


class WaitingExpert(FakeExpert):
    """Stands still with its fingers closing, once it is there."""

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        [chunk] = super().act(observations, seeds)
        if chunk.actions_HA[0, 6] > 0:
            chunk.actions_HA[0, :6] = 0.0
        return [chunk]


@pytest.mark.parametrize(("drop", "kept"), [(True, False), (False, True)])
def test_an_episode_that_fails_without_its_idle_frames_is_not_kept(tmp_path: Path, drop: bool, kept: bool) -> None:
    env = GripperNeedsTime()
    assert record(env, WaitingExpert()).success
    assert collect_row(env, lambda _: WaitingExpert(), ROW, CLEAN, 1, drop, tmp_path) is kept
    assert len(list(tmp_path.glob("*.safetensors"))) == kept


def test_what_is_staged_has_no_idle_frames(tmp_path: Path) -> None:
    for drop, name in ((True, "without"), (False, "with")):
        make = partial(IdleExpert, [1, 2])
        assert collect_row(FakeEnv(), lambda _, make=make: make(), ROW, CLEAN, 1, drop, tmp_path / name)
    lean, full = (read_staged(tmp_path / name / f"{row_name(ROW)}.safetensors") for name in ("without", "with"))
    assert len(full) - len(lean) == lean.meta["noops_dropped"] == 2 and "noops_dropped" not in full.meta
