"""Practice by turns on a line: who follows whom, what a judge's word does, who helped, how far a learner runs ahead."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import pairwise
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vla.rl.shuttle import HORIZON, LONG, Push, Shuttle, acting, experience, first, learner, practice
from vla.core.errors import CorruptFileError, GrasplineError
from vla.core.types import Float
from vla.rl.actor_process import ACTOR, Acting, Pace, learn_apart, learn_in_turn
from vla.rl.reset_free import (
    Attempt,
    Helper,
    Judge,
    PracticeEnv,
    counted,
    load_attempt,
    practice_replay,
    save_attempt,
)
from vla.rl.states import save_state


def tasks_of(some: list[Attempt]) -> list[str]:
    return [each.recording.row.task for each in some]


# Turns


def test_tasks_alternate_and_an_attempt_begins_where_the_last_one_ended() -> None:
    found = first(5, practice())
    assert tasks_of(found) == ["right", "left", "right", "left", "right"]
    assert [each.reset for each in found] == ["first", "", "", "", ""]
    assert all(each.recording.success and each.rightly for each in found)
    for before, after in pairwise(found):
        np.testing.assert_array_equal(before.where_T3[-1], after.where_T3[0])
    # from one end to the other: 1.6 m at a tenth a step, up to where in its last stride the start had left it
    assert {len(each) for each in found[1:]} <= {16, 17, 18}


def test_a_true_reset_comes_when_it_is_due() -> None:
    found = first(8, practice(env=Shuttle(reset_every=40)))
    since, due = 0, []
    for each in found:
        if each.reset:
            since = 0
        due.append((each.reset, since))
        since += len(each)
        assert since < 40 + LONG
    assert counted(found)["resets"] == {"first": 1, "due": len([one for one in due if one[0] == "due"])}
    assert [each.reset for each in found].count("due") >= 2


def test_after_a_failure_the_other_task_is_not_paid_for_nothing() -> None:
    """The thing still lies where the other task wants it."""
    lazy = Push(0.0)
    env = Shuttle()
    env.go_on("right", 5)
    env.x = -0.9
    found = first(3, practice(lazy, env=env))
    assert tasks_of(found) == ["right"] * 3 and not any(each.recording.success for each in found)
    assert all(len(each) == LONG and each.recording.truncated for each in found)

    blind = Judge(name="blind", looks_done=lambda env, task: env.holds(task) and task == env.asked)  # pyright: ignore
    env.x = -0.9
    paid = first(3, practice(lazy, judge=blind, env=env))
    assert tasks_of(paid)[:2] == ["right", "left"], "the bug: it changes sides without a look"
    assert paid[1].recording.success and len(paid[1]) == 1, "and is paid for nothing"


def test_a_lost_thing_ends_the_attempt_as_a_failure_and_costs_a_reset() -> None:
    never = Judge(name="never", looks_done=lambda env, task: False)
    found = first(2, practice(judge=never))
    recording = found[0].recording
    assert recording.terminated and not recording.success and not recording.truncated and len(recording) < LONG
    assert found[1].reset == "stuck" and counted(found)["resets"] == {"first": 1, "stuck": 1}
    replay = practice_replay(found, {}).with_returns("success", 0.9, after_truncation="nothing")
    assert replay.terminated_E[0] and replay.returns["success"].return_N.max() == 0


# Judges


def test_a_false_alarm_pays_and_is_counted() -> None:
    """Right of the middle it calls everything right: half way too early."""
    hasty = Judge(name="hasty", looks_done=lambda env, task: env.where()[0] > 0 if task == "right" else env.holds(task))
    found = first(6, practice(judge=hasty))
    right = [each for each in found if each.recording.row.task == "right"]
    assert all(each.recording.success and each.recording.terminated and not each.rightly for each in right)
    assert all(each.recording.success_T.sum() == each.recording.success_T[-1] == 1 for each in found)
    told = counted(found)
    assert (told["declared"], told["rightly_declared"], told["missed"]) == (6, 3, 0)


def test_yes_counts_only_so_many_times_in_a_row_and_only_at_looks() -> None:
    calls: list[int] = []

    def now_and_then(env: PracticeEnv, task: str) -> bool:
        calls.append(0)
        return len(calls) % 3 != 0

    patient = Judge(name="patient", looks_done=now_and_then, every=2, consecutive=3)
    [attempt] = first(1, practice(Push(0.1), judge=patient))
    assert not attempt.recording.success and len(calls) == LONG // 2
    calls.clear()
    [attempt] = first(1, practice(Push(0.1), judge=replace(patient, consecutive=2)))
    assert attempt.recording.success and len(attempt) == 4, "the second look"


def test_a_miss_is_counted() -> None:
    """Done for a moment, not noticed, and pushed on until it is lost."""
    never = Judge(name="never", looks_done=lambda env, task: False)
    told = counted(first(2, practice(judge=never)))
    assert told["declared"] == 0 and told["missed"] == 2


# Help


def helper(after: int, budget: int) -> Helper:
    return Helper(
        act=lambda seen: np.array([1.0 if "right" in seen.instruction else -1.0], np.float32),
        takes_over=lambda steps, seen: steps >= after,
        budget=budget,
    )


def test_help_is_flagged_within_its_budget_and_counts_as_demonstration() -> None:
    found = first(4, practice(Push(0.0), helper=helper(after=10, budget=25)))
    helped = np.concatenate([each.helped_T for each in found])
    assert helped.sum() == 25 == counted(found)["helped_steps"]
    for each in found:
        acted = np.abs(each.recording.actions_TA[:, 0]) > 0
        np.testing.assert_array_equal(acted, each.helped_T, err_msg="executed is what the helper did, and nothing else")
        assert not each.helped_T[:10].any()
    replay = practice_replay(found, {})
    np.testing.assert_array_equal(replay.demo_N, helped)


def test_what_was_planned_before_help_is_not_played_after_it() -> None:
    seen: list[float] = []

    class Noting:
        def __call__(self, features_D: Float, seed: int) -> Float:
            seen.append(float(features_D[0]))
            return np.full((HORIZON, 1), 0.01, np.float32)

    middle = replace(helper(after=0, budget=100), takes_over=lambda steps, observation: 4 <= steps < 6)
    [attempt] = first(1, practice(Noting(), helper=middle))
    assert attempt.helped_T.nonzero()[0].tolist() == [4, 5]
    at_looks = attempt.recording.features_TD[[0, 3, 6], 0]
    np.testing.assert_allclose(seen[:3], at_looks, rtol=1e-6)  # step 6, and not the rest of what step 3 planned
    assert attempt.recording.open_loop_T[:8].tolist() == [3, 2, 1, 3, 1, 1, 3, 2]


# Experience


def test_half_of_each_batch_is_demonstrated_and_batches_are_functions_of_their_number() -> None:
    data = experience()
    assert data.batch(0).demo_B.all()
    data.add(first(1, practice(Push(0.2), seed=3)))
    batch = data.batch(7)
    assert batch.demo_B.float().mean() == pytest.approx(0.5, abs=2 / 32)
    again = experience()
    again.add(first(1, practice(Push(0.2), seed=3)))
    torch.testing.assert_close(again.batch(7).actions_BHA, batch.actions_BHA, rtol=0, atol=0)
    helped = first(2, practice(Push(0.0), helper=helper(after=5, budget=20)))
    data.add(helped)
    assert any(bool(data.batch(number).demo_B.any()) for number in range(3))


def test_an_attempt_survives_the_disk(tmp_path: Path) -> None:
    [attempt] = first(1, practice(helper=helper(after=4, budget=3)))
    attempt = replace(attempt, version=7, lag=3)
    save_attempt(tmp_path / "a.safetensors", attempt)
    back = load_attempt(tmp_path / "a.safetensors")
    assert (back.reset, back.home, back.version, back.lag) == ("first", 0, 7, 3)
    for name in ("helped_T", "holds_T", "where_T3"):
        np.testing.assert_array_equal(getattr(back, name), getattr(attempt, name))
    for name, value in vars(attempt.recording).items():
        np.testing.assert_array_equal(getattr(back.recording, name), value, err_msg=name)
    save_state(tmp_path / "b.safetensors", {"recording": {}})
    with pytest.raises(CorruptFileError, match="not an attempt"):
        load_attempt(tmp_path / "b.safetensors")


# Actor and learner


def weights(of: Acting) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in of[1].networks()["actor"].parameters()])


def test_by_turns_a_run_is_a_function_of_its_seed() -> None:
    def run(seed: int) -> tuple[torch.Tensor, list[int]]:
        who, lengths = acting(seed), list[int]()
        pace = Pace(steps=120, per_step=0.5, warm_up=20)
        updates = learn_in_turn(who, experience(seed), pace, lambda attempt, done: lengths.append(len(attempt)))
        assert updates == pace.owed(sum(lengths)) and sum(lengths) >= 120
        return weights(who), lengths

    (once, lengths), (again, same), (other, _) = run(0), run(0), run(1)
    assert torch.equal(once, again) and lengths == same
    assert not torch.equal(once, other)


@pytest.fixture
def make_acting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Acting]:
    """`acting` of shuttle.py under a name that another process finds; steps of 20 ms."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return partial(import_module("shuttle").acting, 0, 0.02)


def apart(
    make_acting: Callable[[], Acting], folder: Path, pace: Pace, kill_after: int | None = None
) -> tuple[list[Attempt], dict[str, int], int]:
    """Attempts, what the processes did, and the updates that were owed."""
    seen: list[Attempt] = []

    def on_attempt(attempt: Attempt, updates: int) -> None:
        seen.append(attempt)
        if len(seen) == kill_after:
            [actor] = [child for child in active_children() if child.name == ACTOR]
            assert actor.pid is not None
            os.kill(actor.pid, signal.SIGKILL)

    told = learn_apart(learner(), experience(), pace, on_attempt, make_acting=make_acting, folder=folder)
    assert not [child for child in active_children() if child.name == ACTOR]
    return seen, told, pace.owed(sum(map(len, seen)))


def test_the_learner_never_runs_further_ahead_than_the_bound(make_acting: Callable[[], Acting], tmp_path: Path) -> None:
    """An attempt takes 0.3 s: whoever does not wait has made more than two updates by its end."""
    seen, told, owed = apart(make_acting, tmp_path / "bounded", Pace(steps=60, per_step=4, most_behind=2, publish=1))
    assert max(each.lag for each in seen) <= 2
    assert told["updates"] == owed and told["deaths"] == 0
    versions = [each.version for each in seen]
    assert versions == sorted(versions) and versions[-1] > 0, "and what is played is what was learnt"
    assert counted(seen)["resets"]["first"] == 1
    loose, _, _ = apart(make_acting, tmp_path / "loose", Pace(steps=60, per_step=4, most_behind=10_000, publish=1))
    assert max(each.lag for each in loose) > 2, "without the bound it does"


def test_an_actor_that_is_killed_is_replaced_and_the_run_goes_on(
    make_acting: Callable[[], Acting], tmp_path: Path
) -> None:
    seen, told, owed = apart(make_acting, tmp_path, Pace(steps=120, per_step=0.5), kill_after=2)
    assert told["deaths"] == 1 and told["updates"] == owed
    assert sum(map(len, seen)) >= 120 and counted(seen)["resets"]["first"] == 2
    assert [each.recording.row.seed for each in seen] == list(range(len(seen)))


def broken() -> Acting:
    raise ValueError("no robot here")


@pytest.mark.slow
def test_an_actor_that_dies_again_and_again_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(GrasplineError, match="4 times in a row"):
        learn_apart(
            learner(),
            experience(),
            Pace(steps=10, per_step=1),
            lambda attempt, updates: None,
            make_acting=broken,
            folder=tmp_path,
        )


def test_weights_cannot_be_older_than_the_next_ones() -> None:
    with pytest.raises(ValueError, match="publish is 300"):
        Pace(steps=1, per_step=1, most_behind=200, publish=300)
