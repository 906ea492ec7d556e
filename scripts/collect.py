"""Collects demonstrations: plan -> episodes in worker processes -> staged files -> LeRobotDataset."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from scripts.entry import entry
from sim.experts import expert_for
from sim.vector import EnvPool
from vla.core.errors import GrasplineError
from vla.core.types import Episode
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import SUFFIX, read_staged
from vla.rollout.collect import Perturbation, collect_plan, collect_row, row_name
from vla.rollout.plan import select_tasks
from vla.rollout.runner import EpisodePlan


def main(config: DictConfig) -> None:
    """Finishes what is missing of the plan, then writes the dataset."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    make_env = partial(instantiate, plain["env"])
    env = make_env()
    out = Path(config.out)
    staging = out.with_name(f"{out.name}.staging")
    plan = collect_plan(select_tasks(env.tasks, plain["tasks"]), config.episodes, config.seed)
    written = _rows_of(out, env.spec) if (out / "meta").is_dir() else set()
    plan = [row for row in plan if row_name(row) not in written]
    staged = {path.name.removesuffix(SUFFIX) for path in staging.glob(f"[!.]*{SUFFIX}")}
    missing = [row for row in plan if row_name(row) not in staged]
    failed = _record(make_env, missing, instantiate(plain["perturbation"]), config, staging) if missing else []

    names = [row_name(row) for row in plan if row not in failed]
    if names:
        write_dataset(_read(staging, names), out, env.spec, total=len(names))
    for name in names:
        (staging / f"{name}{SUFFIX}").unlink()
    if staging.is_dir() and not any(staging.glob(f"[!.]*{SUFFIX}")):  # else they are of another plan: not ours to drop
        shutil.rmtree(staging)
    print(f"{len(written) + len(names)} episodes in {out}")
    if failed:
        shown = ", ".join(f"{row.task} (initial state {row.init_state})" for row in failed[:5])
        what = f"no success in {config.attempts} attempts on {shown}"
        raise GrasplineError(f"{len(failed)} of {config.episodes} episodes are missing: {what}")


def _record(
    make_env: Any, rows: list[EpisodePlan], perturbation: Perturbation, config: DictConfig, staging: Path
) -> list[EpisodePlan]:
    """Records rows into `staging`; returns those on which the expert failed."""
    failed: list[EpisodePlan] = []
    # Task by task, since a worker that stays with one keeps its compiled model; popped from the end.
    waiting = sorted(rows, key=lambda row: row.task)[::-1]
    running: dict[int, EpisodePlan] = {}
    slots = min(config.workers or 1, len(rows))
    with (
        EnvPool(make_env, num_slots=slots, num_workers=config.workers) as pool,
        tqdm(total=len(rows), desc="collecting", unit="episode") as bar,
    ):

        def start_next(slot: int) -> None:
            running.pop(slot, None)
            if waiting:
                running[slot] = waiting.pop()
                asked = (perturbation, config.attempts, config.drop_noops, staging)
                pool.call(slot, collect_row, expert_for, running[slot], *asked)

        for slot in range(pool.num_slots):
            start_next(slot)
        while running:
            for reply in pool.wait():
                if reply.error is not None:
                    tqdm.write(f"{row_name(running[reply.slot])}: {reply.error}")
                if not reply.value:
                    failed.append(running[reply.slot])
                bar.update()
                start_next(reply.slot)
    return failed


def _rows_of(out: Path, spec: Any) -> set[str]:
    """Names of the episodes that a dataset holds. Raises SpecMismatchError if it is of another embodiment."""
    source = LeRobotSource(out)
    spec.check_same(source.spec, here="env", there=str(out))
    metas = source.episode_meta
    return {f"{meta.get('task')}-{meta.get('init_state')}-{meta.get('seed')}" for meta in metas}


def _read(staging: Path, names: list[str]) -> Iterator[Episode]:
    for name in names:
        yield read_staged(staging / f"{name}{SUFFIX}")


if __name__ == "__main__":
    entry("collect", main)
