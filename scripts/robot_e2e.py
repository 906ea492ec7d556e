"""A pick task on the SO-101 twin, from an arm as its maker sends it to a success rate.

    calibrate -> collect -> train -> serve + deploy -> summary.json and one line

Each stage goes on where it stopped. The policy is served by a process of its own and reached through its socket; all
between that socket and the cube (daemon, filter, wire protocol, servos, physics) runs here, on a virtual clock.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl" if sys.platform == "linux" else "glfw")  # read by `import mujoco`

import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from real_robot.calibration import ArmCalibration
from real_robot.e2e.cell import RATE_HZ, Cell, Memory, camera_specs, table
from real_robot.e2e.episodes import Bench, attempt, demonstrate
from real_robot.e2e.expert import Reach
from real_robot.playing import Playing
from real_robot.record.recorder import embodiment_of
from real_robot.twin.pick_scene import HELD_OUT_STATES, TRAIN_STATES, PickScene
from scripts.entry import entry
from vla.core.errors import GrasplineError
from vla.core.protocols import Policy
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import SUFFIX, read_staged, write_staged
from vla.rollout.evaluate import wilson, write_json
from vla.rollout.remote import RemotePolicy

RESAMPLES = 10_000


def main(config: DictConfig) -> None:
    """Runs what is missing of every stage."""
    out = Path(config.out)
    if not 1 <= config.episodes <= len(HELD_OUT_STATES):
        raise GrasplineError(f"episodes is {config.episodes}, expected 1 to {len(HELD_OUT_STATES)} held-out states")
    scene = PickScene(image_size=config.image_size)
    with _timed(out, "calibrate"):
        bench = _calibrate(scene, out / "arm", config.serial)
    with _timed(out, "collect"):
        _collect(bench, out, config)
    with _timed(out, "train"):
        _train(out, config)
    with _timed(out, "deploy"), _served(out / "policy") as policy:
        rows = _deploy(bench, policy, out, config)
    scene.close()
    summary = summarise(rows, _expert(out / "dataset"), json.loads((out / "minutes.json").read_text()))
    write_json(out / "summary.json", summary)
    print(line(summary))


def summarise(rows: Sequence[dict[str, Any]], expert: dict[str, int], minutes: dict[str, float]) -> dict[str, Any]:
    """Rates and times with 95 % intervals: Wilson's for success, a bootstrap's for the mean cycle."""
    successes = [row for row in rows if row["success"]]
    low, high = wilson(len(successes), len(rows))
    asked_ms = np.concatenate([row["asked_ms"] for row in rows])
    sums = {key: sum(row[key] for row in rows) for key in ("estops", "faults", "violations", "chunks", "ticks")}
    counts = {key: dict(sum((Counter(row[key]) for row in rows), Counter())) for key in ("verdicts", "refused")}
    return {
        "success": {"successes": len(successes), "episodes": len(rows), "low": low, "high": high},
        "cycle_s": _cycle(np.array([row["seconds"] for row in successes])),
        "expert_first_try": expert,
        **sums,
        **counts,
        "filtered": sum(row["filtered"] for row in rows),
        "starved_s": round(sum(row["starved_s"] for row in rows), 3),
        "asked_ms": {"p50": float(np.median(asked_ms)), "p95": float(np.quantile(asked_ms, 0.95))},
        "ended": dict(Counter(row["ended"] for row in rows)),
        "minutes": minutes,
        "rows": list(rows),
    }


def line(summary: dict[str, Any]) -> str:
    """The result in one line."""
    success, cycle = summary["success"], summary["cycle_s"]
    share, asked = summary["filtered"] / max(1, summary["ticks"]), summary["asked_ms"]
    took = f"{cycle['mean']:.1f} s ({cycle['low']:.1f}-{cycle['high']:.1f})" if cycle else "none"
    return (
        f"success {success['successes']} of {success['episodes']} ({success['low']:.0%}-{success['high']:.0%}), "
        f"cycle {took}, filter spoke in {share:.1%} of {summary['ticks']} ticks, {summary['estops']} e-stops, "
        f"{summary['faults']} faults, answers p50 {asked['p50']:.0f} ms p95 {asked['p95']:.0f} ms, "
        f"{sum(summary['minutes'].values()):.1f} minutes"
    )


def _cycle(seconds_N: np.ndarray) -> dict[str, float] | None:
    if not len(seconds_N):
        return None
    drawn = np.random.default_rng(0).choice(seconds_N, (RESAMPLES, len(seconds_N))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"mean": float(seconds_N.mean()), "low": float(low), "high": float(high)}


def _calibrate(scene: PickScene, folder: Path, serial: int) -> Bench:
    """Makes the arm's calibration and fills its servos, or takes up both."""
    file, memory_file = folder / "calibration.json", folder / "servos.json"
    if not file.exists():
        calibration, memory = Cell(scene, serial=serial).calibrate()
        memory.save(memory_file)
        calibration.save(file)
        print(f"calibrated, sha256 {calibration.sha256[:12]}")
    calibration, memory = ArmCalibration.load(file), Memory.load(memory_file)
    return Bench(scene=scene, calibration=calibration, memory=memory, serial=serial, obstacles=table())


def _collect(bench: Bench, out: Path, config: DictConfig) -> None:
    """Stages a successful demonstration from each initial state, then writes the dataset."""
    dataset, staging = out / "dataset", out / "staging"
    if dataset.exists():
        return
    extra = range(HELD_OUT_STATES.stop, HELD_OUT_STATES.stop + max(0, config.demonstrations - len(TRAIN_STATES)))
    states = [*TRAIN_STATES, *extra][: config.demonstrations]
    reach = Reach(bench.cell(0, 0).arm.spec)
    for init_state in tqdm(states, desc="collecting", unit="episode"):
        if not list(staging.glob(f"{init_state:06d}-*{SUFFIX}")):
            _record(bench, reach, init_state, staging, config)
    paths = sorted(staging.glob(f"[!.]*{SUFFIX}"))
    spec = embodiment_of(reach.spec, camera_specs(config.image_size), RATE_HZ)
    write_dataset((read_staged(path) for path in paths), dataset, spec, total=len(paths))
    for path in paths:
        path.unlink()
    staging.rmdir()


def _record(bench: Bench, reach: Reach, init_state: int, staging: Path, config: DictConfig) -> None:
    for seed in range(config.attempts):
        episode = demonstrate(bench, reach, init_state, seed=seed, noise_rad=config.noise_rad)
        if episode.success:
            write_staged(staging, f"{init_state:06d}-{seed}", episode)
            return
        tqdm.write(f"initial state {init_state}, seed {seed}: the cube is not in the tray")
    raise GrasplineError(f"initial state {init_state}: no success in {config.attempts} attempts")


def _expert(dataset: Path) -> dict[str, int]:
    """How many demonstrations came off at the first attempt."""
    metas = LeRobotSource(dataset).episode_meta
    return {"successes": sum(meta["seed"] == 0 for meta in metas), "episodes": len(metas)}


def _train(out: Path, config: DictConfig) -> None:
    if (out / "policy" / "policy.json").exists():
        return
    settings: Any = OmegaConf.to_container(config.train, resolve=True)
    settings |= {"dataset": out / "dataset", "out": out / "policy", "seed": config.seed}
    words = [sys.executable, "-m", "scripts.train", *(f"{key}={_word(value)}" for key, value in settings.items())]
    print(f"\n$ python {shlex.join(words[1:])}", flush=True)
    done = subprocess.run(words, check=False)
    if done.returncode:
        sys.exit(done.returncode)


@contextmanager
def _served(run: Path) -> Iterator[Policy]:
    """The policy behind `scripts.serve`, asked through its socket."""
    words = [sys.executable, "-W", "ignore", "-m", "scripts.serve", f"policy={run}", "port=0", "deadline_ms=10000"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        told = server.stdout.readline()
        if " on ws://" not in told:
            raise GrasplineError(f"the policy server did not start: {told.strip()}")
        with RemotePolicy(told.partition(" on ")[2].partition(";")[0], timeout_s=30.0) as policy:
            yield policy
    finally:
        server.terminate()
        server.wait()


def _deploy(bench: Bench, policy: Policy, out: Path, config: DictConfig) -> list[dict[str, Any]]:
    """Plays the held-out states that this policy has not played yet; all rows."""
    digest = hashlib.sha256((out / "policy" / "model.safetensors").read_bytes()).hexdigest()[:12]
    path, states = out / f"deploy-{digest}.jsonl", list(HELD_OUT_STATES)[: config.episodes]
    rows = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    done = {row["init_state"] for row in rows}
    playing = Playing(execute=config.execute, fade=config.fade)
    for init_state in tqdm([state for state in states if state not in done], desc="deploying", unit="episode"):
        seen = attempt(bench, policy, init_state, playing=playing, seconds=config.seconds, latency_s=config.latency_s)
        rows.append(asdict(seen))
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        tqdm.write(f"{init_state}: {seen.ended}, {seen.seconds:.1f} s")
    return sorted((row for row in rows if row["init_state"] in states), key=lambda row: row["init_state"])


@contextmanager
def _timed(out: Path, stage: str) -> Iterator[None]:
    """Adds the stage's minutes to those of earlier runs."""
    start_s, path = time.monotonic(), out / "minutes.json"
    yield
    minutes = json.loads(path.read_text()) if path.exists() else {}
    minutes[stage] = round(minutes.get(stage, 0.0) + (time.monotonic() - start_s) / 60, 3)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, minutes)


def _word(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    entry("robot_e2e", main)
