"""Results to one HTML page that needs nothing else: no network, films and pictures inside.

Special: the headline carries its interval and its number of episodes, failures are shown beside successes, and what the
number depends on (versions, commit, renderer, protocol) stands on the same page. Films and pictures have a limit in
bytes, and the page says what it left out.
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
from vla.rollout.compare import compare
from vla.rollout.evaluate import read_results
from vla.rollout.report_gallery import Room, failures_gallery, failures_of, in_turn, pairs_gallery, unlike_pairs
from vla.rollout.report_pairs import pairs_table
from vla.rollout.report_style import CSS, SCRIPT
from vla.rollout.robustness import read_summary, severity_charts
from vla.rollout.video import film_name


def write_report(
    out: Path,
    results: Sequence[Path],
    *,
    against: Path | None = None,
    robustness: Path | None = None,
    training: Path | None = None,
    gallery: int = 6,
    media_mb: float = 24.0,
    allow_differences: bool = False,
    title: str = "Evaluation",
    summary: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Writes the page.

    Args:
        out: the HTML file.
        results: result folders or `results.json` files; the first is what the page is about, the others are compared.
        against: results of the same episodes, to be compared pair by pair.
        robustness: folder of a `scripts.robustness`, for its charts.
        training: a run directory or a metrics.jsonl, for the loss curve.
        gallery: strips of failures, and of pairs that ended differently, at most; of those that have a film.
        media_mb: size of all pictures and films in the page [10^6 bytes], at most.
        allow_differences: compare `against` even where the episodes were played under other conditions.
        title: of the page.
        summary: one sentence under the title.
        notes: what to say about films that could not be made.

    Raises:
        MissingAssetError: a folder without results.
        CorruptFileError: a file that is not what it claims to be.
        GrasplineError: `against` is not comparable.
    """
    if not results:
        raise MissingAssetError("results: none given; name the folder of an evaluation")
    paths = [_file(path) for path in results]
    contents = [read_results(path) for path in paths]
    main, folder, room = contents[0], paths[0].parent, Room(int(media_mb * 1e6))
    sections = [
        _headline(main),
        _errors(main),
        _comparison(contents, paths) if len(contents) > 1 else "",
        _tasks(main),
        _failures(main["rows"], folder, gallery, room, notes),
        _pairs(main, folder, _file(against), gallery, room, allow_differences=allow_differences) if against else "",
        _robustness(read_summary(robustness), main["provenance"]) if robustness else "",
        _films(main["rows"], folder / "videos", room),
        _training(training) if training else "",
        _timing(main["timing"], len(main["rows"])),
        _settings(main["provenance"], folder / "replays.json"),
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


def _file(path: Path) -> Path:
    return path / "results.json" if path.is_dir() else path


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


def _failures(rows: Sequence[Mapping[str, Any]], folder: Path, number: int, room: Room, notes: Sequence[str]) -> str:
    chosen = failures_of(rows, number)
    failed = sum(not row["success"] and row["error"] is None for row in rows)
    said = "".join(f'<p class="soft small">{escape(note)}</p>' for note in notes)
    strips = failures_gallery(chosen, folder, room)
    lead = f'<p class="soft small">{len(chosen)} of {failed} failures, spread over the tasks, from start to end.</p>'
    return _section("How it failed", lead + strips + said if chosen else said)


def _pairs(
    main: Mapping[str, Any], folder: Path, against: Path, number: int, room: Room, *, allow_differences: bool
) -> str:
    """The paired comparison, then pairs of films; the page's own policy is compare's b."""
    other = read_results(against)
    outcome = compare(other, main, allow_differences=allow_differences)
    names = _names(main, folder, other, against.parent)
    pairs = unlike_pairs(main["rows"], other["rows"], number)
    strips = pairs_gallery(pairs, (folder, against.parent), names, room)
    unlike = outcome["only_a"] + outcome["only_b"]
    lead = f"<h3>Where they part: {len(pairs)} of {unlike} pairs that ended differently, both played again</h3>"
    return _section("Pair by pair", pairs_table(outcome, *names) + (lead + strips if pairs else ""))


def _names(main: Mapping[str, Any], folder: Path, other: Mapping[str, Any], others: Path) -> tuple[str, str]:
    """A short name for each of two policies: the last part of its path, or the folder's where that does not tell."""
    named = [str(each["provenance"].get("policy", {}).get("name") or "") for each in (main, other)]
    short = [name if "://" in name else Path(name).name for name in named]
    return (short[0], short[1]) if all(short) and short[0] != short[1] else (folder.name, others.name)


def _robustness(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The charts; what they are of is said where it is not what the page is about."""
    theirs = summary["provenance"]
    other = [key for key in ("policy", "env") if theirs.get(key) != provenance.get(key)]
    told = "; ".join(f"{key}: {', '.join(text for _, text in _flat(theirs.get(key)))}" for key in other)
    note = f'<p class="soft small">Note: not of what is evaluated above, but of {escape(told)}.</p>' if other else ""
    charts = severity_charts(summary)
    return _section("Success against severity of a perturbation", charts and note + charts)


def _films(rows: Sequence[Mapping[str, Any]], folder: Path, room: Room) -> str:
    paths = {
        number: folder / film_name(row["task"], row["init_state"], row["seed"], row["success"])
        for number, row in enumerate(rows)
        if row["error"] is None
    }
    there = {number: path for number, path in paths.items() if path.exists()}
    order = in_turn({**rows[number], "number": number} for number in there)
    shown = {row["number"] for row in order if room.take(there[row["number"]].stat().st_size)}
    groups = []
    for heading, success in (("Failures", False), ("Successes", True)):
        figures = [_film(rows[number], there[number]) for number in sorted(shown) if rows[number]["success"] is success]
        if figures:
            groups.append(f'<h3>{heading}</h3><div class="films">{"".join(figures)}</div>')
    left_out = [path for number, path in there.items() if number not in shown]
    if left_out:
        size_mb = sum(path.stat().st_size for path in left_out) / 1e6
        groups.append(
            f'<p class="soft small">{len(left_out)} of {len(there)} films ({size_mb:.1f} MB) are left out to keep the '
            f"page small; they lie in {escape(str(folder))}.</p>"
        )
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
