"""The whole chain as a user runs it, at toy size: calibrate, collect, train, serve, deploy; and all of it again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.robot_e2e import line, summarise

ROOT = Path(__file__).resolve().parents[2]


def row(init_state: int, success: bool, seconds: float) -> dict:
    counts = {"estops": 0, "faults": 0, "violations": 0, "chunks": 10, "ticks": 500, "filtered": 5, "starved_s": 0.0}
    told = {
        "verdicts": {"velocity": 5},
        "refused": {},
        "asked_ms": [20.0, 30.0],
        "ended": "done" if success else "time",
    }
    return {"init_state": init_state, "success": success, "seconds": seconds, **counts, **told}


def test_the_summary_counts() -> None:
    rows = [row(i, i < 8, 6.0 + 0.1 * i) for i in range(10)]
    seen = summarise(rows, {"successes": 4, "episodes": 4}, {"train": 3.0})
    assert seen["success"]["successes"] == 8
    assert (seen["success"]["low"], seen["success"]["high"]) == pytest.approx((0.490, 0.943), abs=2e-3)  # Wilson
    assert seen["cycle_s"]["mean"] == pytest.approx(6.35) and seen["cycle_s"]["low"] < 6.35 < seen["cycle_s"]["high"]
    assert seen["verdicts"] == {"velocity": 50} and seen["ended"] == {"done": 8, "time": 2}
    assert line(seen).startswith("success 8 of 10 (49%-94%), cycle 6.3 s") or "cycle 6.4 s" in line(seen)
    none = summarise([row(0, False, 9.0)], {"successes": 0, "episodes": 0}, {})
    assert none["cycle_s"] is None and "cycle none" in line(none)


@pytest.mark.slow
def test_the_chain_and_its_resumption(tmp_path: Path) -> None:
    words = [f"out={tmp_path}", "demonstrations=2", "image_size=32", "episodes=2", "seconds=1.5"]
    words += ["train.steps=4", "train.batch=4"]

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "scripts.robot_e2e", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = run()
    assert "calibrated" in told and "success " in told and "0 e-stops" in told
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["success"]["episodes"] == 2 and summary["expert_first_try"]["episodes"] == 2
    assert summary["estops"] == summary["faults"] == summary["violations"] == 0
    (tmp_path / "summary.json").unlink()
    again = run()
    assert "calibrated" not in again and "scripts.train" not in again
    assert json.loads((tmp_path / "summary.json").read_text())["rows"] == summary["rows"]
