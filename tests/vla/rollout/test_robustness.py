"""Success against severity: counts by hand, a page whose points lie where they should, and the script end to end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import evaluate, robustness
from scripts.entry import compose
from vla.core.errors import GrasplineError, UnknownNameError
from vla.rollout.evaluate import wilson
from vla.rollout.robustness import Cell, severity_chart, summarise_cells, write_page


def results(*successes: bool) -> dict[str, Any]:
    """Of one task, initial states counted from 0."""
    rows = [{"task": "t", "init_state": i, "seed": 7, "success": success} for i, success in enumerate(successes)]
    low, high = wilson(sum(successes), len(successes))
    total = {"successes": sum(successes), "episodes": len(rows), "success": sum(successes) / len(rows)}
    return {"total": {**total, "low": low, "high": high}, "rows": rows, "provenance": {"policy": {"name": "<p>"}}}


PLAIN = results(True, True, True, False)


def cell(severity: float, *successes: bool) -> Cell:
    return Cell(kind="camera", severity=severity, folder=f"camera-{severity:g}", results=results(*successes))


def test_rows_lost_and_won_are_counted_by_row():
    summary = summarise_cells(PLAIN, [cell(0.5, False, False, True, True), cell(1, False, False, False, False)], {})
    points = summary["kinds"]["camera"]["points"]
    assert [(point["severity"], point["lost"], point["won"]) for point in points] == [(0.5, 2, 1), (1, 3, 0)]
    assert [point["success"] for point in points] == [0.5, 0.0]
    assert summary["plain"]["success"] == 0.75


def test_other_rows_do_not_compare():
    with pytest.raises(GrasplineError, match="camera-1 played other episodes"):
        summarise_cells(PLAIN, [cell(1, True, True, True)], {})


def test_points_of_the_chart_lie_where_the_numbers_say():
    summary = summarise_cells(PLAIN, [cell(0.5, False, False, True, True)], {})
    svg = severity_chart(summary["plain"], summary["kinds"]["camera"]["points"])
    ticks = {text: float(y) - 4 for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">(\d+)<', svg)}
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', svg)]
    share = [(ticks["0"] - y) / (ticks["0"] - ticks["100"]) for _, y in dots]
    assert share == pytest.approx([0.75, 0.5], abs=0.005)
    left, right = (float(re.findall(rf'x="([\d.]+)" y="\d+" text-anchor="middle">{n}<', svg)[0]) for n in (0, 1))
    assert [(x - left) / (right - left) for x, _ in dots] == pytest.approx([0, 0.5], abs=0.005)


def test_the_page_escapes_and_says_what_was_not_played(tmp_path: Path):
    failed = Cell(kind="layout", severity=1.0, folder="layout-1", results=None, error="no room <here>")
    spread = {"t": {"official": {"soup": (0.4, 0.1)}, "wide": {"soup": (31.0, 44.0)}}}
    summary = summarise_cells(PLAIN, [cell(1, True, True, True, True), failed], {"camera": "moves"}, spread)
    write_page(tmp_path / "page.html", summary)
    page = (tmp_path / "page.html").read_text()
    for text in (
        "&lt;p&gt;",
        "not played at 1: no room &lt;here&gt;",
        "0.4 × 0.1",
        "31.0 × 44.0",
        "0 episodes lost, 1 won",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")


def config(out: Path, *overrides: str):
    small = ["env=fake", "episodes=6", "workers=0", "batch=2", f"out={out}", "severities=[0.5,1]"]
    return compose("robustness", [*small, *overrides])


def test_the_script_plays_every_cell_once_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("software", "hardware"):  # a commit between the two runs would make them two evaluations
        monkeypatch.setattr(evaluate, name, dict)
    asked = config(tmp_path, "kinds=[noise,language_blind]")
    robustness.main(asked)
    summary = json.loads((tmp_path / "robustness.json").read_text())
    assert list(summary["kinds"]) == ["noise", "language_blind"]
    assert [point["severity"] for point in summary["kinds"]["noise"]["points"]] == [0.5, 1.0]
    # the expert reads the truth, which neither noise nor silence touches
    assert summary["plain"]["success"] == 1.0
    assert all(point["success"] == 1.0 for kind in summary["kinds"].values() for point in kind["points"])
    provenance = json.loads((tmp_path / "noise-0.5" / "results.json").read_text())["provenance"]
    assert (provenance["env"]["kind"], provenance["env"]["severity"]) == ("noise", 0.5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/rows.jsonl")}
    assert len(before) == 5
    robustness.main(asked)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "6 of    6" in capsys.readouterr().out


def test_mistakes_are_found_before_anything_is_played(tmp_path: Path):
    with pytest.raises(UnknownNameError, match="placement"):
        robustness.main(config(tmp_path / "a", "kinds=[placemnt]"))
    with pytest.raises(GrasplineError, match="severities"):
        robustness.main(config(tmp_path / "b", "kinds=[noise]", "severities=[0,1]"))
    with pytest.raises(GrasplineError, match="needs a suite in MuJoCo"):
        robustness.main(config(tmp_path / "c"))
    assert not list(tmp_path.iterdir())
