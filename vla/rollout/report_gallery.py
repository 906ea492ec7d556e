"""Strips of frames for the report: episodes that failed, and pairs of episodes that ended differently.

Special: where two policies part is measured and not guessed. Both are played again, their traces hold the robot's state
at every step, and the page says when those first differ at all and when the difference can be seen.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vla.rollout.video import Trace, film_name, read_frames, read_trace

type Row = Mapping[str, Any]

COLUMNS = 6  # frames of a strip
APART_M = 0.02  # a difference that can be seen, where the state holds lengths,
APART_SHARE = 0.05  # or else as a share of how far an axis moved in either episode
_JPEG_QUALITY = 80


@dataclass
class Room:
    """Bytes of pictures and films that still fit into the page."""

    left: int

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes of a file, written as base64; if so it is taken."""
        encoded = -(-size // 3) * 4
        fits = encoded <= self.left
        self.left -= encoded if fits else 0
        return fits


@dataclass(frozen=True, kw_only=True)
class Parting:
    """When two episodes of one row part, in steps; None: not before the shorter one ended.

    any   the robot's states differ in any bit
    seen  they differ by what `tolerance` says
    """

    any: int | None
    seen: int | None
    tolerance: str


def in_turn(rows: Iterable[Row]) -> list[Row]:
    """Rows without error, one of each task after the other: any beginning of them is spread over the tasks."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        if row["error"] is None:
            by_task.setdefault(row["task"], []).append(row)
    return [row for row in chain.from_iterable(zip_longest(*by_task.values())) if row is not None]


def failures_of(rows: Sequence[Row], number: int) -> list[Row]:
    """Up to `number` failed rows, spread over the tasks."""
    return in_turn(row for row in rows if not row["success"])[:number]


def unlike_pairs(rows: Sequence[Row], others: Sequence[Row], number: int) -> list[tuple[Row, Row]]:
    """Up to `number` pairs of rows of which one succeeded and the other failed, spread over the tasks."""
    theirs = {_key(row): row for row in others if row["error"] is None}
    unlike = [row for row in rows if _key(row) in theirs and row["success"] != theirs[_key(row)]["success"]]
    return [(row, theirs[_key(row)]) for row in in_turn(unlike)[:number]]


def rows_to_film(rows: Sequence[Row], others: Sequence[Row] | None, number: int) -> tuple[list[Row], list[Row]]:
    """The rows whose films a gallery of `number` strips needs: of the page's own results, and of the others."""
    pairs = [] if others is None else unlike_pairs(rows, others, number)
    wanted = {_key(row): row for row in [*failures_of(rows, number), *(mine for mine, _ in pairs)]}
    return list(wanted.values()), [theirs for _, theirs in pairs]


def film_of(row: Row, folder: Path) -> Path | None:
    """The film of a row in the folder of its results; None without film or trace, or if they are of another course."""
    film = folder / "videos" / film_name(row["task"], row["init_state"], row["seed"], row["success"])
    if not (film.exists() and film.with_suffix(".npz").exists()):
        return None
    return film if read_trace(film).steps == row["steps"] else None


def parting(a: Trace, b: Trace) -> Parting:
    """Compares the states of two episodes of the same row step by step, as far as both go."""
    common = min(len(a.states_TS), len(b.states_TS))
    differences_TS = np.abs(a.states_TS[:common] - b.states_TS[:common])
    lengths_S = a.units_S == "m"
    if lengths_S.any():
        limit_S = np.where(lengths_S, APART_M, np.inf)
        words = f"{100 * APART_M:g} cm"
    else:
        limit_S = APART_SHARE * np.ptp(np.concatenate([a.states_TS, b.states_TS]), axis=0)
        words = f"{100 * APART_SHARE:g} % of the range of motion"
    return Parting(
        any=_first(np.greater(differences_TS, 0)),
        seen=_first(np.greater(differences_TS, limit_S)),
        tolerance=words,
    )


def failures_gallery(rows: Sequence[Row], folder: Path, room: Room) -> str:
    """Strips of failed rows; those that have no film are counted."""
    films = [(row, film_of(row, folder)) for row in rows]
    figures = (failure_strip(row, film, room) for row, film in films if film is not None)
    return _strips(figures, sum(film is None for _, film in films))


def pairs_gallery(pairs: Sequence[tuple[Row, Row]], folders: Sequence[Path], names: Sequence[str], room: Room) -> str:
    """Strips of pairs of rows, of which one lies in each folder; pairs with a film missing are counted."""
    films = [[film_of(row, folder) for row, folder in zip(pair, folders, strict=True)] for pair in pairs]
    whole = [
        (pair, [film for film in two if film is not None])
        for pair, two in zip(pairs, films, strict=True)
        if None not in two
    ]
    figures = (pair_strip(pair, two, names, room) for pair, two in whole)
    return _strips(figures, len(pairs) - len(whole))


def failure_strip(row: Row, film: Path, room: Room) -> str | None:
    """A failed episode from start to end as HTML; None if the page has no room for it."""
    trace = read_trace(film)
    frames = _frames(film, trace, np.linspace(0, trace.steps, COLUMNS), room)
    if frames is None:
        return None
    words = f"{_place(row)} · {_ending(row, trace)}"
    return f'<figure class="strip"><figcaption>{words}</figcaption><div class="frames">{frames}</div></figure>'


def pair_strip(rows: Sequence[Row], films: Sequence[Path], names: Sequence[str], room: Room) -> str | None:
    """Two episodes of the same row, one above the other at the same steps; None if the page has no room for them."""
    traces = [read_trace(film) for film in films]
    apart = parting(*traces)
    last = max(trace.steps for trace in traces)
    if apart.seen is None:
        steps, marked = np.linspace(0, last, COLUMNS), None
    else:
        steps, marked = np.array([0, *np.linspace(apart.seen, last, COLUMNS - 1)]), 1
    lines = []
    for row, film, trace, name in zip(rows, films, traces, names, strict=True):
        frames = _frames(film, trace, steps, room, marked)
        if frames is None:
            return None
        heading = f'<p class="small"><b>{escape(name)}</b> {_ending(row, trace)}</p>'
        lines.append(f'{heading}<div class="frames">{frames}</div>')
    words = f"{_place(rows[0])}<br><span>{_parting_words(apart, traces[0].control_hz)}</span>"
    return f'<figure class="strip"><figcaption>{words}</figcaption>{"".join(lines)}</figure>'


def _strips(figures: Iterable[str | None], missing: int) -> str:
    """The strips that exist, with what was left out; `missing` have no film."""
    shown = list(figures)
    there = [figure for figure in shown if figure is not None]
    notes = []
    if len(there) < len(shown):
        notes.append(f"{len(shown) - len(there)} more did not fit into the page.")
    if missing:
        notes.append(f"{missing} more cannot be shown: no film of exactly that episode.")
    return "".join(there) + (f'<p class="soft small">{" ".join(notes)}</p>' if notes else "")


def _key(row: Row) -> tuple[str, int, int]:
    return row["task"], row["init_state"], row["seed"]


def _first(found_TS: np.ndarray) -> int | None:
    """The first step at which any axis has it."""
    steps, _ = np.nonzero(found_TS)
    return int(steps[0]) if len(steps) else None


def _place(row: Row) -> str:
    task = escape(row["task"].replace("_", " "))
    return f'<b>{task}</b> <span class="soft">init state {row["init_state"]} · seed {row["seed"]}</span>'


def _ending(row: Row, trace: Trace) -> str:
    kind = "success" if row["success"] else "failure"
    how = "done" if row["success"] else "ended without success" if row["terminated"] else "time was up"
    when = f"after {trace.steps} steps ({trace.steps / trace.control_hz:.2f} s)"
    return f'<span class="tag {kind}">{kind}</span> {how} {when}'


def _parting_words(apart: Parting, control_hz: float) -> str:
    if apart.any is None:
        return "The robot's states are the same, bit for bit, up to the end of the shorter episode."

    def when(step: int) -> str:
        return f"step {step} ({step / control_hz:.2f} s)"

    first = f"The robot's states first differ at {when(apart.any)}"
    if apart.seen is None:
        return f"{first}, and stay within {apart.tolerance} of each other up to the end of the shorter episode."
    return f"{first}, and by more than {apart.tolerance} first at {when(apart.seen)}, in the second column."


def _frames(
    film: Path, trace: Trace, steps: Sequence[float] | np.ndarray, room: Room, marked: int | None = None
) -> str | None:
    """The film's first picture at or after each step, with its time; the last one again, paler, where it has ended."""
    numbers = np.searchsorted(trace.steps_F, np.minimum(np.floor(steps), trace.steps)).tolist()
    files = {number: _jpeg(picture) for number, picture in read_frames(film, numbers).items()}
    if not room.take(sum(len(files[number]) for number in numbers)):
        return None
    cells = []
    for column, number in enumerate(numbers):
        step = int(trace.steps_F[number])
        kind = "marked" if column == marked else "over" if number in numbers[:column] else ""
        time = f"{'end, ' if step == trace.steps else ''}{step / trace.control_hz:.2f} s"
        data = base64.b64encode(files[number]).decode()
        cells.append(
            f'<span class="{kind}"><img loading="lazy" decoding="async" alt="" src="data:image/jpeg;base64,{data}">'
            f"<i>{time}</i></span>"
        )
    return "".join(cells)


def _jpeg(picture: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    done, file = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    assert done, "the JPEG encoder takes any (h, w, 3) uint8"
    return file.tobytes()
