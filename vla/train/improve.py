"""Learning from recorded chunks: `improve`, a plain function.

As `fit` in offline.py: batches and randomness are functions of the step, so a run that was killed goes on from its last
checkpoint exactly as if it had never stopped. It ends early for two reasons, and then keeps the evidence: a number that
is not finite, and values that leave what any policy can attain, which is how a critic that believes itself begins to
diverge.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from vla.core.errors import GrasplineError, NonFiniteError
from vla.rl.interfaces import Algorithm, ChunkBatch
from vla.rl.states import load_state, save_state
from vla.train.metrics import read_metrics

KEEP = 2  # checkpoints


class Log(Protocol):
    """Where rows go; `Rows` is one."""

    def begin(self, start: int) -> None:
        """Called once; rows later than step `start`, which an interrupted run left, are dropped."""
        ...

    def log(self, done: int, values: Mapping[str, float]) -> None: ...


class Rows:
    """Rows to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, start: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.name}.part")
        part.write_text("".join(json.dumps(row) + "\n" for row in read_metrics(self._path) if row["step"] <= start))
        part.replace(self._path)

    def log(self, done: int, values: Mapping[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": done, **values}) + "\n")


type Inspect = Callable[[int, ChunkBatch], Mapping[str, float]]
"""Looks, after so many steps, at the newest batch; raises GrasplineError to stop the run."""


def improve(
    algorithm: Algorithm,
    batches: Callable[[int], Iterator[ChunkBatch]],
    *,
    steps: int,
    seed: int,
    out: Path,
    metrics: Log,
    checkpoint_every: int = 1000,
    log_every: int = 100,
    inspect: Inspect = lambda done, batch: {},
) -> None:
    """Updates `algorithm` up to `steps` times, going on from the newest checkpoint in `out`, if any.

    Args:
        algorithm: as it was built from `seed`.
        batches: the endless batches from a step on.
        steps: in all, those before an interruption included.
        seed: of whatever an update draws without a generator of its own.
        out: run directory; gets `checkpoints/`, and `stopped/` if it comes to that.
        metrics: gets the means of what updates return, every `log_every` steps.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        log_every: steps between rows.
        inspect: called for each row, to which its numbers are added; NaN, where nothing is known, is left out.

    Raises:
        NonFiniteError: an update returned NaN or infinity; batch and state are kept in `out/stopped`.
        GrasplineError: from `inspect`, with the same evidence.
        CorruptFileError: the newest checkpoint is damaged.
    """
    start = resume(algorithm, out)
    metrics.begin(start)
    sums: dict[str, list[float]] = {}
    clock = time.perf_counter()
    with closing(batches(start)) as source, _bar(start, steps) as bar:  # pyright: ignore[reportArgumentType]
        for done, batch in zip(range(start + 1, steps + 1), source):
            torch.manual_seed(_seed_of_step(seed, done))
            values = algorithm.update(batch)
            if bad := [name for name, value in values.items() if not math.isfinite(value)]:
                _keep_evidence(out, algorithm, batch, done, values)
                raise NonFiniteError(f"step {done}: {', '.join(bad)} not finite; batch and state are in {out}/stopped")
            for name, value in values.items():
                sums.setdefault(name, []).append(value)
            bar.update()
            if done % log_every == 0 or done == steps:
                means = {name: float(np.mean(some)) for name, some in sums.items()}
                now = time.perf_counter()
                speed = max(map(len, sums.values()), default=0) / max(now - clock, 1e-9)
                sums, clock = {}, now
                seen = _inspected(inspect, out, algorithm, batch, done, means)
                metrics.log(done, {**means, **seen, "steps_per_s": speed})
            if done % checkpoint_every == 0 or done == steps:
                checkpoint(algorithm, out, done)


def checkpoint(algorithm: Algorithm, out: Path, done: int) -> Path:
    """Writes the state after `done` steps and removes all but the newest two."""
    path = out / "checkpoints" / f"step_{done:08d}.safetensors"
    save_state(path, {"step": done, "algorithm": algorithm.state_dict()})
    for old in checkpoints(out)[:-KEEP]:
        old.unlink()
    return path


def checkpoints(out: Path) -> list[Path]:
    """Oldest first; a file that a kill left unfinished has a hidden name and is not among them."""
    return sorted((out / "checkpoints").glob("step_*.safetensors"))


def resume(algorithm: Algorithm, out: Path) -> int:
    """Puts the newest checkpoint back, if there is one. Returns the steps done."""
    found = checkpoints(out)
    if not found:
        return 0
    state = load_state(found[-1])
    algorithm.load_state_dict(state["algorithm"])
    return state["step"]


def _inspected(
    inspect: Inspect, out: Path, algorithm: Algorithm, batch: ChunkBatch, done: int, means: Mapping[str, float]
) -> dict[str, float]:
    try:
        return {name: value for name, value in inspect(done, batch).items() if not math.isnan(value)}
    except GrasplineError:
        _keep_evidence(out, algorithm, batch, done, means)
        raise


def _keep_evidence(out: Path, algorithm: Algorithm, batch: ChunkBatch, done: int, values: Mapping[str, float]) -> None:
    """What is needed to look into it: the batch, the state after the update, and what the update said."""
    folder = out / "stopped"
    save_state(folder / "state.safetensors", {"step": done, "algorithm": algorithm.state_dict()})
    save_file({name: tensor.cpu().contiguous() for name, tensor in vars(batch).items()}, folder / "batch.safetensors")
    told = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    (folder / "stopped.json").write_text(json.dumps({"step": done, "values": told}, indent=1))


def _seed_of_step(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _bar(start: int, steps: int) -> tqdm:
    return tqdm(total=steps, initial=start, unit="step", desc="improve", mininterval=1.0)
