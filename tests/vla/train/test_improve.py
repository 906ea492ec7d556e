"""The loop around an algorithm: resumed bit for bit, stopped with evidence, rows that tell the truth."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla.core.errors import NonFiniteError
from vla.rl.diagnostics import DivergenceError
from vla.rl.interfaces import ChunkBatch
from vla.rl.player import make_algorithm
from vla.rl.problem import Problem
from vla.rl.states import load_state
from vla.train.improve import Rows, checkpoints, improve

PROBLEM = Problem(features=3, horizon=2, binary=[False, True], discount=0.9, low=0.0, high=1.0)
SMALL = {
    "bc": {"actor_width": 8, "actor": "flow"},
    "iql": {"actor_width": 8, "critic_width": 8, "value_width": 8, "critic_layers": 1},
    "co_rft": {"actor_width": 8, "critic_width": 8, "critic_layers": 1},
}


def batches(start: int) -> Iterator[ChunkBatch]:
    """A function of the step, as a Sampler's."""
    for step in range(start, 10_000):
        rng = torch.Generator().manual_seed(step)
        yield ChunkBatch(
            features_BGD=torch.rand(6, 3, 3, generator=rng),
            actions_BHA=torch.rand(6, 2, 2, generator=rng).round(),
            valid_BH=torch.ones(6, 2, dtype=torch.bool),
            rows_BH=torch.ones(6, 2, dtype=torch.bool),
            rewards_BH=torch.rand(6, 2, generator=rng) / 10,
            terminated_B=torch.rand(6, generator=rng) < 0.5,
            known_B=torch.ones(6, dtype=torch.bool),
            return_mc_B=torch.rand(6, generator=rng),
            success_B=torch.ones(6, dtype=torch.bool),
            demo_B=torch.ones(6, dtype=torch.bool),
            task_B=torch.zeros(6, dtype=torch.int64),
        )


def run(name: str, out: Path, steps: int, **options: Any) -> Any:
    torch.manual_seed(3)
    algorithm = make_algorithm(name, PROBLEM, SMALL[name])
    torch.rand(len(str(out)) + steps)  # what else has been drawn must not matter
    kept = {"checkpoint_every": 10, "log_every": 5, "seed": 3, **options}
    improve(algorithm, batches, steps=steps, out=out, metrics=Rows(out / "metrics.jsonl"), **kept)
    return algorithm


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_killed_and_resumed_is_never_stopped(name: str, tmp_path: Path) -> None:
    """25 steps of which the last 5 are lost with the process, then on to 50: the same bits as 50 at once."""
    run(name, tmp_path / "whole", 50)

    class KilledError(Exception):
        pass

    def dying(start: int) -> Iterator[ChunkBatch]:
        yield from islice(batches(start), 25 - start)
        raise KilledError

    torch.manual_seed(3)
    rows = Rows(tmp_path / "parts" / "metrics.jsonl")
    with pytest.raises(KilledError):
        improve(
            make_algorithm(name, PROBLEM, SMALL[name]),
            dying,
            steps=50,
            seed=3,
            out=tmp_path / "parts",
            metrics=rows,
            checkpoint_every=10,
            log_every=5,
        )
    assert [path.stem for path in checkpoints(tmp_path / "parts")] == ["step_00000010", "step_00000020"]
    run(name, tmp_path / "parts", 50)
    whole, parts = (tensors(checkpoints(tmp_path / each)[-1]) for each in ("whole", "parts"))
    assert whole.keys() == parts.keys() and len(whole) > 4
    assert all((whole[key] == parts[key]).all() for key in whole)
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key != "steps_per_s"}
            for line in (tmp_path / each / "metrics.jsonl").read_text().splitlines()
        ]
        for each in ("whole", "parts")
    ]
    assert logs[0] == logs[1] and [row["step"] for row in logs[0]] == list(range(5, 51, 5))


def test_a_forgotten_step_would_be_noticed(tmp_path: Path) -> None:
    """The mutation of the test above: batches that begin at 0 again after a resume give other weights."""
    run("iql", tmp_path / "whole", 20)
    run("iql", tmp_path / "parts", 10)
    torch.manual_seed(3)
    algorithm = make_algorithm("iql", PROBLEM, SMALL["iql"])
    improve(algorithm, lambda start: batches(0), steps=20, seed=3, out=tmp_path / "parts", metrics=Rows(tmp_path / "m"))
    whole, parts = (tensors(checkpoints(tmp_path / each)[-1]) for each in ("whole", "parts"))
    assert any((whole[key] != parts[key]).any() for key in whole)


def test_rows_are_means_and_two_checkpoints_stay(tmp_path: Path) -> None:
    class Counting:
        done = 0

        def update(self, batch: ChunkBatch) -> Mapping[str, float]:
            self.done += 1
            return {"loss": float(self.done), **({"actor_loss": 1.0} if self.done % 2 else {})}

        def choose(self, features_BD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return torch.zeros(len(features_BD), 2, 2)

        def state_dict(self) -> dict[str, Any]:
            return {"done": self.done}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.done = state["done"]

    rows = Rows(tmp_path / "metrics.jsonl")
    inspected = {"q/data": 0.5, "q/calibration": math.nan}
    options = {"seed": 0, "out": tmp_path, "metrics": rows, "checkpoint_every": 2, "log_every": 4}
    improve(Counting(), batches, steps=7, inspect=lambda done, batch: inspected, **options)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"], row["actor_loss"]) for row in found] == [(4, 2.5, 1.0), (7, 6.0, 1.0)]
    assert all(row["q/data"] == 0.5 and "q/calibration" not in row for row in found)
    assert [load_state(path)["step"] for path in checkpoints(tmp_path)] == [6, 7]


def test_what_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def spoilt(start: int) -> Iterator[ChunkBatch]:
        for step, batch in enumerate(batches(start), start + 1):
            if step == 8:
                batch.features_BGD[2, 0, 1] = math.nan
            yield batch

    torch.manual_seed(0)
    algorithm = make_algorithm("co_rft", PROBLEM, SMALL["co_rft"])
    with pytest.raises(NonFiniteError, match=r"step 8: .*not finite.*stopped"):
        improve(algorithm, spoilt, steps=20, seed=0, out=tmp_path, metrics=Rows(tmp_path / "m"), checkpoint_every=5)
    told = json.loads((tmp_path / "stopped" / "stopped.json").read_text())
    batch = load_file(tmp_path / "stopped" / "batch.safetensors")
    assert told["step"] == 8 and batch["features_BGD"].isnan().any()
    assert load_state(tmp_path / "stopped" / "state.safetensors")["step"] == 8
    assert load_state(checkpoints(tmp_path)[-1])["step"] == 5, "the last sound state is there to go back to"


def test_divergence_stops_the_run_with_evidence(tmp_path: Path) -> None:
    def alarmed(done: int, batch: ChunkBatch) -> Mapping[str, float]:
        raise DivergenceError("q/policy is 7, but returns lie in 0..1", {"q/policy": 7.0})

    with pytest.raises(DivergenceError, match="q/policy is 7"):
        run("iql", tmp_path, 20, inspect=alarmed)
    assert json.loads((tmp_path / "stopped" / "stopped.json").read_text())["step"] == 5
    state = load_state(tmp_path / "stopped" / "state.safetensors")["algorithm"]
    algorithm = make_algorithm("iql", PROBLEM, SMALL["iql"])
    algorithm.load_state_dict(state)
    assert algorithm.steps == 5 and np.isfinite(algorithm.update(next(batches(0)))["critic_loss"])
