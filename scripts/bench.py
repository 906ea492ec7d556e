"""Measures what the project promises, each promise as a ratio or a time taken in this one run.

make bench     writes outputs/bench.json and prints each figure beside its bar
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from omegaconf import DictConfig

from scripts.bench_loader import loader_ratio
from scripts.entry import entry
from sim.tabletop import TabletopEnv
from vla.rollout.evaluate import write_json

BARS = {"loader_ratio": (">=", 20.0), "render_ms_128": ("<=", 5.0), "render_ratio": (">=", 4.0)}


def main(config: DictConfig) -> None:
    """Collects a small dataset, measures, compares with the bars."""
    out = Path(config.out)
    dataset = out.parent / "bench" / "dataset"
    collect = [f"tasks={config.tasks}", f"episodes={config.episodes}", f"out={dataset}"]
    subprocess.run([sys.executable, "-m", "scripts.collect", "env=tabletop", *collect], check=True)
    figures = {**render_times(config.repeats), **loader_ratio(dataset)}
    write_json(out, figures)
    for name, value in figures.items():
        sign, bar = BARS.get(name, ("", ""))
        shown = value if isinstance(value, str) else f"{value:.2f}"
        print(f"{name:28s} {shown:>10}  {sign} {bar}")
    print(out)


def render_times(repeats: int) -> dict[str, float]:
    """Milliseconds for one 128 px picture of the tabletop, ours and as robosuite draws it, taken alternately."""
    envs = {look: TabletopEnv(image_size=128, look=look) for look in ("fast", "original")}
    spent: dict[str, list[float]] = {look: [] for look in envs}
    for env in envs.values():
        env.reset("object_can", 0, 0)
        env.observe()
    for _ in range(repeats):
        for look, env in envs.items():
            started = time.perf_counter()
            env.observe()
            spent[look].append(time.perf_counter() - started)
    for env in envs.values():
        env.close()
    # Of two cameras; the median, since a pause of the machine in one drawing says nothing about drawing.
    fast, original = (1e3 * median(spent[look]) / 2 for look in ("fast", "original"))
    return {"render_ms_128": fast, "render_ms_128_robosuite": original, "render_ratio": original / fast}


if __name__ == "__main__":
    entry("bench", main)
