"""Other harnesses on the same policy and episodes: stock LIBERO's loop, lerobot-eval, vla-eval.

lerobot-eval and vla-eval are run as their users run them, in processes of their own, with one thread for each.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.libero import LiberoEnv
from sim.libero_setup import bddl_file, ensure_config, find_assets, init_states_file, load_init_states, package_folder
from vla.core.errors import GrasplineError
from vla.core.se3 import axis_angle_of_quat
from vla.core.types import Observation, Step

ROOT = Path(__file__).resolve().parent.parent
SETTLE_STEPS = 10
IDLE = [0.0] * 6 + [-1.0]


@dataclass(frozen=True, kw_only=True)
class Match:
    """What all ways have in common. `policy` is a run directory."""

    suite: str
    tasks: int
    horizon: int
    execute: int
    workers: int
    image_size: int
    policy: Path
    assets: str | None


class StockEnv(LiberoEnv):
    """The loop of the published evaluations: stock LIBERO, which draws both cameras in every step and every reset."""

    _stock: Any = None
    _running: str = ""

    def reset(self, task: str, init_state: int, seed: int) -> None:
        if self._stock is None or self._running != task:
            self.close()
            self._stock, self._running = _stock(self.suite, task, self._assets, self.spec.cameras[0].width), task
            self._stock.seed(0)
        self._stock.reset()
        self._stock.set_init_state(load_init_states(init_states_file(self.suite, task))[init_state])
        for _ in range(SETTLE_STEPS):
            self._raw = self._stock.step(IDLE)[0]
        self._steps = 0

    def step(self, action_A: np.ndarray) -> Step:
        executed_A = self.spec.clip(action_A)
        self._raw, _, success, _ = self._stock.step(executed_A)
        self._steps += 1
        over = self._steps >= self.tasks[self._running].horizon
        return Step(executed_A=executed_A, terminated=success, truncated=over and not success, success=success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        raw, names = self._raw, {"agentview": "agentview_image", "wrist": "robot0_eye_in_hand_image"}
        x, y, z, w = raw["robot0_eef_quat"]
        parts = raw["robot0_eef_pos"], axis_angle_of_quat(np.array([w, x, y, z])), raw["robot0_gripper_qpos"]
        return Observation(
            images={name: np.ascontiguousarray(raw[names[name]][::-1, ::-1]) for name in cameras or names},
            state_S=np.concatenate(parts).astype(np.float32),
            instruction=self.tasks[self._running].instruction,
            time_s=self._steps * self.spec.dt_s,
        )

    def close(self) -> None:
        if self._stock is not None:
            self._stock.close()
            self._stock = None


def _stock(suite: str, task: str, assets: str | None, size: int) -> Any:
    ensure_config()
    import libero.libero as package
    from libero.libero.envs import OffScreenRenderEnv

    package._assets_path_cache = str(find_assets(assets))
    return OffScreenRenderEnv(bddl_file_name=str(bddl_file(suite, task)), camera_heights=size, camera_widths=size)


def lerobot_eval(match: Match, episodes: int, folder: Path, *, batch: int, processes: bool, rebuild: bool) -> float:
    """Seconds that `lerobot-eval` reports for `episodes`, with its films, of which it always makes ten a task.

    Args:
        match: what all ways have in common.
        episodes: of all tasks together.
        folder: for its output; must not exist.
        batch: envs side by side.
        processes: whether each has a process of its own.
        rebuild: whether a reset compiles the scene anew (its default).
    """
    words = {
        "policy.type": "graspline",
        "policy.run": match.policy,
        "policy.device": "cpu",
        "policy.n_action_steps": match.execute,
        "env.type": "libero",
        "env.task": match.suite,
        "env.task_ids": f"[{','.join(map(str, range(match.tasks)))}]",
        "env.episode_length": match.horizon,
        "env.observation_height": match.image_size,
        "env.observation_width": match.image_size,
        "env.hard_reset": str(rebuild).lower(),
        "eval.n_episodes": episodes // match.tasks,
        "eval.batch_size": batch,
        "eval.use_async_envs": str(processes).lower(),
        "output_dir": folder / "eval",
    }
    command = [
        sys.executable,
        "-m",
        "lerobot.scripts.lerobot_eval",
        *(f"--{key}={word}" for key, word in words.items()),
    ]
    with _process(command, _environment(folder, match.assets), folder / "log.txt") as process:
        process.wait()
    _succeeded(process, folder / "log.txt")
    return json.loads((folder / "eval" / "eval_info.json").read_text())["overall"]["eval_s"]


def vla_eval(match: Match, episodes: int, folder: Path, package: Path) -> float:
    """Seconds in which vla-eval's shards, without Docker, play `episodes` against its batching server.

    Args:
        match: what all ways have in common.
        episodes: of all tasks together.
        folder: for its output; must not exist.
        package: where vla-eval is installed.
    """
    environment = _environment(folder, match.assets, package.resolve())
    port = _free_port()
    config = {
        "server": {"url": f"ws://127.0.0.1:{port}", "timeout": 600},
        "output_dir": str(folder / "results"),
        "benchmarks": [
            {
                "benchmark": "vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark",
                "episodes_per_task": episodes // match.tasks,
                "max_tasks": match.tasks,
                "max_steps": match.horizon,
                "params": {"suite": match.suite, "send_wrist_image": True, "send_state": True, "env_seed": 0},
            }
        ],
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    server = ["-m", "scripts.bench_vla_eval", str(match.policy), str(port), str(match.execute), str(match.workers)]
    run = ["-m", "vla_eval.cli.main", "run", "--config", str(folder / "config.yaml"), "--no-docker", "--no-save"]
    with contextlib.ExitStack() as running:
        serving = running.enter_context(_process([sys.executable, *server], environment, folder / "server.txt"))
        _wait_for(port, serving, folder / "server.txt")
        began = time.perf_counter()
        shards = []
        for shard in range(match.workers):
            words = [*run, "--shard-id", str(shard), "--num-shards", str(match.workers)]
            log = folder / f"shard{shard}.txt"
            shards.append((running.enter_context(_process([sys.executable, *words], environment, log)), log))
        for process, log in shards:
            process.wait()
            _succeeded(process, log)
        seconds = time.perf_counter() - began
    told = "".join(log.read_text() for _, log in shards)
    if sum(map(int, re.findall(r"\(\d+/(\d+)\)", told))) != episodes or "had errors" in told:
        raise GrasplineError(f"vla-eval did not play {episodes} episodes without error; see {folder}/shard*.txt")
    return seconds


@contextlib.contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen]:
    """A process that ends with the block at the latest and writes to `log`."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _succeeded(process: subprocess.Popen, log: Path) -> None:
    if process.returncode != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise GrasplineError(f"failed ({process.returncode}): {''.join(last)}; see {log}")


def _environment(folder: Path, assets: str | None, *packages: Path) -> dict[str, str]:
    """Variables for a process that imports LIBERO and knows nothing of ours: where assets are, and what else to import.

    LIBERO looks for assets beside its own files, so it gets links to those, and one more.
    """
    ensure_config()
    inner = folder / "libero" / "libero"
    inner.mkdir(parents=True)
    for path in package_folder().iterdir():
        (inner / path.name).symlink_to(path)
    (inner / "assets").symlink_to(find_assets(assets))
    if (outer := package_folder().parent / "__init__.py").exists():
        (inner.parent / "__init__.py").symlink_to(outer)
    one_thread = dict.fromkeys(("LP_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    paths = [str(folder), str(ROOT), *map(str, packages)]
    return {**os.environ, **one_thread, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            _succeeded(process, log)
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.5)
    raise GrasplineError(f"vla-eval's server did not listen within five minutes; see {log}")
