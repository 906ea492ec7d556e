"""Editing facts by plain fine-tuning, done right: one matrix, all edits together, and stop in time.

Fine-tuning has a bad name as an editor because edits were made one by one to convergence (depth first), each undoing
the others. LocFT-BF goes over all edits again and again in mini-batches (breadth first), changes only one layer's MLP
down-projection, and stops when the loss is small. Which layer is best depends on the model: sweep it.

Source: "Fine-tuning done right in model editing", 2025; Adam at 5e-4, batches of 100, 25 rounds, threshold 0.01.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from agents.objectives.reduce import require_finite


def train_only(model: nn.Module, name: str) -> nn.Parameter:
    """Freezes `model` but for the parameter `name`, e.g. "model.layers.22.mlp.down_proj.weight"."""
    parameters = dict(model.named_parameters())
    if name not in parameters:
        ending = name.rpartition(".layers.")[2].partition(".")[2] or name
        like = [other for other in parameters if other.endswith(ending)] or list(parameters)
        raise ValueError(f"the model has no parameter {name!r}, but e.g. {', '.join(like[:5])}")
    model.requires_grad_(False)
    parameters[name].requires_grad = True
    return parameters[name]


def edit_breadth_first[E](
    parameter: nn.Parameter,
    edits: Sequence[E],
    losses_of: Callable[[Sequence[E]], Tensor],
    *,
    rate: float = 5e-4,
    batch: int = 100,
    rounds: int = 25,
    threshold: float = 1e-2,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Changes `parameter` in place until the edits hold; returns the mean loss of each round.

    A batch whose loss is below the threshold is not trained, and the rounds end when their mean is.

    Args:
        parameter: of `train_only`.
        edits: e.g. prompts with the new answers, each answer ended by the end token.
        losses_of: some edits to their losses (n,), the mean over the answer's tokens.
        rate: Adam's.
        batch: edits a step.
        rounds: at most.
        threshold: see above.
        generator: shuffles.
    """
    optimizer = torch.optim.Adam([parameter], lr=rate)
    means: list[float] = []
    for _ in range(rounds):
        order = torch.randperm(len(edits), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(edits), batch):
            chosen = [edits[i] for i in order[start : start + batch]]
            total += _step(optimizer, losses_of(chosen), threshold) * len(chosen)
        means.append(total / len(edits))
        if means[-1] < threshold:
            break
    return means


def edit_depth_first[E](
    parameter: nn.Parameter,
    edits: Sequence[E],
    losses_of: Callable[[Sequence[E]], Tensor],
    *,
    rate: float = 5e-4,
    steps: int = 25,
    threshold: float = 1e-2,
) -> None:
    """The baseline: each edit to convergence, one after the other, with a fresh optimiser."""
    for edit in edits:
        optimizer = torch.optim.Adam([parameter], lr=rate)
        for _ in range(steps):
            if _step(optimizer, losses_of([edit]), threshold) < threshold:
                break


def _step(optimizer: torch.optim.Optimizer, losses: Tensor, threshold: float) -> float:
    require_finite("the loss of an edit", losses)
    loss = losses.mean()
    if loss.item() >= threshold:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
