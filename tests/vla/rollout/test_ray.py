"""Ray, on a real cluster of two nodes on this machine: the rows of one process, whatever dies or hangs meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.entry import entry
from scripts.evaluate import main
from sim.experts import expert_for
from sim.fake import FAKE, FakeEnv, FaultyEnv
from sim.vector import EnvPool
from vla.core.errors import GrasplineError, MissingAssetError
from vla.core.protocols import Env, Policy
from vla.rollout.baselines import RandomPolicy
from vla.rollout.evaluate import Run, evaluate
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.ray_run import Alive, RayRun, Watched
from vla.rollout.runner import EpisodeResult, run_episode, run_episodes, run_in_workers

ray = pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[3]
PLAN = make_plan(list(FakeEnv().tasks.values()), 30, "all", 0)
PATIENT_S = 120.0  # a loaded machine is not what is tested


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    size = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import the tests
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def expert_run(faults: Mapping[int, Any], pids: Path, together: int, alive: Alive) -> Run:
    """What plays rows in an actor: the expert in two envs.

    Leaves the actor's process id in a folder, and waits there for the first others.
    """
    (pids / str(os.getpid())).touch()
    while len(list(pids.iterdir())) < together:
        time.sleep(0.02)
    make_env = FakeEnv if not faults else partial(FaultyEnv, faults=faults)
    pool = EnvPool(make_env, num_slots=2, num_workers=0)

    def expert(env: Env) -> Policy:
        return Watched(expert_for(env), alive)

    return lambda rows, on_result: run_in_workers(pool, expert, rows, RecedingHorizon(1), on_result)


def random_run(alive: Alive) -> Run:
    pool, policy = EnvPool(FakeEnv, num_slots=3, num_workers=0), Watched(RandomPolicy(spec=FAKE), alive)
    return lambda rows, on_result: run_episodes(pool, policy, rows, RecedingHorizon(8), on_result)


def outcome(result: EpisodeResult) -> tuple:
    return result.task, result.init_state, result.seed, result.success, result.steps, result.truncated, result.error


def expected(make_policy: Callable[[Env], Policy], execute: int) -> list[tuple]:
    env = FakeEnv()
    return sorted(outcome(run_episode(env, make_policy(env), row, RecedingHorizon(execute))) for row in PLAN)


def test_the_rows_are_those_of_one_process(cluster) -> None:
    results: list[EpisodeResult] = []
    with RayRun(random_run, actors=2, slots=3, timeout_s=PATIENT_S) as run:
        run(PLAN[:20], results.append)
        run(PLAN[20:], results.append)
        run([], results.append)
    assert sorted(map(outcome, results)) == expected(lambda env: RandomPolicy(spec=FAKE), 8)
    assert ray.is_initialized(), "a cluster that was there before is left as it was"


def test_killed_actors_change_no_result(cluster, tmp_path: Path) -> None:
    """One on each node, killed from outside in mid-run; a run stopped after that is finished by the next."""
    (pids := tmp_path / "pids").mkdir()
    seen: list[EpisodeResult] = []

    def disturb(result: EpisodeResult) -> None:
        seen.append(result)
        if len(seen) == 5:
            for pid in pids.iterdir():
                os.kill(int(pid.name), signal.SIGKILL)
        if len(seen) == 20:
            raise KeyboardInterrupt

    make_run = partial(expert_run, {}, pids, 2)
    options: dict[str, Any] = {"actors": 2, "slots": 2, "cpus": 2, "timeout_s": PATIENT_S}  # a node has two
    with pytest.raises(KeyboardInterrupt), RayRun(make_run, **options) as run:
        evaluate(run, PLAN, tmp_path / "out", {}, disturb)
    with RayRun(make_run, **options) as run:
        results = evaluate(run, PLAN, tmp_path / "out", {}, seen.append)
    assert len(seen) == 20 + 30, "the second run begins with the twenty of the first"
    assert sorted(outcome(EpisodeResult(**row)) for row in results["rows"]) == expected(expert_for, 1)
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(int(pid.name)) for pid in pids.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(pids.iterdir())) >= 4 and not any(psutil.pid_exists(int(pid.name)) for pid in pids.iterdir())


@pytest.mark.slow
def test_a_row_that_kills_or_hangs_is_an_error_and_the_others_are_intact(cluster, tmp_path: Path) -> None:
    kill, hang = PLAN[4].init_state, PLAN[8].init_state
    make_run = partial(expert_run, {kill: "kill", hang: "hang"}, tmp_path, 1)
    rows = [row for row in PLAN if row.task == PLAN[0].task]
    results: list[EpisodeResult] = []
    with RayRun(make_run, actors=2, slots=2, timeout_s=1.5) as run:
        run(rows, results.append)
    lost = {result.init_state: result.error or "" for result in results if result.error}
    assert lost.keys() == {kill, hang}
    assert f"init state {kill}: its Ray actor died (" in lost[kill]
    assert lost[hang].endswith(f"init state {hang}: no sign of life for 1.5 s, as all 3 times")
    whole = [row for row in expected(expert_for, 1) if row[0] == rows[0].task and row[1] not in lost]
    assert sorted(outcome(result) for result in results if not result.error) == whole


@pytest.mark.slow
def test_a_node_that_is_lost_changes_no_result(cluster, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=80 * 2**20)
    results: list[EpisodeResult] = []

    def disturb(result: EpisodeResult) -> None:
        results.append(result)
        if len(results) == 3:
            cluster.remove_node(node, allow_graceful=False)

    with RayRun(partial(expert_run, {}, tmp_path, 1), actors=5, slots=1, timeout_s=PATIENT_S) as run:
        run(PLAN, disturb)
    assert sorted(map(outcome, results)) == expected(expert_for, 1)


def no_policy(faults: Mapping[int, Any], pids: Path, together: int, alive: Alive) -> Run:
    raise GrasplineError("no such policy")


def bug(faults: Mapping[int, Any], pids: Path, together: int, alive: Alive) -> Run:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("make_run", "kind", "words"),
    [
        (expert_run, MissingAssetError, "^no OpenGL: install libegl1$"),
        pytest.param(no_policy, GrasplineError, "^no such policy$", marks=pytest.mark.slow),
        pytest.param(bug, RuntimeError, "(?s)in a Ray actor.*a bug", marks=pytest.mark.slow),
    ],
)
def test_what_the_user_must_mend_arrives_as_the_same_error(
    cluster, make_run: Callable, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    make_run = partial(make_run, {PLAN[0].init_state: "missing"}, tmp_path, 1)
    with pytest.raises(kind, match=words), RayRun(make_run, actors=1, slots=1) as run:
        run(PLAN, lambda result: None)


def test_the_script_finishes_on_ray_what_was_begun_here(cluster, tmp_path: Path) -> None:
    overrides = ["env=fake", "policy=expert", "videos=0", "episodes=9", "batch=2", f"out={tmp_path / 'out'}"]
    entry("evaluate", main, [*overrides, "workers=0"])
    whole = json.loads((tmp_path / "out/results.json").read_text())
    rows = (tmp_path / "out/rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out/rows.jsonl").write_bytes(b"".join(rows[:4]))
    entry("evaluate", main, [*overrides, "executor=ray", "ray.actors=1"])
    again = json.loads((tmp_path / "out/results.json").read_text())
    assert again["timing"]["session"]["rows"] == 5 and again["errors"] == 0
    assert [(row["task"], row["init_state"], row["steps"], row["success"]) for row in again["rows"]] == [
        (row["task"], row["init_state"], row["steps"], row["success"]) for row in whole["rows"]
    ]


@pytest.mark.slow
def test_a_cluster_of_ones_own_ends_with_the_script(tmp_path: Path) -> None:
    overrides = ["env=fake", "policy=random", "videos=0", "episodes=30", f"out={tmp_path}"]
    command = [sys.executable, "-m", "scripts.evaluate", *overrides, "executor=ray", "ray.actors=2", "ray.cpus=0.5"]
    started = {"RAY_ADDRESS": ""}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | started, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["total"]["episodes"] == 30
    assert "usage" not in done.stdout + done.stderr and "dashboard" not in done.stdout + done.stderr


def test_more_than_a_node_has_is_refused(cluster) -> None:
    with pytest.raises(GrasplineError, match=r"an actor wants .*99.* the largest node has .*2\.0"):
        RayRun(random_run, actors=1, slots=1, cpus=99)
    with pytest.raises(GrasplineError, match=r"ray\.actors=0"):
        RayRun(random_run, actors=0, slots=1)


def test_a_mistake_in_the_config_is_one_line(tmp_path: Path) -> None:
    for override, words in (("executor=rai", "Did you mean 'ray'"), ("ray.actor=3", "Did you mean 'ray.actors'")):
        with pytest.raises(SystemExit, match=f"error: unknown .*{words}"):
            entry("evaluate", main, ["env=fake", f"out={tmp_path / 'out'}", override])
    assert not (tmp_path / "out").exists()
