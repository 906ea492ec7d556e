"""Results to one HTML page that needs nothing else: no network, films and pictures inside.

Special: the headline carries its interval and its number of episodes, failures are shown beside successes, and what the
number depends on (versions, commit, renderer, protocol) stands on the same page.
"""

import base64
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vla.core.errors import MissingAssetError
from vla.rollout.charts import curves, interval_row, outcome_strip, percent, stacked_bar
from vla.rollout.evaluate import read_results
from vla.rollout.report_style import CSS, SCRIPT
from vla.rollout.video import film_name


def write_report(
    out: Path, results: Sequence[Path], *, training: Path | None = None, title: str = "Evaluation", summary: str = ""
) -> None:
    """Writes the page.

    Args:
        out: the HTML file.
        results: result folders or `results.json` files; the first is what the page is about, the others are compared.
        training: a run directory or a metrics.jsonl, for the loss curve.
        title: of the page.
        summary: one sentence under the title.

    Raises:
        MissingAssetError: a folder without results.
        CorruptFileError: a file that is not what it claims to be.
    """
    if not results:
        raise MissingAssetError("results: none given; name the folder of an evaluation")
    paths = [path / "results.json" if path.is_dir() else path for path in results]
    contents = [read_results(path) for path in paths]
    main = contents[0]
    sections = [
        _headline(main),
        _errors(main),
        _comparison(contents, paths) if len(contents) > 1 else "",
        _tasks(main),
        _films(main["rows"], paths[0].parent / "videos"),
        _training(training) if training else "",
        _timing(main["timing"], len(main["rows"])),
        _settings(main["provenance"], paths[0].parent / "replays.json"),
    ]
    lead = f'<p class="soft">{escape(summary)}</p>' if summary else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main><header><h1>{escape(title)}</h1>{lead}"
        f"</header>{''.join(sections)}</main><script>{SCRIPT}</script></body></html>"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text(page)
    partial.replace(out)


def _section(heading: str, body: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{escape(heading)}</h2>{body}</section>' if body else ""


def _headline(main: Mapping[str, Any]) -> str:
    total, protocol = main["total"], main["provenance"].get("protocol", {})
    states = {"heldout": "initial states that training never saw", "train": "training's own initial states"}
    where = states.get(protocol.get("init_states", ""), "all initial states")
    number = percent(total["success"]).removesuffix(" %")
    stopping = main.get("stopping")
    level = f"{1 - (stopping['alpha'] if stopping else 0.05):.0%}".replace("%", " %")
    kind = "anytime-valid: it was stopped early" if stopping else "Wilson"
    return (
        f'<section class="headline"><div class="number">{number}<span>%</span></div><div>'
        f"<p><b>{total['successes']} of {total['episodes']} episodes succeeded</b>, "
        f"on {len(main['per_task'])} {'task' if len(main['per_task']) == 1 else 'tasks'}, from {where}.</p>"
        f'<p class="soft small">With {level} confidence the true rate lies between {percent(total["low"])} and '
        f"{percent(total['high'])} ({kind}).</p></div></section>"
    )


def _errors(main: Mapping[str, Any]) -> str:
    lines = [f"<p>{escape(row['error'])}</p>" for row in main["rows"] if row["error"]]
    heading = f"{len(lines)} episodes ended in an error and count as failures"
    more = f'<p class="soft">and {len(lines) - 10} more</p>' if len(lines) > 10 else ""
    return _section(heading, "".join(lines[:10]) + more, "errors small") if lines else ""


def _comparison(contents: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> str:
    rows = []
    for number, (content, path) in enumerate(zip(contents, paths, strict=True)):
        name = content["provenance"].get("policy", {}).get("name") or path.parent.name
        rows.append(interval_row(str(name), content["total"], "main" if number == 0 else "other"))
    alike = {frozenset((row["task"], row["init_state"], row["seed"]) for row in each["rows"]) for each in contents}
    note = "All played the same episodes." if len(alike) == 1 else "They played different episodes."
    return _section("Beside other policies", "".join(rows) + f'<p class="soft small">{note}</p>')


def _tasks(main: Mapping[str, Any]) -> str:
    bars = []
    for task, score in main["per_task"].items():
        strip = outcome_strip([row for row in main["rows"] if row["task"] == task])
        bars.append(interval_row(task.replace("_", " "), score, below=strip))
    key = (
        '<p class="soft small" style="margin:10px 0 0">Whisker: 95 % interval. '
        "Squares: one for each episode, hollow where it failed.</p>"
    )
    return _section("Tasks", "".join(bars) + key)


def _films(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    groups = []
    for heading, success in (("Failures", False), ("Successes", True)):
        figures = []
        for row in rows:
            path = folder / film_name(row["task"], row["init_state"], row["seed"], row["success"])
            if row["success"] is success and path.exists():
                figures.append(_film(row, path))
        if figures:
            groups.append(f'<h3>{heading}</h3><div class="films">{"".join(figures)}</div>')
    return _section("Films", "".join(groups))


def _film(row: Mapping[str, Any], path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    kind = "success" if row["success"] else "failure"
    return (
        f'<figure><video autoplay muted loop playsinline preload="auto" src="data:video/mp4;base64,{data}"></video>'
        f'<figcaption><span class="tag {kind}">{kind}</span> {escape(row["task"].replace("_", " "))}<br>'
        f'<span class="soft">init state {row["init_state"]} · {row["steps"]} steps</span></figcaption></figure>'
    )


def _training(path: Path) -> str:
    """The loss curve of a run; whatever follows a line that a kill cut off is left out."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.exists():
        raise MissingAssetError(f"training: no metrics at {path}")
    rows: list[Mapping[str, float]] = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    loss, held_out = ([(row["step"], row[name]) for row in rows if name in row] for name in ("loss", "val_loss"))
    chart = curves(loss, held_out)
    key = '<span class="key small"><i style="background:var(--p1)"></i>training loss</span>'
    if held_out:
        key += '<span class="key small"><i style="background:var(--p3)"></i>held-out loss</span>'
    return _section("Training", chart and f'{chart}<div>{key}<span class="soft small">against steps</span></div>')


def _timing(timing: Mapping[str, Any], episodes: int) -> str:
    names = {"physics_s": "physics", "render_s": "rendering", "policy_s": "policy", "waiting_s": "waiting"}
    parts = {name: (timing[key], _seconds(timing[key] / episodes)) for key, name in names.items()}
    note = (
        f'<p class="soft small" style="margin:10px 0 0">Mean of {episodes} episodes, which ran side by side: '
        f"{_seconds(timing['wall_s'] / episodes)} and {timing['steps'] / episodes:.0f} steps. "
        "Waiting is for a core, a pipe or the others of the batch.</p>"
    )
    return _section("Where the time went", stacked_bar(parts) + note)


def _seconds(time_s: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(time_s))) if time_s > 0 else 0
    return f"{time_s:.{min(digits, 4)}f} s"


def _settings(provenance: Mapping[str, Any], replays: Path) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _flat(provenance) if value != "–"
    ]
    if replays.exists():
        outcome = json.loads(replays.read_text())
        same = f"{outcome['rows'] - len(outcome['differing'])} of {outcome['rows']}"
        rows.append(f"<tr><td>replays</td><td>{same} filmed episodes came out exactly as counted</td></tr>")
    return _section("Settings", f"<table>{''.join(rows)}</table>")


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """(dotted name, text) of every leaf."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "–" if value is None else json.dumps(value) if isinstance(value, bool | list) else str(value)
