"""Demonstrations of a LIBERO suite: killed in the middle, gone on with, in two workers, readable by lerobot."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scripts.collect import main
from scripts.entry import compose
from sim.experts import expert_for
from sim.libero import LiberoEnv
from vla.data.lerobot import LeRobotSource
from vla.rollout.collect import Perturbation, collect_plan, noops_T, record_episode
from vla.rollout.plan import select_tasks

ROOT = Path(__file__).resolve().parents[2]
TASKS = (
    "pick_up_the_butter_and_place_it_in_the_basket",
    "pick_up_the_milk_and_place_it_in_the_basket",
)
SMALL = {"image_size": 64, "look": "fast"}
EPISODES = 8


@pytest.mark.slow
def test_a_suite_is_collected_by_two_workers_and_survives_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "GRASPLINE_LIBERO_ASSETS" not in os.environ:
        pytest.skip("set GRASPLINE_LIBERO_ASSETS to the folder of LIBERO's assets")
    env_words = [f"env.{key}={value}" for key, value in SMALL.items()]
    asked = ["env=libero_object", *env_words, f"tasks=[{','.join(TASKS)}]", f"episodes={EPISODES}", "workers=2"]
    asked.append(f"out={tmp_path / 'dataset'}")
    kept = _kill_after(2, asked, tmp_path / "dataset.staging")
    assert 2 <= len(kept) < EPISODES

    main(compose("collect", asked))
    assert f"/{EPISODES - len(kept)} " in capsys.readouterr().err, "only the missing ones are recorded"
    assert not (tmp_path / "dataset.staging").exists()
    source = LeRobotSource(tmp_path / "dataset")
    metas = source.episode_meta
    names = {f"{meta['task']}-{meta['init_state']}-{meta['seed']}.safetensors" for meta in metas}
    assert len(names) == EPISODES and kept <= names
    assert Counter(meta["task"] for meta in metas) == dict.fromkeys(TASKS, EPISODES // 2)

    # what was recorded before the kill and after it is, bit for bit, what one process records
    env = LiberoEnv(suite="libero_object", **SMALL)
    plan = collect_plan(select_tasks(env.tasks, list(TASKS)), EPISODES, 0)
    first = [number for number, meta in enumerate(metas) if meta["task"] == TASKS[0]]
    before = {number for number in first if any(f"-{metas[number]['seed']}." in name for name in kept)}
    numbers = [min(before), min(set(first) - before)]
    for number in numbers:
        [row] = [each for each in plan if each.seed == metas[number]["seed"] and each.task == metas[number]["task"]]
        rng = np.random.default_rng([row.seed, 0])
        alone, found = record_episode(env, expert_for(env), row, Perturbation(), rng), source[number]
        assert (alone.actions_TA == found.actions_TA).all() and (alone.labels_TA == found.labels_TA).all()
        seen = [observation.state_S for observation in found.observations[:-1]]  # a dataset repeats the last but one
        assert all((a.state_S == b_S).all() for a, b_S in zip(alone.observations[:-1], seen, strict=True))
        assert alone.success and found.success and not noops_T(env.spec, found.actions_TA, found.labels_TA).any()
    env.close()


def _kill_after(finished: int, asked: list[str], staging: Path) -> set[str]:
    """Starts collecting, kills all its processes once so many episodes are finished; the names of those that are."""
    words = [sys.executable, "-W", "ignore", "-m", "scripts.collect", *asked]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **quiet)
    deadline = time.monotonic() + 900
    while len(list(staging.glob("[!.]*.safetensors"))) < finished:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return {path.name for path in staging.glob("[!.]*.safetensors")}
