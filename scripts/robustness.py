"""Success against severity: `python -m scripts.robustness env=tabletop policy=outputs/run`. See --help.

Special: every cell is an ordinary evaluation in a folder of its own, so what is finished is never played again.
"""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from scripts import evaluate
from scripts.entry import compose, entry
from sim.perturb import KINDS, Perturbed
from sim.perturb_placement import spread_cm
from sim.perturb_stage import StagedEnv
from vla.core.errors import GrasplineError, unknown_name
from vla.rollout.evaluate import read_results, write_json
from vla.rollout.plan import make_plan, select_tasks
from vla.rollout.robustness import Cell, summarise_cells, write_page

_SHARED = (
    "env",
    "protocol",
    "policy",
    "tasks",
    "episodes",
    "init_states",
    "execute",
    "workers",
    "batch",
    "seed",
    "videos",
)


def main(config: DictConfig) -> None:
    cells = _cells(config)
    out = Path(config.out)
    evaluate.main(_evaluation(config, out / "plain", None))
    played = []
    for kind, severity in cells:
        folder = out / f"{kind}-{severity:g}"
        print(f"\n{kind} {severity:g}: {KINDS[kind]}")
        played.append(_play(config, kind, severity, folder))
    summary = summarise_cells(read_results(out / "plain"), played, KINDS, _spread(config))
    write_json(out / "robustness.json", summary)
    write_page(out / "robustness.html", summary)
    _print(summary)
    print(f"wrote {out / 'robustness.json'} and {out / 'robustness.html'}")
    failed = [cell for cell in played if cell.results is None]
    if failed:
        raise GrasplineError(f"{len(failed)} of {len(played)} cells were not played, first {failed[0].error}")


def _cells(config: DictConfig) -> list[tuple[str, float]]:
    """(kind, severity) in the order of play, checked before anything is played."""
    kinds = list(KINDS) if config.kinds == "all" else list(config.kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("kinds entry", str(kind), KINDS)
    severities = [float(severity) for severity in config.severities]
    if not all(0 < severity <= 1 for severity in severities):
        raise GrasplineError(f"severities is {severities}, expected numbers above 0 and up to 1; 0 is always played")
    make_env = instantiate(config.env, _partial_=True, _convert_="all")
    for kind in kinds:
        Perturbed(make_env=make_env, kind=kind, severity=1.0).close()
    return [(kind, severity) for kind in kinds for severity in severities]


def _evaluation(config: DictConfig, folder: Path, perturbation: dict[str, Any] | None) -> DictConfig:
    """The config of `scripts.evaluate` for one cell."""
    cell = compose("evaluate", [])
    with open_dict(cell):
        cell.update({key: config.get(key) for key in _SHARED})
        cell.perturbation, cell.out = perturbation, str(folder)
    return cell


def _play(config: DictConfig, kind: str, severity: float, folder: Path) -> Cell:
    """One cell; what a task does not allow (no room to place its objects) costs this cell alone."""
    perturbation = {"kind": kind, "severity": severity, "seed": config.perturbation_seed}
    try:
        evaluate.main(_evaluation(config, folder, perturbation))
    except GrasplineError as error:
        return Cell(kind=kind, severity=severity, folder=folder.name, results=None, error=str(error))
    return Cell(kind=kind, severity=severity, folder=folder.name, results=read_results(folder))


def _spread(config: DictConfig) -> dict[str, dict[str, Any]]:
    """{task: {"official", "wide": {object: (x, y) [cm]}}}; empty where there is no scene to measure."""
    make_env = instantiate(config.env, _partial_=True, _convert_="all")
    plain = make_env()
    found: dict[str, dict[str, Any]] = {}
    if config.spread < 1 or not isinstance(plain, StagedEnv):
        return found
    wide = Perturbed(make_env=make_env, kind="placement", severity=1.0, seed=config.perturbation_seed)
    for task in select_tasks(plain.tasks, config.tasks if isinstance(config.tasks, str) else list(config.tasks)):
        plan = make_plan([task], config.spread, config.init_states, config.seed)
        rows = [(row.init_state, row.seed) for row in plan]
        found[task.name] = {"official": spread_cm(plain, task.name, rows)}
        try:
            found[task.name]["wide"] = spread_cm(wide, task.name, rows)
        except GrasplineError as error:  # a task whose objects all stand on fixtures
            print(f"note: {error}")
    plain.close()
    wide.close()
    return found


def _print(summary: dict[str, Any]) -> None:
    plain = summary["plain"]
    print(f"\n{'plain':28s} {plain['success']:6.1%}  [{plain['low']:.1%}, {plain['high']:.1%}]")
    for kind, found in summary["kinds"].items():
        for point in found["points"]:
            interval = f"[{point['low']:.1%}, {point['high']:.1%}]"
            changed = f"{point['lost']} lost, {point['won']} won"
            print(f"{kind:20s} {point['severity']:7g} {point['success']:6.1%}  {interval}  {changed}")


if __name__ == "__main__":
    entry("robustness", main)
