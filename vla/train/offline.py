"""Supervised training on recorded chunks: `fit`, a plain function.

Nothing in it remembers: batches, learning rate and randomness are functions of the step, so a run that is killed
continues from its last checkpoint exactly as if it had never stopped (same machine, same number of threads).

A step's batch may be computed in parts, one after the other and in several processes: the loss is the mean over valid
actions of all of them together, so how the batch is cut changes memory and speed but not what is learnt.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from agents.objectives.reduce import masked_mean
from vla.core.errors import NonFiniteError
from vla.data.batch import Batch
from vla.policies.vla import VLAPolicy
from vla.train.checkpoint import frozen_hash, latest_checkpoint, load_checkpoint, save_checkpoint
from vla.train.distributed import Processes, parts, whole
from vla.train.metrics import Metrics
from vla.train.optim import Average, trained_tensors


def fit(
    policy: VLAPolicy,
    batches_from: Callable[[int], Iterator[Batch]],
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    average: Average,
    metrics: Metrics,
    processes: Processes,
    steps: int,
    seed: int,
    out: Path,
    accumulate: int = 1,
    max_grad_norm: float = 1.0,
    checkpoint_every: int = 500,
    validation: Sequence[Batch] = (),
) -> None:
    """Trains `policy` to `steps` optimiser steps, going on from the newest checkpoint in `out`, if any.

    The policy ends with its averaged weights, in evaluation mode.

    Args:
        policy: on `processes.device` and passed through `processes.shard`; `average` was made from it.
        batches_from: the endless batches from a step on.
        optimizer: AdamW or another; its `lr` default is the highest learning rate.
        schedule: step to factor on the learning rate.
        average: moving average of the weights.
        metrics: where rows go.
        processes: of which this is one.
        steps: in all, those before an interruption included.
        seed: of augmentation and noise.
        out: run directory; gets `checkpoints/`, and `nonfinite/` if it comes to that.
        accumulate: parts in which a process computes its share of a batch, at least one row each.
        max_grad_norm: longer gradients are scaled down to this norm.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        validation: held-out batches, whose loss is measured at each checkpoint.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite; batch and weights are kept in `out/nonfinite`.
        CorruptFileError: the newest checkpoint is damaged.
        GrasplineError: it was trained on other frozen weights.
    """
    newest, base = latest_checkpoint(out), frozen_hash(policy)
    state: Any = {"module": policy, "average": average, "optimizer": optimizer, "base": base}
    start = load_checkpoint(newest, **state) if newest else 0
    network, rate = processes.wrap(policy), optimizer.defaults["lr"]
    policy.train()
    metrics.begin(start)
    with closing(batches_from(start)) as batches:  # pyright: ignore[reportArgumentType]
        for step, batch in zip(range(start, steps), batches):
            torch.manual_seed(_seed_of_step(seed, step, processes.rank))
            batch = processes.share(batch).to(processes.device)
            lr = set_rate(optimizer, rate * schedule(step))
            loss, grad_norm = gradient(network, batch, processes, max_grad_norm, accumulate)
            if not np.isfinite([loss, grad_norm]).all():
                folder = _keep_evidence(out, policy, batch, step)
                raise NonFiniteError(
                    f"step {step}: loss {loss}, gradient norm {grad_norm}; batch and weights are in {folder}"
                )
            optimizer.step()
            average.update(policy, step)
            metrics.step(step + 1, loss=loss, grad_norm=grad_norm, lr=lr)
            if (step + 1) % checkpoint_every == 0 or step + 1 == steps:
                if validation:
                    metrics.log(step + 1, {"val_loss": validation_loss(policy, average, validation, processes)})
                save_checkpoint(out, step=step + 1, **state, write=processes.is_main)
                processes.wait()
    metrics.end()
    average.give(policy)
    policy.eval()


def gradient(
    network: nn.Module, batch: Batch, processes: Processes, max_grad_norm: float, accumulate: int = 1
) -> tuple[float, float]:
    """Leaves the step's clipped gradient in the weights.

    The loss is the mean over valid actions of the whole step, in all processes and all their parts together.

    Returns:
        That loss, and the gradient's norm before clipping.
    """
    network.zero_grad(set_to_none=True)
    valid = processes.sum(batch.mask_BH.sum())
    loss = torch.zeros((), device=processes.device)
    for number, part in enumerate(parts(batch, accumulate), start=1):
        with processes.alone(network) if number < accumulate else nullcontext():
            with processes.autocast():
                loss_BH = network(part)
            # Wrapped networks average gradients over processes; the mean over actions needs their sum.
            share = masked_mean(loss_BH.float(), part.mask_BH, total=valid / processes.count)
            share.backward()
        loss += share.detach()
    norm = whole(nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm))
    return float(processes.sum(loss)) / processes.count, float(norm)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Gives every parameter group the learning rate `lr`, and returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


@torch.no_grad()
def validation_loss(policy: VLAPolicy, average: Average, batches: Sequence[Batch], processes: Processes) -> float:
    """Mean loss over all valid actions of `batches`, with averaged weights and without augmentation."""
    policy.eval()
    average.swap(policy)
    losses: list[Tensor] = []
    for batch in batches:
        batch = batch.to(processes.device)
        with processes.autocast():
            losses.append(policy(batch)[batch.mask_BH].float())
    average.swap(policy)
    policy.train()
    return float(torch.cat(losses).mean())


def _seed_of_step(seed: int, step: int, rank: int) -> int:
    """One seed per step and process, so that nothing random has to be stored to resume."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _keep_evidence(out: Path, policy: VLAPolicy, batch: Batch, step: int) -> Path:
    """Writes what is needed to see the failure again: the batch as the step got it, and the weights before it."""
    folder = out / "nonfinite"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, folder / "batch.safetensors")
    weights = {name: whole(value.detach()).cpu().contiguous() for name, value in trained_tensors(policy).items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "step.json").write_text(json.dumps({"step": step, "instructions": list(batch.instructions)}, indent=2))
    return folder
