"""Evaluation: believable numbers, and a kill at any moment costs only what was in flight."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from sim.experts import expert_for
from sim.fake import FakeEnv, FaultyEnv
from sim.vector import EnvPool
from vla.core.errors import CorruptFileError, GrasplineError
from vla.rollout.evaluate import evaluate, wilson
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult, run_episode, run_in_workers

ROOT = Path(__file__).resolve().parents[3]
TASKS = list(FakeEnv().tasks.values())
PLAN = make_plan(TASKS, 10, "heldout", 0)
IDENTITY = {"policy": {"name": "expert", "hash": "abc"}, "protocol": {"execute": 1}, "software": {"mujoco": "3.8.1"}}


class Runner:
    """Plays rows here, remembers which, and may be stopped after some."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.played: list[EpisodePlan] = []
        self.stop_after = stop_after

    def __call__(self, rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        env = FakeEnv()
        for row in rows:
            if len(self.played) == self.stop_after:
                raise KeyboardInterrupt
            self.played.append(row)
            on_result(run_episode(env, expert_for(env), row, RecedingHorizon(1)))


def outcomes(results: dict[str, Any]) -> list[tuple]:
    return [(row["task"], row["init_state"], row["seed"], row["success"], row["steps"]) for row in results["rows"]]


@pytest.mark.parametrize(("successes", "episodes"), [(0, 1), (1, 1), (0, 60), (60, 60), (54, 60), (475, 500), (7, 20)])
def test_wilson_agrees_with_scipy(successes: int, episodes: int) -> None:
    exact = binomtest(successes, episodes).proportion_ci(method="wilson")
    assert wilson(successes, episodes) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_wilson_refuses_nonsense() -> None:
    for successes, episodes in [(0, 0), (3, 2), (-1, 2)]:
        with pytest.raises(ValueError):
            wilson(successes, episodes)


def test_results_have_rows_scores_and_provenance(tmp_path: Path) -> None:
    results = evaluate(Runner(), PLAN, tmp_path, IDENTITY)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [(row["task"], row["init_state"], row["seed"]) for row in results["rows"]] == [
        (row.task, row.init_state, row.seed) for row in PLAN
    ]
    assert results["total"] | {"low": 0, "high": 0} == {
        "successes": 10, "episodes": 10, "success": 1.0, "low": 0, "high": 0
    }  # fmt: skip
    assert [score["episodes"] for score in results["per_task"].values()] == [4, 3, 3]
    assert results["provenance"] == IDENTITY and results["errors"] == 0
    timing = results["timing"]
    parts = timing["physics_s"] + timing["render_s"] + timing["policy_s"] + timing["waiting_s"]
    assert parts == pytest.approx(timing["wall_s"])
    assert timing["steps"] == sum(row["steps"] for row in results["rows"])


def test_a_stopped_evaluation_goes_on_with_the_missing_rows(tmp_path: Path) -> None:
    whole = evaluate(Runner(), PLAN, tmp_path / "whole", IDENTITY)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Runner(stop_after=4), PLAN, tmp_path / "out", IDENTITY)
    assert not (tmp_path / "out/results.json").exists()
    seen: list[EpisodeResult] = []
    rest = Runner()
    resumed = evaluate(rest, PLAN, tmp_path / "out", IDENTITY, seen.append)
    assert rest.played == PLAN[4:]
    assert len(seen) == len(PLAN), "the progress bar counts what was found"
    assert outcomes(resumed) == outcomes(whole)
    nothing = Runner()
    before = (tmp_path / "out/results.json").read_bytes()
    assert outcomes(evaluate(nothing, PLAN, tmp_path / "out", IDENTITY)) == outcomes(whole)
    assert not nothing.played and (tmp_path / "out/results.json").read_bytes() == before


def test_a_cut_last_line_is_played_again(tmp_path: Path) -> None:
    evaluate(Runner(), PLAN, tmp_path, IDENTITY)
    rows = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(rows[:-20])
    rest = Runner()
    evaluate(rest, PLAN, tmp_path, IDENTITY)
    assert rest.played == PLAN[-1:]
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == len(PLAN) and all(json.loads(line) for line in lines)


def test_a_damaged_row_is_refused_by_line(tmp_path: Path) -> None:
    evaluate(Runner(), PLAN, tmp_path, IDENTITY)
    good = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    for line in ("{broken\n", "[]\n", '{"task": "reach_red"}\n', good[2].replace('"init_state": ', '"init_state": 1')):
        (tmp_path / "rows.jsonl").write_text("".join([*good[:2], line, *good[3:]]))
        with pytest.raises(CorruptFileError, match=r"rows\.jsonl, line 3"):
            evaluate(Runner(), PLAN, tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": {"name": "expert", "hash": "xyz"}}, r"policy\.hash was 'abc', is now 'xyz'"),
        ({"software": {"mujoco": "3.9.0"}}, r"software\.mujoco was '3\.8\.1', is now '3\.9\.0'"),
        ({"protocol": {"execute": 4}}, r"protocol\.execute was 1, is now 4"),
    ],
)
def test_a_folder_belongs_to_one_evaluation(change: dict, words: str, tmp_path: Path) -> None:
    evaluate(Runner(), PLAN, tmp_path, IDENTITY)
    with pytest.raises(GrasplineError, match=words):
        evaluate(Runner(), PLAN, tmp_path, IDENTITY | change)
    evaluate(Runner(stop_after=0), PLAN, tmp_path, IDENTITY)


def test_another_plan_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    evaluate(Runner(), PLAN, tmp_path, IDENTITY)
    with pytest.raises(GrasplineError, match="rows was 10 entries, is now 9 entries"):
        evaluate(Runner(), PLAN[:-1], tmp_path, IDENTITY)
    with pytest.raises(GrasplineError, match="rows differ"):
        evaluate(Runner(), make_plan(TASKS, 10, "heldout", 1), tmp_path, IDENTITY)
    (tmp_path / "plan.json").write_text('{"hash": ')
    with pytest.raises(CorruptFileError, match=r"plan\.json is damaged"):
        evaluate(Runner(), PLAN, tmp_path, IDENTITY)


def test_errors_count_as_failures_and_are_tried_again(tmp_path: Path) -> None:
    def run(faults: dict, rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        with EnvPool(partial(FaultyEnv, faults=faults), num_slots=2, num_workers=0) as pool:
            run_in_workers(pool, expert_for, rows, RecedingHorizon(1), on_result)

    results = evaluate(partial(run, {40: "raise"}), PLAN, tmp_path, IDENTITY)
    assert results["errors"] == 3 and results["total"]["successes"] == 7 and results["total"]["episodes"] == 10
    assert all("init state 40" in row["error"] for row in results["rows"] if row["error"])
    again = Runner()
    assert evaluate(again, PLAN, tmp_path, IDENTITY)["errors"] == 0
    assert [row.init_state for row in again.played] == [40, 40, 40]
    assert json.loads((tmp_path / "results.json").read_text())["total"]["successes"] == 10


SLOW = """
import sys, time
from pathlib import Path
from sim.experts import expert_for
from sim.fake import FakeEnv
from vla.rollout.evaluate import evaluate
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.runner import run_episode

def run(rows, on_result):
    env = FakeEnv()
    for row in rows:
        on_result(run_episode(env, expert_for(env), row, RecedingHorizon(1)))
        time.sleep(0.05)

plan = make_plan(list(FakeEnv().tasks.values()), 60, "heldout", 0)
evaluate(run, plan, Path(sys.argv[1]), {}, lambda result: print(result.task, flush=True))
"""


def test_sigkill_costs_no_finished_row(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(5):
        assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    kept = (tmp_path / "rows.jsonl").read_bytes().count(b"\n")
    assert 5 <= kept < 60
    plan, rest = make_plan(TASKS, 60, "heldout", 0), Runner()
    results = evaluate(rest, plan, tmp_path, {})
    assert len(rest.played) == 60 - kept and results["total"]["episodes"] == 60
