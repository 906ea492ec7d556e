"""The loop of every recipe: collect, judge, select, batch, objective, update, evaluate.

A recipe gives two functions. `draw` makes the next batch: it may take rows of a dataset, or sample the policy, judge
the attempts and keep some. `objective` makes a batch into a loss. The rest is here: a loss is divided by the tokens of
the whole optimiser step, in however many parts it is computed (means of means had weakened published baselines, arXiv
2604.23747), and a run that is stopped and resumed gives the same weights, bit for bit.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agents.batch import TokenBatch

Objective = Callable[[nn.Module, TokenBatch, Tensor], Tensor]
Draw = Callable[[nn.Module, torch.Generator], TokenBatch | None]


@dataclass(kw_only=True, eq=False)
class Learner:
    """A policy and all that the next step depends on."""

    policy: nn.Module
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    step: int = 0


def learner(policy: nn.Module, *, lr: float, seed: int) -> Learner:
    """AdamW without decay over what of the policy can be trained."""
    trained = [each for each in policy.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    return Learner(policy=policy, optimizer=optimizer, generator=torch.Generator().manual_seed(seed))


def update(
    state: Learner, batch: TokenBatch, objective: Objective, *, parts: int = 1, clip: float = 1.0
) -> dict[str, float]:
    """One optimiser step.

    Args:
        state: changed in place.
        batch: of the whole step.
        objective: (policy, part of the batch, tokens of the whole step) -> loss; it divides by the third.
        parts: how many the batch is cut into, one after another in memory.
        clip: largest norm of the gradient.
    """
    total, loss = batch.mask_BN.sum(), 0.0
    for rows in torch.arange(len(batch)).chunk(parts):
        part = objective(state.policy, batch.rows(rows), total)
        part.backward()
        loss += part.item()
    norm = nn.utils.clip_grad_norm_(state.optimizer.param_groups[0]["params"], clip).item()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return {"step": state.step, "loss": loss, "grad_norm": norm, "tokens": total.item()}


def train(
    state: Learner,
    draw: Draw,
    objective: Objective,
    *,
    steps: int,
    parts: int = 1,
    clip: float = 1.0,
    log: Path | None = None,
) -> list[dict[str, float]]:
    """Steps until `state.step` is `steps`; a draw of None is a batch with nothing to learn, which counts as a step.

    Args:
        state: changed in place; a resumed one goes on.
        draw: (policy, generator) -> batch.
        objective: see `update`.
        steps: in all.
        parts: see `update`.
        clip: see `update`.
        log: a file of JSON lines, appended to.
    """
    rows: list[dict[str, float]] = []
    while state.step < steps:
        batch = draw(state.policy, state.generator)
        if batch is None:
            state.step += 1
            continue
        rows.append(update(state, batch, objective, parts=parts, clip=clip))
        if log is not None:
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def save(state: Learner, path: Path) -> None:
    """All of it as one file of tensors, put in place at once."""
    tensors = {f"policy.{name}": value for name, value in state.policy.state_dict().items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    tensors |= {"generator": state.generator.get_state(), "step": torch.tensor(state.step)}
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
    partial.replace(path)


def load(state: Learner, path: Path) -> None:
    """Puts what `save` wrote into a learner made with the same settings."""
    tensors = load_file(path)
    state.policy.load_state_dict(_under(tensors, "policy."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        number, _, moment = name.partition(".")
        moments.setdefault(int(number), {})[moment] = value
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    state.generator.set_state(tensors["generator"])
    state.step = int(tensors["step"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
