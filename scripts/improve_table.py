"""Runs of scripts.improve side by side, one line an algorithm. See --help.

Special: only seeds that the baseline has too are counted, and a line says how many those are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from scripts.entry import entry
from vla.core.errors import GrasplineError, unknown_name
from vla.rl.side_by_side import Estimate, Outcomes, difference, estimate, outcomes
from vla.rollout.evaluate import read_results


def main(config: DictConfig) -> None:
    runs = _runs(Path(config.root), config.labels)
    if config.baseline not in runs:
        raise unknown_name("baseline", str(config.baseline), runs)
    caps = _caps(next(iter(runs[config.baseline].values())))
    lines = [
        f"| run | seeds | success | steps a cycle | success against {config.baseline} | cycle | Spearman in states "
        "| gate | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(name, runs[name], runs[config.baseline], caps) for name in config.labels or runs),
    ]
    print("\n".join(lines))
    if config.out is not None:
        Path(config.out).write_text("\n".join(lines) + "\n")


def _runs(root: Path, labels: Sequence[str] | None) -> dict[str, dict[int, Path]]:
    """Finished runs {label: {seed: folder}} in the folders `<label>_<seed>` of `root`."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(root.glob("*_*/results.json")):
        label, _, seed = path.parent.name.rpartition("_")
        if seed.isdigit():
            found.setdefault(label, {})[int(seed)] = path.parent
    if not found:
        raise GrasplineError(f"root={root}: no finished run there in a folder <label>_<seed>")
    for label in labels or ():
        if label not in found:
            raise unknown_name("label", label, found)
    return found


def _caps(run: Path) -> dict[str, int]:
    env = instantiate(json.loads((run / "improve.json").read_text())["env"])
    return {name: task.horizon for name, task in env.tasks.items()}


def _line(label: str, runs: Mapping[int, Path], baseline: Mapping[int, Path], caps: Mapping[str, int]) -> str:
    seeds = [seed for seed in runs if seed in baseline]
    if not seeds:
        return f"| {label} | none that the baseline has |" + " |" * 7
    mine, theirs = _outcomes(runs, seeds, caps), _outcomes(baseline, seeds, caps)
    success, cycle = estimate(mine.success_SN), estimate(mine.cycle_SN)
    summaries = [json.loads((runs[seed] / "results.json").read_text()) for seed in seeds]
    cells = [
        label,
        ", ".join(map(str, seeds)),
        f"{_percent(success)}: {', '.join(f'{100 * each:.0f}' for each in mine.success_SN.mean(axis=1))}",
        f"{_plain(cycle)}: {', '.join(f'{each:.0f}' for each in mine.cycle_SN.mean(axis=1))}",
        "" if runs is baseline else _points(difference(mine.success_SN, theirs.success_SN, relative=False)),
        "" if runs is baseline else _percent(difference(mine.cycle_SN, theirs.cycle_SN, relative=True), signed=True),
        *_ranking([summary["ranking"] for summary in summaries]),
        ", ".join(f"{summary['minutes_of_this_call']:.0f}" for summary in summaries),
    ]
    return f"| {' | '.join(cells)} |"


def _outcomes(runs: Mapping[int, Path], seeds: Sequence[int], caps: Mapping[str, int]) -> Outcomes:
    return outcomes([read_results(runs[seed] / "evaluation")["rows"] for seed in seeds], caps)


def _ranking(rankings: Sequence[Mapping[str, Any] | None]) -> tuple[str, str]:
    """Correlation and verdict of each seed; empty where no critic was asked."""
    asked = [each for each in rankings if each is not None]
    rhos = [f"{each['spearman']:+.2f}" if "spearman" in each else "-" for each in asked]
    return ", ".join(rhos), ", ".join("passes" if each["passes"] else "fails" for each in asked)


def _percent(found: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * found.mean:{sign}.0f} % ({100 * found.low:{sign}.0f} to {100 * found.high:{sign}.0f})"


def _points(found: Estimate) -> str:
    return f"{100 * found.mean:+.0f} points ({100 * found.low:+.0f} to {100 * found.high:+.0f})"


def _plain(found: Estimate) -> str:
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


if __name__ == "__main__":
    entry("improve_table", main)
