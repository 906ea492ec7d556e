"""A plan of episodes to a number that can be believed: every row on disk, intervals, provenance, resumable.

Special: `rows.jsonl` gets each row as it finishes; after a kill the same command plays only what is missing. A folder
belongs to one plan, policy and set of versions: anything else is refused by name.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError
from vla.rollout.runner import EpisodePlan, EpisodeResult, OnResult
from vla.rollout.sequential import StopWhen

type Run = Callable[[Sequence[EpisodePlan], OnResult], None]
type Identity = Mapping[str, Any]

_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal
_RESULT_FIELDS = {field.name for field in fields(EpisodeResult)}
_KEYS = {"total", "per_task", "rows", "provenance", "timing", "errors"}


def evaluate(
    run: Run,
    plan: Sequence[EpisodePlan],
    out: Path,
    identity: Identity,
    on_result: OnResult = lambda result: None,
    stop: StopWhen | None = None,
) -> dict[str, Any]:
    """Plays what is missing of the plan and writes `out/results.json`.

    Rows that ended in an error are played again on the next call: their outcome is a function of the row, so a second
    try cannot flatter the score.

    Args:
        run: plays rows, calling back with each result (`run_episodes` with all but these two bound).
        plan: every row; no two alike.
        out: the folder; made when missing.
        identity: what the result depends on besides the plan (policy, env, protocol, versions); goes into `provenance`.
        on_result: also called with each row, for a progress bar; first with those found on disk.
        stop: ends the evaluation early; the rows that count are then those up to the decision, however many more were
            in flight, and the intervals are `anytime_interval`s.

    Raises:
        GrasplineError: `out` holds an evaluation of something else.
        CorruptFileError: rows.jsonl is damaged anywhere but at its very end.
    """
    if len(set(plan)) != len(plan):
        raise ValueError("plan: two rows are alike")
    out.mkdir(parents=True, exist_ok=True)
    _claim(out / "plan.json", plan, identity)
    done = {row: result for row, result in _read_rows(out / "rows.jsonl", plan).items() if result.error is None}
    for result in done.values():
        on_result(result)
    counted, fresh = set[EpisodePlan](), 0
    began = time.perf_counter()
    with (out / "rows.jsonl").open("ab") as file:

        def keep(result: EpisodeResult) -> None:
            file.write(json.dumps(asdict(result)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            done[_row_of(result)] = result
            on_result(result)

        order: list[EpisodePlan] = []
        for block in [list(plan)] if stop is None else stop.blocks(plan):
            if missing := [row for row in block if row not in done]:
                run(missing, keep)
            order += block
            fresh += len(missing)
            first = None if stop is None else stop.decided_after(done[row].success for row in order)
            counted = set(order[:first])
            if first is not None:
                break
    session = {"elapsed_s": time.perf_counter() - began, "rows": fresh}
    results = summarise([done[row] for row in plan if row in counted], identity, session, stop, planned=len(plan))
    if fresh or not (out / "results.json").exists():
        write_json(out / "results.json", results)
    return results


def summarise(
    rows: Sequence[EpisodeResult],
    identity: Identity,
    session: Mapping[str, float],
    stop: StopWhen | None = None,
    planned: int = 0,
) -> dict[str, Any]:
    """The content of results.json: rows, successes per task and in all with 95 % intervals, provenance, timing.

    `timing` sums over the rows, in slot-seconds; `session` is the last call's own wall-clock time and number of rows.
    With `stop`, `stopping` says what was decided, of how many planned rows.
    """
    interval = wilson if stop is None else stop.interval
    by_task: dict[str, list[EpisodeResult]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    parts = ("wall_s", "physics_s", "render_s", "policy_s")
    timing: dict[str, float] = {part: sum(getattr(row, part) for row in rows) for part in parts}
    timing["waiting_s"] = max(0.0, timing["wall_s"] - timing["physics_s"] - timing["render_s"] - timing["policy_s"])
    timing["steps"] = sum(row.steps for row in rows)
    total = _score(rows, interval)
    stopping = {} if stop is None else {"stopping": stop.verdict(total["successes"], len(rows), planned)}
    return {
        "total": total,
        **stopping,
        "per_task": {task: _score(some, interval) for task, some in by_task.items()},
        "errors": sum(row.error is not None for row in rows),
        "rows": [asdict(row) for row in rows],
        "provenance": dict(identity),
        "timing": {**timing, "session": dict(session)},
    }


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """95 % score interval of a proportion (E. B. Wilson, JASA 22, 1927, 209-212); sane at 0 and at 100 %."""
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes} successes of {episodes} episodes")
    share, z2 = successes / episodes, _Z95**2
    centre = (share + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = _Z95 / (1 + z2 / episodes) * math.sqrt(share * (1 - share) / episodes + z2 / (4 * episodes**2))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def read_results(path: Path) -> dict[str, Any]:
    """A results.json, or that of a folder.

    Raises:
        MissingAssetError: there is none.
        CorruptFileError: it is not what it claims to be.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.exists():
        raise MissingAssetError(f"no results at {path}; run `python -m scripts.evaluate out={path.parent} ...` first")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptFileError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise CorruptFileError(f"{path}: not the results of an evaluation, expected the fields {sorted(_KEYS)}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes all of a file or nothing: a reader never meets half a result."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _score(rows: Sequence[EpisodeResult], interval: Callable[[int, int], tuple[float, float]]) -> dict[str, Any]:
    successes, episodes = sum(row.success for row in rows), len(rows)
    low, high = interval(successes, episodes)
    return {
        "successes": successes,
        "episodes": episodes,
        "success": successes / episodes,
        "low": low,
        "high": high,
    }


def _row_of(result: EpisodeResult) -> EpisodePlan:
    return EpisodePlan(result.task, result.init_state, result.seed)


def _claim(path: Path, plan: Sequence[EpisodePlan], identity: Identity) -> None:
    """Marks a folder as this evaluation's. Raises GrasplineError that names what differs if it is another's."""
    mine = json.loads(json.dumps({"rows": [asdict(row) for row in plan], **identity}))
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if not path.exists():
        write_json(path, {"hash": digest, **mine})
        return
    try:
        theirs = json.loads(path.read_text())
        if theirs.pop("hash") == digest:
            return
    except (ValueError, KeyError, AttributeError) as error:
        raise CorruptFileError(f"{path} is damaged ({error}); delete it to start this evaluation anew") from error
    differing = list(_differences(theirs, mine))
    shown = "; ".join(differing[:4]) + (f"; and {len(differing) - 4} more" if len(differing) > 4 else "")
    raise GrasplineError(f"{path.parent} holds another evaluation: {shown}. Choose another out= or delete that folder")


def _differences(theirs: Any, mine: Any, name: str = "") -> Iterable[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted(theirs.keys() | mine.keys(), key=lambda key: (key == "rows", key)):
            yield from _differences(theirs.get(key), mine.get(key), f"{name}.{key}" if name else key)
    elif theirs != mine:
        was, now = (f"{len(value)} entries" if isinstance(value, list) else repr(value) for value in (theirs, mine))
        yield f"{name} was {was}, is now {now}" if was != now else f"{name} differ"


def _read_rows(path: Path, plan: Sequence[EpisodePlan]) -> dict[EpisodePlan, EpisodeResult]:
    """The rows on disk; a last line that a kill cut short is taken off the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    planned = set(plan)
    rows = {}
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        result = _parse_row(line, f"{path}, line {number}")
        if _row_of(result) not in planned:
            raise CorruptFileError(f"{path}, line {number}: not a row of {path.parent / 'plan.json'}")
        rows[_row_of(result)] = result
    return rows


def _parse_row(line: bytes, where: str) -> EpisodeResult:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CorruptFileError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict) or row.keys() != _RESULT_FIELDS:
        raise CorruptFileError(f"{where}: expected the fields {sorted(_RESULT_FIELDS)}")
    return EpisodeResult(**row)
