"""Runs the recipes of published methods, keeps their scores, writes the page about them. See configs/agents.yaml."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from agents.page import read_results, write_page
from scripts.entry import CONFIG_DIR, entry
from vla.core.errors import unknown_name

SMOKE = {
    "layers": 2,
    "limit": 8,
    "sampled": 16,
    "edits": 4,
    "pretrain": 2,
    "steps": 2,
    "rounds": 1,
    "test": 16,
    "records": 32,
    "examples": 32,
    "tasks": 4,
    "batch": 8,
}


def main(config: DictConfig) -> None:
    """One verb: "run" the recipes with each seed, or write the "page"."""
    if config.verb == "page":
        write_page(Path(config.page), Path(config.rows), Path(config.results))
    elif config.verb == "run":
        for name in [config.recipe] if isinstance(config.recipe, str) else config.recipe or []:
            run(name, config)
    else:
        raise unknown_name("verb", config.verb, ("run", "page"))


def run(name: str, config: DictConfig) -> None:
    """Adds a row for each seed to the results, at once; a seed that is there is not run again."""
    known = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))
    if name not in known:
        raise unknown_name("recipe", name, known)
    settings = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "recipe" / f"{name}.yaml"))
    torch.set_num_threads(config.threads)
    results = Path(config.results)
    for seed in config.seeds:
        if not config.smoke and any((row["recipe"], row["seed"]) == (name, seed) for row in read_results(results)):
            print(f"{name} seed {seed}: there already")
            continue
        begin = time.process_time()
        effect = instantiate(shrink(settings) if config.smoke else settings, seed=seed)
        row = {"recipe": name, "seed": seed, "cpu_s": round(time.process_time() - begin, 1), **vars(effect)}
        row["scores"] = {arm: round(score, 4) for arm, score in effect.scores.items()}
        print(json.dumps(row), flush=True)
        if not config.smoke:
            append(results, row)


def shrink(settings: Any) -> Any:
    """Settings for a run of seconds that only shows that all parts fit."""
    smaller = {key: min(value, SMOKE[key]) if key in SMOKE else value for key, value in settings.items()}
    return {key: value[:1] if key == "lrs" else value for key, value in smaller.items()}


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a row, kept in order of recipe and seed; the file is put in place at once."""
    rows = sorted([*read_results(path), row], key=lambda each: (each["recipe"], each["seed"]))
    partial = path.with_suffix(".partial")
    partial.write_text("[\n" + ",\n".join(json.dumps(each) for each in rows) + "\n]\n")
    partial.replace(path)


if __name__ == "__main__":
    entry("agents", main)
