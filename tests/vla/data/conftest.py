"""Synthetic episodes: smooth pictures whose brightness tells episode, frame and camera, so that a wrong frame shows."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Episode, Observation
from vla.data.lerobot import LeRobotSource, write_dataset

EPISODES, STEPS, SIZE = 5, 20, 64


@pytest.fixture(scope="session")
def spec() -> Embodiment:
    return Embodiment(
        name="toy",
        state=tuple(Axis(name=name, unit="m") for name in ("x", "y", "z")),
        action=(
            Axis(name="dx", unit="m", low=-1, high=1),
            Axis(name="dy", unit="m", low=-1, high=1),
            Axis(name="gripper", unit="1", low=-1, high=1, binary=True),
        ),
        cameras=(Camera(name="front", height=SIZE, width=SIZE), Camera(name="wrist", height=SIZE, width=SIZE)),
        control_hz=20.0,
    )


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], np.ndarray]:
    """(episode, frame, camera) to an image: a gradient plus a grey level that names the three."""

    def make(episode: int, t: int, camera: int) -> np.ndarray:
        row, column = np.mgrid[0:SIZE, 0:SIZE]
        level = 10 + 7 * t + 12 * episode % 17 + 40 * camera
        return np.stack([row * 0.5 + level, column * 0.5 + level, np.full_like(row, level)], axis=2).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def make_episode(spec: Embodiment, picture: Callable) -> Callable[..., Episode]:
    def make(index: int, steps: int = STEPS, **changes) -> Episode:
        rng = np.random.default_rng(index)
        observations = [
            Observation(
                images={"front": picture(index, t, 0), "wrist": picture(index, t, 1)},
                state_S=rng.standard_normal(3, np.float32),
                instruction=f"do task {index % 2}",
                time_s=100.0 * index + t / 20 + 0.001 * rng.random(),
            )
            for t in range(steps + 1)
        ]
        # spread grows with the episode, so that quantiles of the whole are not means of the episodes' quantiles
        labels_TA = np.clip(rng.standard_normal((steps, 3)) * 0.1 * (1 + index), -1, 1).astype(np.float32)
        labels_TA[:, 2] = np.where(np.arange(steps) < 12, 1.0, -1.0)
        success = index != 1
        fields = {
            "observations": observations,
            "actions_TA": labels_TA + np.float32([0.01, -0.02, 0]),
            "labels_TA": labels_TA,
            "rewards": {"reach": rng.random(steps, np.float32), "lift": rng.random(steps, np.float32)},
            "terminated": success,
            "truncated": not success,
            "success": success,
            "meta": {"task": f"task-{index % 2}", "init_state": index, "seed": 7, "policy": "expert", "noise": 0.25},
        }
        return Episode(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    """Of different lengths, on purpose."""
    return [make_episode(index, STEPS - index) for index in range(EPISODES)]


@pytest.fixture(scope="session")
def dataset_root(episodes: list[Episode], spec: Embodiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lerobot") / "toy"
    write_dataset(episodes, root, spec, total=len(episodes))
    return root


@pytest.fixture(scope="session")
def source(dataset_root: Path) -> LeRobotSource:
    return LeRobotSource(dataset_root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """(KiB) to a folder on a file system of that size, where mounting is allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = []

    def make(kib: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a tmpfs is not allowed here")
        mounted.append(folder)
        return folder

    yield make
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)
