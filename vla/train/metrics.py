"""What a run writes down and shows while it trains, and the only importer of wandb.

Names: `loss` mean since the last row, in normalised units (L1 of continuous axes plus weighted cross entropy [nat] of
binary ones); `grad_norm` of the last step, before clipping; `lr` learning rate; `steps_per_s` optimiser steps per
second since the last row; `val_loss` on held-out episodes, averaged weights, no augmentation.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from vla.core.errors import unknown_name

WANDB_MODES = ("disabled", "offline", "online")


class Metrics:
    """Rows to `<out>/metrics.jsonl`, one JSON object a line, to wandb if asked for, and a progress bar."""

    def __init__(
        self,
        out: Path,
        *,
        steps: int,
        every: int = 20,
        wandb: str = "disabled",
        settings: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ) -> None:
        """Nothing is opened before `begin`.

        Args:
            out: run directory.
            steps: optimiser steps of the whole run.
            every: steps between rows.
            wandb: "disabled", "offline" (files under `out`, no account needed) or "online".
            settings: of the run, for wandb to show.
            enabled: False in all but one of several processes; then nothing is written or shown.
        """
        if wandb not in WANDB_MODES:
            raise unknown_name("wandb mode", wandb, WANDB_MODES)
        self._out, self._steps, self._every, self._enabled = out, steps, every, enabled
        self._wandb, self._settings, self._run = wandb, settings, None
        self._path = out / "metrics.jsonl"
        self._losses: list[float] = []

    def begin(self, start: int) -> None:
        """Opens everything; rows later than step `start`, which an interrupted run left, are dropped."""
        if not self._enabled:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(".metrics.jsonl.part")
        part.write_text("".join(json.dumps(row) + "\n" for row in read_metrics(self._path) if row["step"] <= start))
        part.replace(self._path)
        if self._wandb != "disabled":
            self._run = _start_wandb(self._out, self._wandb, self._settings)
        self._bar = tqdm(total=self._steps, initial=start, unit="step", desc="train")
        self._clock = time.perf_counter()

    def step(self, done: int, *, loss: float, grad_norm: float, lr: float) -> None:
        """Takes note of a step, `done` being the steps finished with it; writes a row when one is due."""
        self._losses.append(loss)
        if self._enabled:
            self._bar.update()
        if done % self._every and done != self._steps:
            return
        mean, count, self._losses = sum(self._losses) / len(self._losses), len(self._losses), []
        if self._enabled:
            now = time.perf_counter()
            speed, self._clock = count / (now - self._clock), now
            self._bar.set_postfix(loss=f"{mean:.4f}")
            self.log(done, {"loss": mean, "grad_norm": grad_norm, "lr": lr, "steps_per_s": speed})

    def log(self, done: int, values: Mapping[str, float]) -> None:
        """Writes one row."""
        if not self._enabled:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": done, **values}) + "\n")
        if self._run is not None:
            self._run.log(dict(values), step=done)

    def end(self) -> None:
        """Closes bar and wandb, and draws `<out>/loss.png`."""
        if not self._enabled:
            return
        self._bar.close()
        if self._run is not None:
            self._run.finish()
        plot_loss(read_metrics(self._path), self._out / "loss.png")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file, [] if there is none; what follows a line that a kill cut off is left out."""
    rows: list[dict[str, float]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def plot_loss(rows: list[dict[str, float]], path: Path) -> None:
    """Training loss, and validation loss where measured, against steps, as a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="optimiser step", ylabel="loss", yscale="log")
    for name, label in (("loss", "training"), ("val_loss", "held-out episodes")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points), label=label)
            axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _start_wandb(out: Path, mode: str, settings: Mapping[str, Any] | None) -> Any:
    import wandb  # here, because importing it costs more than a second, which most runs need not pay

    return wandb.init(project="graspline", name=out.name, dir=str(out), mode=mode, config=dict(settings or {}))  # pyright: ignore[reportArgumentType]
