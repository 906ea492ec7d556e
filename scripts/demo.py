"""From nothing to a page with videos: collect -> train -> evaluate -> report, each stage the script of that name."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scripts.entry import entry
from vla.rollout.evaluate import write_json


def main(config: DictConfig) -> None:
    """Runs the stages, then writes `summary.json`: success, its interval, episodes, minutes."""
    started = time.monotonic()
    plain: Any = OmegaConf.to_container(config, resolve=True)
    out = Path(config.out)
    scene = {key: value for key, value in plain["collect"].items() if key == "tasks" or key.partition(".")[0] == "env"}
    common = {"seed": config.seed}
    played = {**scene, **common, "workers": config.workers}
    minutes = {
        "collect": _run("collect", plain["collect"] | played | {"out": out / "dataset"}),
        "train": _run("train", plain["train"] | common | {"dataset": out / "dataset", "out": out / "policy"}),
        "evaluate": _run(
            "evaluate", plain["evaluate"] | played | {"policy": out / "policy", "out": out / "evaluation"}
        ),
        "expert": _run(
            "evaluate", plain["evaluate"] | played | {"policy": "expert", "videos": 0, "out": out / "expert"}
        ),
    }
    compared = [out / "evaluation", out / "expert"]
    page = {"results": compared, "training": out / "policy", "out": out / "report.html"}
    minutes["report"] = _run("report", page)
    (out / "results.json").write_bytes((out / "evaluation" / "results.json").read_bytes())
    total = json.loads((out / "results.json").read_text())["total"]
    score = {key: total[key] for key in ("success", "low", "high", "episodes")}
    summary = {**score, "minutes": round((time.monotonic() - started) / 60, 2), "stages": minutes}
    write_json(out / "summary.json", summary)
    print(
        f"\nsuccess {total['success']:.0%} of {total['episodes']} episodes on held-out initial states "
        f"(95 % interval {total['low']:.0%} to {total['high']:.0%}), {summary['minutes']} minutes\n"
        f"{out / 'report.html'}"
    )


def _run(stage: str, overrides: dict[str, Any]) -> float:
    """Runs a stage as its own process; minutes it took. A stage that fails ends this script with its status."""
    settings = [f"{key}={_word(value)}" for key, value in overrides.items()]
    words = [sys.executable, "-m", f"scripts.{stage}", *settings]
    print(f"\n$ python {shlex.join(words[1:])}", flush=True)
    started = time.monotonic()
    done = subprocess.run(words, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return round((time.monotonic() - started) / 60, 2)


def _word(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    entry("demo", main)
