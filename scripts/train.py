"""Trains a policy: dataset -> batches -> fit -> a run directory that evaluates, resumes and explains itself."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from scripts.entry import entry
from vla.core.errors import GrasplineError, unknown_name
from vla.data.batch import Batch, ChunkDataset, batches
from vla.data.lerobot import LeRobotSource
from vla.policies.load import load_policy, save_policy
from vla.policies.vla import VLAPolicy
from vla.rollout.evaluate import write_json
from vla.rollout.provenance import software
from vla.train.distributed import PARALLEL, PRECISIONS, Processes, describe
from vla.train.layers import checkpoint_activations, frozen_in_bf16
from vla.train.lora import add_lora, merge_lora
from vla.train.memory import RESERVE_CUDA, Settings, available_bytes, check_memory
from vla.train.metrics import Metrics, read_metrics
from vla.train.offline import fit
from vla.train.optim import Average, adamw, warmup_cosine

# What may differ between a run and its continuation, because no weight depends on it.
FREE = ("out", "resume", "checkpoint_every", "log_every", "wandb", "experiment", "gradient_checkpointing")
FREE += ("memory_limit_gb",)
# What a run had before these could be set.
BEFORE = {"init": None, "keep_transforms": False, "lora": {"rank": None, "alpha": 16}, "accumulate": 1}
BEFORE |= {"precision": "auto", "parallel": "ddp"}


def main(config: DictConfig) -> None:
    """Trains, then writes the policy with averaged weights."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    _check(settings)
    out = Path(config.out)
    processes = Processes(parallel=config.parallel, precision=config.precision)
    if config.batch < config.accumulate * processes.count:
        raise GrasplineError(
            f"batch is {config.batch}, too few for accumulate={config.accumulate} parts in {processes.count} processes"
        )
    if not processes.is_main:
        processes.wait()  # until the first has decoded the images
    start = load_policy(config.init) if config.init else None
    train, heldout = _open_data(settings, start)
    if processes.is_main:
        _prepare(out, settings, frames=len(train), processes=processes)
    processes.wait()

    policy = _policy(settings, train, start, processes)
    _plan_memory(settings, policy, processes)
    if config.gradient_checkpointing:
        checkpoint_activations(policy)
    processes.shard(policy)
    policy.to(processes.device)
    if processes.is_main:
        episodes = len(LeRobotSource(Path(config.dataset)))
        print(f"{_count(policy)}, {len(train)} frames in {episodes} episodes")
    fit(
        policy,
        lambda start: batches(train, batch_size=config.batch, seed=config.seed, start_step=start),
        optimizer=adamw(policy, lr=config.lr, weight_decay=config.weight_decay),
        schedule=partial(warmup_cosine, steps=config.steps, warmup=round(config.warmup * config.steps)),
        average=Average(policy, config.ema),
        metrics=Metrics(
            out,
            steps=config.steps,
            every=config.log_every,
            wandb=config.wandb,
            settings=settings,
            enabled=processes.is_main,
        ),
        processes=processes,
        steps=config.steps,
        seed=config.seed,
        out=out,
        accumulate=config.accumulate,
        max_grad_norm=config.max_grad_norm,
        checkpoint_every=config.checkpoint_every,
        validation=_validation_batches(heldout, config.batch) if heldout else (),
    )
    again = partial(_policy, settings, train, None, processes)
    policy = processes.unshard(policy, again)
    if processes.is_main:
        merge_lora(policy)
        save_policy(out, policy)
        _report(out)
    processes.close()


def _check(settings: dict[str, Any]) -> None:
    """Raises GrasplineError for a number that cannot be trained with, before anything is decoded."""
    for key in ("steps", "batch", "accumulate", "horizon", "checkpoint_every", "log_every"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise GrasplineError(f"{key} is {settings[key]}, expected a whole number of at least 1")
    for key in ("heldout", "warmup", "ema"):
        if not 0 <= settings[key] < 1:
            raise GrasplineError(f"{key} is {settings[key]}, expected a share in [0, 1)")
    for key, valid in (("precision", PRECISIONS), ("parallel", PARALLEL)):
        if settings[key] not in valid:
            raise unknown_name(key, str(settings[key]), valid)
    if settings["keep_transforms"] and not settings["init"]:
        raise GrasplineError("keep_transforms=true keeps those of init, which is null")


def _open_data(settings: dict[str, Any], start: VLAPolicy | None) -> tuple[ChunkDataset, ChunkDataset | None]:
    """The training samples and those of held-out episodes, which share the former's normalisation.

    Raises:
        GrasplineError: they do not fit the policy to start from.
    """
    source = LeRobotSource(Path(settings["dataset"]))
    cameras = settings["cameras"]
    if start is not None:
        start.spec.check_same(source.spec, here="init", there="the dataset")
        cameras = cameras or list(start.cameras)
        for key, wanted, has in (
            ("cameras", cameras, list(start.cameras)),
            ("horizon", settings["horizon"], start.horizon),
        ):
            if wanted != has:
                raise GrasplineError(f"{key} is {wanted}, but the policy in init={settings['init']} has {has}")
    shuffled = np.random.default_rng(settings["seed"]).permutation(len(source)).tolist()
    count = round(settings["heldout"] * len(source))
    make = partial(
        ChunkDataset,
        source=source,
        horizon=settings["horizon"],
        cameras=cameras,
        target=settings["target"],
        oversampling=settings["gripper_oversampling"],
    )
    kept = start.transforms if start is not None and settings["keep_transforms"] else None
    train = make(episodes=sorted(shuffled[count:]), transforms=kept)
    return train, make(episodes=sorted(shuffled[:count]), transforms=train.transforms) if count else None


def _policy(settings: dict[str, Any], train: ChunkDataset, start: VLAPolicy | None, processes: Processes) -> VLAPolicy:
    """The policy as it will be trained, on the CPU: built, or `init`'s; adapters in; what is frozen in its precision.

    `start` is the policy in `init` if that has been loaded.
    """
    torch.manual_seed(settings["seed"])
    if settings["init"]:
        policy = start or load_policy(settings["init"])
        policy.transforms = train.transforms
    else:
        build = instantiate(settings["policy"], _partial_=True)
        policy = build(spec=train.spec, transforms=train.transforms, cameras=train.cameras, horizon=settings["horizon"])
    if settings["lora"]["rank"] is not None:
        add_lora(policy, rank=settings["lora"]["rank"], alpha=settings["lora"]["alpha"])
    if processes.bf16:
        frozen_in_bf16(policy)
    return policy


def _plan_memory(settings: dict[str, Any], policy: VLAPolicy, processes: Processes) -> None:
    """Prints what the run will need. Raises GrasplineError if that is more than there is."""
    chosen = Settings(
        batch=settings["batch"],
        accumulate=settings["accumulate"],
        bf16=processes.bf16,
        checkpointing=settings["gradient_checkpointing"],
        processes=processes.count,
        parallel=settings["parallel"],
    )
    limit, device = settings["memory_limit_gb"], processes.device
    available = available_bytes(device, policy, processes=processes.count, limit_gib=limit)
    reserve = RESERVE_CUDA if device.type == "cuda" else 0.0
    wanted = check_memory(policy, chosen, available=available, reserve=reserve)
    if processes.is_main:
        print(wanted)


def _count(policy: VLAPolicy) -> str:
    size = sum(parameter.numel() for parameter in policy.parameters())
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    return f"{size / 1e6:.2f} M parameters" + ("" if trained == size else f" ({trained / 1e6:.2f} M trained)")


def _validation_batches(dataset: ChunkDataset, size: int, count: int = 4) -> list[Batch]:
    """A few batches of frames spread evenly over the held-out episodes."""
    rows_N = np.linspace(0, len(dataset) - 1, min(len(dataset), size * count)).round().astype(np.int64)
    return [dataset.batch(rows_B) for rows_B in np.array_split(rows_N, -(-len(rows_N) // size))]


def _prepare(out: Path, settings: dict[str, Any], *, frames: int, processes: Processes) -> None:
    """Makes the run directory say what it is, or checks that it is a run with the same settings.

    Raises:
        GrasplineError: `out` holds checkpoints of another run.
    """
    wanted = {key: value for key, value in settings.items() if key not in FREE} | {"frames": frames}
    path = out / "train.yaml"
    if not settings["resume"]:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        (out / "metrics.jsonl").unlink(missing_ok=True)
    elif (out / "checkpoints").is_dir() and path.exists():
        found: Any = OmegaConf.to_container(OmegaConf.load(path))
        found = {key: value for key, value in {**BEFORE, **found}.items() if key not in FREE}
        if differing := _differences(found, wanted):
            raise GrasplineError(
                f"out={out} holds a run with other settings: {'; '.join(differing)}. "
                "Give another out=, the same settings, or resume=false to start over"
            )
    out.mkdir(parents=True, exist_ok=True)
    part = out / ".train.yaml.part"
    part.write_text(OmegaConf.to_yaml(OmegaConf.create(wanted)))
    part.replace(path)
    write_json(out / "provenance.json", {**software(), **describe(processes)})


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines like `lr was 0.0006, now 0.001`."""
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} was {old}, now {new}")
    return lines


def _report(out: Path) -> None:
    rows = read_metrics(out / "metrics.jsonl")
    speeds = [row["steps_per_s"] for row in rows if "steps_per_s" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, {np.median(speeds):.2f} steps/s; policy in {out}")


if __name__ == "__main__":
    entry("train", main)
