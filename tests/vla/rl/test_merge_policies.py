"""Two specialists of one base, merged: both tasks are kept where each has its own weights, and what breaks it is seen.

Actors without hidden layers: within a shared trunk specialists interfere, which is a measurement
(docs/shared_objectives.md) and no property of the merge.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from agents.adapters.merge import breadcrumbs, task_arithmetic, ties
from vla.rl.actors.l1 import L1Actor
from vla.rl.learner import adam, minimise
from vla.rl.problem import Problem

PROBLEM = Problem(features=4, horizon=2, binary=(False, False), discount=0.9, low=0.0, high=1.0)
MERGES: dict[str, Callable] = {
    "task_arithmetic": lambda base, tuned: task_arithmetic(base, tuned, 1.0),
    "ties": lambda base, tuned: ties(base, tuned, 1.0, keep=0.6),
    "breadcrumbs": lambda base, tuned: breadcrumbs(base, tuned, 1.0, keep=0.9, remove=0.01),
}


def task(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features whose first two say which task it is; the third is for task 1 alone, the fourth for task 2."""
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.rand(256, 4, generator=generator) * 2 - 1
    features_BD[:, :2] = torch.tensor([1.0, 0.0] if number == 1 else [0.0, 1.0])
    features_BD[:, 3 if number == 1 else 2] = 0.0
    wanted_B = features_BD[:, 2] if number == 1 else -features_BD[:, 3]
    return features_BD, (0.8 * wanted_B)[:, None, None].expand(-1, 2, 2)


def fitted(actor: L1Actor, numbers: list[int], steps: int, share: float = 1.0) -> L1Actor:
    optimizer = adam(actor, 1e-2)
    for step in range(steps):
        losses = [actor.loss_BH(f, share * a).mean() for f, a in (task(number, step) for number in numbers)]
        minimise(optimizer, torch.stack(losses).mean())
    return actor


def error(state: dict[str, Tensor], number: int) -> float:
    actor = L1Actor(problem=PROBLEM, width=1, layers=0)
    actor.load_state_dict(state)
    features_BD, actions_BHA = task(number, 10_000)
    with torch.no_grad():
        return float((actor.mean(features_BD) - actions_BHA).abs().mean())


@pytest.fixture(scope="module")
def states() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A base that does both tasks by halves, and one specialist for each."""
    torch.manual_seed(0)
    base = fitted(L1Actor(problem=PROBLEM, width=1, layers=0), [1, 2], 200, share=0.5).state_dict()
    tuned = []
    for number in (1, 2):
        actor = L1Actor(problem=PROBLEM, width=1, layers=0)
        actor.load_state_dict(base)
        tuned.append(fitted(actor, [number], 60).state_dict())
    return base, tuned


@pytest.mark.parametrize("name", MERGES)
def test_both_tasks_are_kept(states, name: str) -> None:
    base, tuned = states
    merged = MERGES[name](base, tuned)
    for number in (1, 2):
        start, own = error(base, number), error(tuned[number - 1], number)
        assert own < 0.4 * start, "the specialist learnt its task"
        assert error(merged, number) < start - 0.8 * (start - own), "the merge keeps most of what it gained"


def test_a_plain_mean_of_weights_keeps_only_half(states) -> None:
    """The bug that the scale guards against: averaged, each task vector counts half."""
    base, tuned = states
    mean = {name: (tuned[0][name] + tuned[1][name]) / 2 for name in base}
    for number in (1, 2):
        start, own = error(base, number), error(tuned[number - 1], number)
        assert error(mean, number) > start - 0.7 * (start - own)
