"""`python -m scripts.compare` as a user runs it, on two evaluations of the fake suite."""

import json
from pathlib import Path

import pytest

from scripts import compare, evaluate
from scripts.entry import entry


def run(script: str, *overrides: str) -> str | None:
    """Runs a script in this process; None, or the line with which it fails."""
    try:
        entry(script, {"evaluate": evaluate.main, "compare": compare.main}[script], list(overrides))
    except SystemExit as stop:
        return str(stop.code)
    return None


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    for name, episodes in (("expert", 12), ("zero", 9)):
        common = ("env=fake", "workers=0", "videos=0", f"policy={name}", f"episodes={episodes}")
        assert run("evaluate", *common, f"out={folder / name}") is None
    return folder


def test_two_policies(played: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "compare.json"
    assert run("compare", f"a={played / 'zero'}", f"b={played / 'expert' / 'results.json'}", f"out={out}") is None
    told = json.loads(out.read_text())
    assert told["pairs"] == 9 and told["b"]["successes"] == 9 and told["difference"] > 0
    printed = capsys.readouterr().out
    for words in (
        "b - a: +",
        "McNemar, exact: p = ",
        "smallest difference that 9 pairs show",
        "9 of a's 9 and of b's 12",
    ):
        assert words in printed
    assert printed.count("reach_") == 3, "a line for each task"


def test_a_mistake_is_one_line(played: Path, tmp_path: Path) -> None:
    zero, out = f"a={played / 'zero'}", f"out={tmp_path / 'compare.json'}"
    assert "b=: name the folder" in (run("compare", zero, out) or "")
    assert "no results at" in (run("compare", zero, f"b={tmp_path}", out) or "")
    assert "no results at" in (run("compare", zero, f"b={tmp_path / 'nowhere'}", out) or "")
    (tmp_path / "results.json").write_text("{}")
    assert "not the results of an evaluation" in (run("compare", zero, f"b={tmp_path}", out) or "")
    other = json.loads((played / "expert" / "results.json").read_text())
    other["provenance"]["software"]["mujoco"] = "3.9.0"
    (tmp_path / "results.json").write_text(json.dumps(other))
    line = run("compare", zero, f"b={tmp_path}", out) or ""
    assert "not comparable: software.mujoco" in line and "\n" not in line and not (tmp_path / "compare.json").exists()
    assert run("compare", zero, f"b={tmp_path}", out, "allow_differences=true") is None
