import os
import subprocess
import sys
from pathlib import Path

import pytest

from vla.core.errors import UnknownNameError
from vla.train.metrics import Metrics, read_metrics


def test_rows_hold_means_since_the_row_before(tmp_path: Path):
    metrics = Metrics(tmp_path, steps=5, every=2)
    metrics.begin(0)
    for done, loss in enumerate([1.0, 3.0, 5.0, 7.0, 9.0], start=1):
        metrics.step(done, loss=loss, grad_norm=0.5, lr=0.1)
    metrics.end()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 2.0), (4, 6.0), (5, 9.0)]
    assert all(row["steps_per_s"] > 0 for row in rows)


def test_rows_after_the_resumed_step_are_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 3.0}\n{"step": 4, "lo')
    metrics = Metrics(tmp_path, steps=4, every=1)
    metrics.begin(2)
    metrics.step(3, loss=30.0, grad_norm=1.0, lr=0.1)
    metrics.end()
    assert [row["loss"] for row in read_metrics(path)] == [1.0, 2.0, 30.0]


def test_only_one_process_writes(tmp_path: Path):
    metrics = Metrics(tmp_path, steps=1, every=1, enabled=False)
    metrics.begin(0)
    metrics.step(1, loss=1.0, grad_norm=1.0, lr=0.1)
    metrics.end()
    assert list(tmp_path.iterdir()) == []


def test_unknown_wandb_mode(tmp_path: Path):
    with pytest.raises(UnknownNameError, match=r"wandb mode 'ofline'.*'offline'"):
        Metrics(tmp_path, steps=1, wandb="ofline")


@pytest.mark.slow
def test_wandb_offline_needs_no_account(tmp_path: Path):
    code = (
        "from pathlib import Path; from vla.train.metrics import Metrics\n"
        f"m = Metrics(Path({str(tmp_path)!r}), steps=1, every=1, wandb='offline', settings={{'lr': 1}})\n"
        "m.begin(0); m.step(1, loss=1., grad_norm=1., lr=.1); m.end()"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean | {"HOME": str(tmp_path)}, timeout=120)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
