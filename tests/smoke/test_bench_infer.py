"""`python -m scripts.bench_infer` at the smallest size, and the published way of computing beside ours."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.bench_infer import main, median_s, random_policy
from scripts.bench_reference import ReferenceWay
from scripts.entry import entry


def bench(*overrides: str) -> None:
    entry("bench_infer", main, ["size=twin", "repeats=1", "batch=2", "train_batch=2", *overrides])


def test_figures_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scripts.bench_infer.SIDE", {"cpu": 64})
    monkeypatch.setattr("scripts.bench_infer.COPIED", {"cpu": 2**16})
    bench("train=true", f"out={tmp_path / 'new' / 'bench.json'}")
    figures, told = json.loads((tmp_path / "new" / "bench.json").read_text()), capsys.readouterr().out
    assert figures["difference"] < 1e-5
    useful = sum(figures["flops"][part] for part in ("vision", "projector", "language", "head"))
    for name, row in figures["rows"].items():
        assert row["ms_per_chunk"] * row["chunks_per_s"] == pytest.approx(1e3)
        assert row["tflop_per_s"] == pytest.approx(1e-12 * useful * row["chunks_per_s"])
        roofline_ms = 1e3 * max(useful / figures["peak"], figures["weight_bytes"] / figures["bandwidth"] / row["rows"])
        assert row["roofline_ms"] == pytest.approx(roofline_ms)
        assert row["times_roofline"] == pytest.approx(row["ms_per_chunk"] / roofline_ms)
        assert name in told
    training = figures["training"]
    assert training["batch"] == 2 and math.isfinite(training["of_peak"]) and training["of_peak"] > 0
    assert training["samples_per_s"] == pytest.approx(2 * training["steps_per_s"])


@pytest.mark.parametrize("jpeg", [True, False])
def test_the_published_way_gives_the_same_actions(jpeg: bool) -> None:
    """Another order in memory, other positions, all blocks, another preparation of pictures: the same chunk."""
    policy = random_policy("twin", torch.device("cpu"), torch.float32, prompt=20, jpeg=jpeg).eval()
    published, rng = ReferenceWay(policy), np.random.default_rng(0)
    observations = [policy.spec.random(rng, text) for text in ("push", "pick up the mug")]
    ours = [chunk.actions_HA for chunk in policy.act(observations, [0, 1])]
    np.testing.assert_allclose([published.act(each) for each in observations], ours, atol=1e-5)
    assert np.abs(ours[0] - ours[1]).max() > 1e-5


def test_ways_take_turns() -> None:
    called: list[str] = []
    ways = {name: lambda name=name: called.append(name) for name in "ab"}
    assert set(median_s(ways, repeats=2, warm_up=1)) == {"a", "b"}
    assert called == ["a", "b"] * 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("size=7B", "Did you mean '7b'"),
        ("dtype=bfloat", "Did you mean 'bfloat16'"),
        ("device=gpu", "unknown device 'gpu'"),
        ("prompt=2", "prompt is 2, expected a whole number of at least 3"),
    ],
)
def test_refusals_are_one_line(override: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.bench_infer.device_limits", lambda *_: {"peak": 1.0, "bandwidth": 1.0})
    with pytest.raises(SystemExit) as stopped:
        bench(override)
    message = str(stopped.value.code)
    assert message.startswith("error: ") and told in message and "\n" not in message
