"""Random training samples a second: our loader against LeRobotDataset's own, on the same dataset, in one run.

A sample is one frame of every camera, the state and a chunk of 8 actions. lerobot is read in one process with its
default decoder and with PyAV, and the faster counts; ours includes stacking to batches, but not the one-off decoding of
the cache, whose time is told apart.

    python -m scripts.bench_loader outputs/demo/dataset
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla.core.errors import GrasplineError
from vla.data.batch import ChunkDataset
from vla.data.lerobot import LeRobotSource, lerobot_sampler

HORIZON, BATCH = 8, 64


def loader_ratio(root: Path, *, seconds: float = 3.0) -> dict[str, float | str]:
    """Measures both loaders for about `seconds` each.

    Returns:
        `loader_ratio` (ours / theirs), `samples_per_s`, `lerobot_samples_per_s`, `lerobot_backend`, and `cache_s`, the
        time until our first sample, which includes decoding if no cache was there.
    """
    start = time.perf_counter()
    dataset = ChunkDataset(source=LeRobotSource(root), horizon=HORIZON)
    cache_s = time.perf_counter() - start
    rng = np.random.default_rng(0)
    theirs = {}
    for backend in (None, "pyav"):
        sample = lerobot_sampler(root, HORIZON, backend)
        theirs[backend or "default"] = _rate(lambda: sample(int(rng.integers(len(dataset)))), 1, seconds)  # noqa: B023
    ours = _rate(lambda: dataset.batch(rng.integers(len(dataset), size=BATCH)), BATCH, seconds)
    fastest = max(theirs, key=lambda backend: theirs[backend])
    return {
        "loader_ratio": ours / theirs[fastest],
        "samples_per_s": ours,
        "lerobot_samples_per_s": theirs[fastest],
        "lerobot_backend": fastest,
        "cache_s": cache_s,
    }


def _rate(draw: Callable[[], object], samples: int, seconds: float) -> float:
    """Samples a second, after one draw to warm up."""
    draw()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        draw()
        count += samples
    return count / elapsed


def main() -> int:
    """Prints the figures as JSON; exit status 1 if the dataset cannot be read."""
    if len(sys.argv) != 2:
        print("usage: python -m scripts.bench_loader <LeRobotDataset folder>", file=sys.stderr)
        return 2
    try:
        print(json.dumps(loader_ratio(Path(sys.argv[1])), indent=2))
    except GrasplineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
