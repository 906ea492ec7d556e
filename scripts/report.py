"""Results to one HTML page: `python -m scripts.report results=outputs/evaluate out=report.html`. See --help.

Special: the episodes that the page shows frame by frame are played again where no film of them is left. A results file
may come from elsewhere, so it names no code here: only suites of ours, and policies that need no address or module.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scripts import evaluate
from scripts.entry import CONFIG_DIR, entry
from sim.vector import EnvPool
from vla.core.errors import GrasplineError, unknown_name
from vla.core.protocols import Policy
from vla.rollout.evaluate import read_results
from vla.rollout.executor import Executor, RecedingHorizon, TemporalEnsemble
from vla.rollout.report import write_report
from vla.rollout.report_gallery import film_of, rows_to_film
from vla.rollout.runner import EpisodePlan
from vla.rollout.video import FilmedEnv


def main(config: DictConfig) -> None:
    """Writes the page that the config describes."""
    results = [Path(path) for path in ([config.results] if isinstance(config.results, str) else config.results)]
    against, robustness, training = (
        None if config[key] is None else Path(config[key]) for key in ("against", "robustness", "training")
    )
    out = Path(config.out)
    notes = [] if not results else list(_film_missing(results[0], against, config.gallery, config.workers))
    write_report(
        out,
        results,
        against=against,
        robustness=robustness,
        training=training,
        gallery=config.gallery,
        media_mb=config.media_mb,
        allow_differences=config.allow_differences,
        title=config.title,
        summary=config.summary,
        notes=notes,
    )
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _film_missing(results: Path, against: Path | None, gallery: int, workers: int) -> Iterator[str]:
    """Films the episodes of the gallery that have no film yet; yields what to say about those that cannot be."""
    paths = [path for path in (results, against) if path is not None]
    contents = [read_results(path) for path in paths]
    wanted = rows_to_film(contents[0]["rows"], contents[1]["rows"] if len(contents) > 1 else None, gallery)
    for path, content, rows in zip(paths, contents, wanted, strict=False):
        folder = path if path.is_dir() else path.parent
        missing = [row for row in rows if film_of(row, folder) is None]
        if not missing:
            continue
        try:
            _play_again(content["provenance"], missing, folder / "videos", workers)
        except GrasplineError as error:
            yield f"{len(missing)} episodes of {folder} were not played again: {error}"
            continue
        if other := [row for row in missing if film_of(row, folder) is None]:
            yield f"{len(other)} of {len(missing)} episodes of {folder} came out differently when played again"


def _play_again(provenance: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], videos: Path, workers: int) -> None:
    """Films rows with the env and the policy that the results name. Raises GrasplineError where that is impossible."""
    make_env = partial(instantiate, _checked(provenance.get("env")), _convert_="all")
    policy, executor = _player_of(provenance, make_env)
    plan = [EpisodePlan(row["task"], row["init_state"], row["seed"]) for row in rows]
    print(f"playing {len(plan)} episodes of {videos.parent} again")
    filmed = partial(FilmedEnv, make_env=make_env, folder=videos)
    with EnvPool(filmed, num_slots=max(1, min(workers, len(plan))), num_workers=workers) as pool:
        evaluate.player(pool, policy, executor)(plan, lambda result: None)


def _player_of(provenance: Mapping[str, Any], make_env: Any) -> tuple[Policy | None, Executor]:
    """The policy, None for the expert, and how its chunks are played."""
    named, protocol = provenance.get("policy", {}), provenance.get("protocol", {})
    name = str(named.get("name"))
    if name != "expert" and name not in evaluate.BASELINES and not Path(name).is_dir():
        raise GrasplineError(f"policy {name} is neither a folder on this machine nor expert, random or zero")
    env = make_env()
    policy, identity = evaluate.policy_named(name, env)
    env.close()
    if identity["hash"] != named.get("hash"):
        raise GrasplineError(f"policy {name} is not the one that was evaluated: its weights have another hash")
    if protocol.get("ensemble") is not None:
        return policy, TemporalEnsemble(protocol["ensemble"])
    return policy, RecedingHorizon(protocol.get("execute", 1))


def _checked(env: Any) -> dict[str, Any]:
    """The env's config if it, and all within it, builds a suite of ours; a results file must not name other code."""
    if not isinstance(env, dict) or "_target_" not in env:
        raise GrasplineError("the results do not say of which env they are")
    suites = (OmegaConf.load(path) for path in (CONFIG_DIR / "env").glob("*.yaml"))
    valid = {"sim.perturb.Perturbed", *(OmegaConf.select(suite, "_target_") for suite in suites)}
    for target in _targets(env):
        if target not in valid:
            raise unknown_name("env of the results", target, valid)
    return env


def _targets(config: Any) -> Iterator[str]:
    """Every `_target_` of a config, however deep."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield str(config["_target_"])
        config = list(config.values())
    for value in config if isinstance(config, list) else []:
        yield from _targets(value)


if __name__ == "__main__":
    entry("report", main)
