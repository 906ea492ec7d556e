"""The page of methods is what its rows, results and recipes say, and every place on it is there."""

import json
from pathlib import Path

import pytest

from agents.page import make_page, read_results, recipes_of, summary_of

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "docs" / "agents_rows.json"
RESULTS = ROOT / "docs" / "agents_results.json"


def test_the_page_is_up_to_date() -> None:
    made = make_page(json.loads(ROWS.read_text()), read_results(RESULTS), recipes_of(ROWS))
    assert (ROOT / "docs" / "agents.md").read_text() == made, "run python -m scripts.agents verb=page"


def test_all_rows_once_and_every_part_is_there() -> None:
    rows = json.loads(ROWS.read_text())
    assert [row["number"] for row in rows] == list(range(1, 111))
    assert set(recipes_of(ROWS)) <= set(range(1, 111))
    missing = [part for row in rows for part in row.get("parts", []) if not (ROOT / part).is_file()]
    assert not missing


def test_results_are_of_recipes_that_are_there_and_of_different_seeds() -> None:
    found = [(row["recipe"], row["seed"]) for row in read_results(RESULTS)]
    assert len(found) == len(set(found))
    assert {name for name, _ in found} <= set(recipes_of(ROWS).values())


def row(seed: int, score: float) -> dict:
    told = {"baseline": "old", "method": "new", "measure": "share", "budget": "ten steps", "cpu_s": 2.0}
    return {"recipe": "058_raft", "seed": seed, "scores": {"old": 0.1 * seed, "new": score}, **told}


@pytest.mark.parametrize(
    ("results", "state", "verdict"),
    [
        ([], "recipe", ""),
        ([row(0, 0.5), row(1, 0.6)], "recipe", ""),
        ([row(0, 0.5), row(1, 0.6), row(2, 0.71)], "run", "reproduced"),
    ],
)
def test_states(results: list[dict], state: str, verdict: str) -> None:
    rows = [
        {"number": 58, "title": "RAFT", "kind": "algorithm"},
        {"number": 59, "title": "Other", "kind": "system", "parts": ["x.py"]},
        {"number": 60, "title": "None", "kind": "benchmark"},
    ]
    page = make_page(rows, results, {58: "058_raft"})
    assert f"| 58 | RAFT | algorithm | {state} | `configs/recipe/058_raft.yaml` | {verdict} |" in page
    assert "| 59 | Other | system | part | `x.py` |  |" in page
    assert "| 60 | None | benchmark | not built |  |  |" in page
    assert (summary_of("058_raft", results) is None) == (verdict == "")
