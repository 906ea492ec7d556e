"""Success against the size of a perturbation: evaluations of the same rows, put side by side in one JSON and one page.

Special: every cell played the same (task, initial state, seed) rows as the plain env did, so besides each rate with its
interval the page says how many rows were lost and how many were won.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError
from vla.rollout.charts import interval_row, percent
from vla.rollout.report_style import CSS

_KEYS = {"plain", "kinds", "provenance"}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 300, 170, 40, 14, 12, 26


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One evaluation under a perturbation: `results` is the content of its results.json, or None with an `error`."""

    kind: str
    severity: float
    folder: str
    results: Mapping[str, Any] | None
    error: str | None = None


def summarise_cells(
    plain: Mapping[str, Any],
    cells: Sequence[Cell],
    about: Mapping[str, str],
    spread_cm: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of robustness.json.

    Args:
        plain: results.json of the env without perturbation.
        cells: the evaluations, in the order in which they are shown.
        about: {kind: one line on what it does}.
        spread_cm: {task: {"official" | "wide": {object: (x, y)}}}, how far apart the starts of an object lie [cm].

    Returns:
        plain: a score; kinds: {kind: {about, points: [score with severity, lost, won, folder], failed: [...]}};
        spread_cm; provenance: that of `plain`. `lost`: rows that succeed plainly and fail here; `won`: the opposite.

    Raises:
        GrasplineError: a cell that played other rows than `plain`.
    """
    before = _outcomes(plain)
    kinds: dict[str, dict[str, Any]] = {}
    for cell in cells:
        entry = kinds.setdefault(cell.kind, {"about": about.get(cell.kind, ""), "points": [], "failed": []})
        if cell.results is None:
            entry["failed"].append({"severity": cell.severity, "folder": cell.folder, "error": cell.error})
            continue
        after = _outcomes(cell.results)
        if after.keys() != before.keys():
            raise GrasplineError(f"{cell.folder} played other episodes than the plain evaluation; they do not compare")
        entry["points"].append(
            {
                "severity": cell.severity,
                **cell.results["total"],
                "lost": sum(before[row] and not after[row] for row in before),
                "won": sum(after[row] and not before[row] for row in before),
                "folder": cell.folder,
            }
        )
    return {
        "plain": dict(plain["total"]),
        "kinds": kinds,
        "spread_cm": {task: dict(each) for task, each in (spread_cm or {}).items()},
        "provenance": plain["provenance"],
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """The robustness.json of a folder.

    Raises:
        MissingAssetError: there is none.
        CorruptFileError: it is not what it claims to be.
    """
    path = folder / "robustness.json" if folder.is_dir() else folder
    if not path.exists():
        raise MissingAssetError(f"no robustness.json at {path}; run `python -m scripts.robustness out={folder}` first")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptFileError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise CorruptFileError(f"{path}: not a summary of perturbations, expected the fields {sorted(_KEYS)}")
    return content


def write_page(out: Path, summary: Mapping[str, Any], title: str = "Robustness") -> None:
    """Writes a summary as one HTML page that needs nothing else."""
    policy = summary["provenance"].get("policy", {}).get("name", "")
    sections = [
        _section("Without perturbation", interval_row(str(policy), summary["plain"], "main")),
        _section("Success against severity", severity_charts(summary)),
        _section("Every number", "".join(_rows(kind, entry) for kind, entry in summary["kinds"].items())),
        _section("How far apart the starts lie", _spread(summary["spread_cm"])),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><header>"
        f"<h1>{escape(title)}</h1></header>{''.join(sections)}</main></body></html>"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text(page)
    partial.replace(out)


def _outcomes(results: Mapping[str, Any]) -> dict[tuple[str, int, int], bool]:
    return {(row["task"], row["init_state"], row["seed"]): bool(row["success"]) for row in results["rows"]}


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def severity_charts(summary: Mapping[str, Any]) -> str:
    """A chart for each kind of perturbation, as HTML; empty where none was played."""
    figures = []
    for kind, entry in summary["kinds"].items():
        failed = "".join(
            f'<p class="small">not played at {each["severity"]:g}: {escape(str(each["error"]))}</p>'
            for each in entry["failed"]
        )
        figures.append(
            f"<div><h3>{escape(kind.replace('_', ' '))}</h3>{severity_chart(summary['plain'], entry['points'])}"
            f'<p class="soft small">{escape(entry["about"])}</p>{failed}</div>'
        )
    key = (
        '<p class="soft small" style="margin:14px 0 0">Severity across, success up; whisker: 95 % interval; '
        "dashed: without perturbation. The same episodes everywhere.</p>"
    )
    return f'<div class="small-charts">{"".join(figures)}</div>{key}' if figures else ""


def severity_chart(plain: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of success (0 to 100 %) against severity (0 to 1), the plain score at severity 0."""

    def at(severity: float, success: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * severity
        return round(across, 1), round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - success), 1)

    marks = []
    for share in (0.0, 0.5, 1.0):
        y = at(0, share)[1]
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{100 * share:.0f}</text>')
        marks.append(f'<text x="{at(share, 0)[0]}" y="{_HEIGHT - 8}" text-anchor="middle">{share:g}</text>')
    level = at(0, plain["success"])[1]
    marks.append(f'<line class="plain" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level}" y2="{level}"/>')
    every = sorted([{"severity": 0.0, **plain}, *points], key=lambda point: point["severity"])
    line = " ".join("{},{}".format(*at(point["severity"], point["success"])) for point in every)
    marks.append(f'<polyline class="raw" points="{line}"/>')
    for point in every:
        x, y = at(point["severity"], point["success"])
        low, high = (at(0, point[key])[1] for key in ("low", "high"))
        marks.append(f'<line class="whisker" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
        marks.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"><title>{percent(point["success"])}</title></circle>')
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="success against severity">'
        f"{''.join(marks)}</svg>"
    )


def _rows(kind: str, entry: Mapping[str, Any]) -> str:
    bars = [
        interval_row(
            f"{kind.replace('_', ' ')} {point['severity']:g}",
            point,
            below=f'<div class="small soft">{point["lost"]} episodes lost, {point["won"]} won</div>',
        )
        for point in entry["points"]
    ]
    return "".join(bars)


def _spread(spread_cm: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of each task's objects: the extent of their starts in x and y, official and placed widely."""
    lines = []
    for task, kinds in spread_cm.items():
        for name in kinds["official"]:
            cells = "".join(
                f'<td class="extent">{kinds[key][name][0]:.1f} × {kinds[key][name][1]:.1f}</td>'
                if name in kinds.get(key, {})
                else '<td class="extent">–</td>'
                for key in ("official", "wide")
            )
            lines.append(f"<tr><td>{escape(task.replace('_', ' '))}</td><td>{escape(name)}</td>{cells}</tr>")
    if not lines:
        return ""
    head = "<tr><td>task</td><td>object</td><td>official [cm]</td><td>wide [cm]</td></tr>"
    note = (
        '<p class="soft small">Extent in x and y over the initial states that were played. Where it is small, '
        "a policy can score by remembering places. The object that the goal is about comes first.</p>"
    )
    return f"{note}<table>{head}{''.join(lines)}</table>"
