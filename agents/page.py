"""The page of published methods: every row with its state and, where it was run, the scores and a verdict.

Nothing on it is written by hand: rows come from one file, scores from another, and a test makes the page again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.train.effect import Effect, Summary, summarise

_HEAD = """# Published methods

Made by `python -m scripts.agents verb=page`; do not edit.

{total} methods. **run** ({run}): a recipe with results of at least three seeds. **recipe** ({recipe}): it runs, without
such results yet. **part** ({part}): the formula or mechanism is in the library and tested, not the experiment of the
method. **not built** ({none}): nothing here yet.

A verdict compares the method with its baseline, seed by seed, with a 95 % interval of Student's t: *reproduced* where
the whole interval is above zero, *opposite* where it is below, else *not reproduced at this scale*. The scale is that
of decoders with some 0.1 million parameters, or of a bandit; it says nothing of large models.

**Read the verdicts as first looks.** Settings were chosen on the same questions and seeds that are shown, and there
has been no second run on fresh ones. 15, 54, 68 and 70 were run anew with other settings after all three seeds of a
first try (68 was clearly negative there, at beta 0.1); 34, 99 and 104 after one or two seeds; 34 and 58 got two
seeds more. Baselines of 24 and 58 were changed to harder ones. Pretraining by steps leaves 0.07 to 0.87 of
accuracy, which is most of the intervals' width. 7, 18 and 85 train the same arms and differ in what is measured; in
85 masking does all of it and the weights of key tokens nothing; 18 is nearly certain by construction. 99 forgets
nearly everything in both arms. 55 has no entropy mask, 108 no token weights.
"""


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of the results file; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def write_page(page: Path, rows: Path, results: Path) -> None:
    """Writes the page."""
    page.write_text(make_page(json.loads(rows.read_text()), read_results(results), recipes_of(rows)))


def recipes_of(rows: Path) -> dict[int, str]:
    """Names of the recipe files by the number that they begin with; `rows` stands in docs/ beside configs/."""
    found = sorted((rows.resolve().parent.parent / "configs" / "recipe").glob("[0-9]*.yaml"))
    return {int(path.stem[:3]): path.stem for path in found}


def make_page(
    rows: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], recipes: Mapping[int, str]
) -> str:
    """The text of the page.

    Args:
        rows: number, title, kind and perhaps parts (paths) of each method.
        results: rows of `scripts.agents`.
        recipes: names by number.
    """
    summaries = {name: each for name in recipes.values() if (each := summary_of(name, results)) is not None}
    states = {row["number"]: _state(row, recipes, summaries) for row in rows}
    count = {state: sum(each == state for each in states.values()) for state in ("run", "recipe", "part", "not built")}
    head = _HEAD.format(
        total=len(rows), run=count["run"], recipe=count["recipe"], part=count["part"], none=count["not built"]
    )
    table = ["| # | method | kind | state | where | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        number = row["number"]
        name = recipes.get(number)
        places = [f"configs/recipe/{name}.yaml"] if name else row.get("parts", [])
        verdict = summaries[name].verdict if name in summaries else ""
        where = ", ".join(f"`{place}`" for place in places)
        table.append(f"| {number} | {row['title']} | {row['kind']} | {states[number]} | {where} | {verdict} |")
    return "\n".join([head, *table, "", "## Results", "", *_results(results, summaries), ""])


def summary_of(name: str, results: Sequence[Mapping[str, Any]]) -> Summary | None:
    """Of one recipe's rows; None below three seeds."""
    found = [_effect(row) for row in results if row["recipe"] == name]
    return summarise(found) if len(found) >= 3 else None


def _effect(row: Mapping[str, Any]) -> Effect:
    return Effect(**{key: row[key] for key in ("scores", "baseline", "method", "measure", "budget")})


def _state(row: Mapping[str, Any], recipes: Mapping[int, str], summaries: Mapping[str, Summary]) -> str:
    name = recipes.get(row["number"])
    if name:
        return "run" if name in summaries else "recipe"
    return "part" if row.get("parts") else "not built"


def _results(results: Sequence[Mapping[str, Any]], summaries: Mapping[str, Summary]) -> list[str]:
    lines = [
        "| recipe | measure | budget | arms (mean of seeds) | method minus baseline | seeds | CPU s a seed | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(summaries):
        one, mine = summaries[name], [row for row in results if row["recipe"] == name]
        first = mine[0]
        arms = ", ".join(f"{arm} {mean:.3f}" for arm, mean in one.means.items())
        told = f"{first['method']} - {first['baseline']}: {one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
        seconds = sum(row["cpu_s"] for row in mine) / len(mine)
        cells = [name, first["measure"], first["budget"], arms, told, str(one.seeds), f"{seconds:.0f}", one.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
