"""Is b better than a? `python -m scripts.compare a=outputs/evaluate b=outputs/other`. See --help."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from scripts.entry import entry
from vla.core.errors import GrasplineError
from vla.rollout.compare import compare
from vla.rollout.evaluate import read_results, write_json


def main(config: DictConfig) -> None:
    for name in ("a", "b"):
        if config[name] is None:
            raise GrasplineError(f"{name}=: name the folder of an evaluation")
    a, b = read_results(Path(config.a)), read_results(Path(config.b))
    outcome = compare(a, b, allow_differences=config.allow_differences)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"paths": {"a": str(config.a), "b": str(config.b)}, **outcome})
    _print(outcome)
    print(f"wrote {out}")


def _print(outcome: Mapping[str, Any]) -> None:
    pairs = outcome["pairs"]
    for name in ("a", "b"):
        score = outcome[name]
        print(
            f"{name}  {score['policy']!s:37s} {score['successes']:4d} of {pairs:4d}  {score['success']:6.1%}  "
            f"[{score['low']:.1%}, {score['high']:.1%}]"
        )
    print(f"\n{'pairs by task':40s}  both  only a  only b  neither")
    for task, counts in [*outcome["per_task"].items(), ("total", outcome)]:
        numbers = f"{counts['both']:6d}{counts['only_a']:8d}{counts['only_b']:8d}{counts['neither']:9d}"
        print(f"{task:40s}{numbers}")
    print(
        f"\nb - a: {_points(outcome['difference'])}, 95 % interval [{_points(outcome['low'])}, "
        f"{_points(outcome['high'])}] (paired bootstrap)\n"
        f"McNemar, exact: p = {outcome['mcnemar_p']:.2g}; valid also if you look again and again: "
        f"p = {outcome['anytime_p']:.2g}"
    )
    smallest = outcome["smallest_difference"]
    if smallest is None:
        print(f"{pairs} pairs are too few to show any difference with 80 % power")
    else:
        print(f"smallest difference that {pairs} pairs show with 80 % power: {100 * smallest:.1f} points")
    for remark in outcome["remarks"]:
        print(f"note: {remark}")


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


if __name__ == "__main__":
    entry("compare", main)
