"""Methods that work on weights: merging tuned models (54), editing facts into one matrix (70). Arithmetic."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from agents.adapters.edit import edit_breadth_first, edit_depth_first, train_only
from agents.adapters.merge import breadcrumbs, task_arithmetic
from agents.batch import pack
from agents.envs.arithmetic import Question, question, share_right
from agents.objectives.reduce import sequence_sum
from agents.policies.decoder import Decoder, token_logp
from agents.recipes.sums import BOOK, accuracy, attempts, demonstration, drawn_from, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood


def merging(
    *,
    seed: int,
    pretrain: int,
    steps: int,
    batch: int,
    examples: int,
    scales: Sequence[float],
    keep: float,
    remove: float,
    lr: float,
    test: int,
) -> Effect:
    """Breadcrumbs against task arithmetic: one base tuned to sums and to differences, merged, the best scale of each.

    Args:
        seed: of weights and batches.
        pretrain: supervised steps of the base, on sums and differences in turn.
        steps: optimiser steps of each tuned model.
        batch: examples a step.
        examples: of each training set.
        scales: tried by each way of merging.
        keep: share of a task vector that stays.
        remove: share of its largest entries that goes.
        lr: learning rate.
        test: held-out questions of each kind.
    """
    both = fixed_set(examples, seed=seed) + fixed_set(examples, seed=seed + 50, sign="-")
    torch.manual_seed(seed)
    base = Decoder(vocabulary=len(BOOK))
    train(learner(base, lr=3e-3, seed=seed), drawn_from(both, 128), likelihood, steps=pretrain)
    start = {name: value.clone() for name, value in base.state_dict().items()}
    tuned = []
    for sign, tasks in (("+", both[:examples]), ("-", both[examples:])):
        base.load_state_dict(start)
        train(learner(base, lr=lr, seed=seed + len(sign)), drawn_from(tasks, batch), likelihood, steps=steps)
        tuned.append({name: value.clone() for name, value in base.state_dict().items()})

    def score(weights: dict[str, Tensor]) -> float:
        base.load_state_dict(weights)
        return (accuracy(base, count=test) + accuracy(base, count=test, sign="-")) / 2

    ways: dict[str, Callable[[float], dict[str, Tensor]]] = {
        "task arithmetic": lambda scale: task_arithmetic(start, tuned, scale),
        "breadcrumbs": lambda scale: breadcrumbs(start, tuned, scale, keep=keep, remove=remove),
    }
    scores = {"base": score(start)}
    scores |= {arm: max(score(way(scale)) for scale in scales) for arm, way in ways.items()}
    return Effect(
        scores=scores,
        baseline="task arithmetic",
        method="breadcrumbs",
        measure="mean accuracy on held-out sums and differences, best of the scales",
        budget=f"base {pretrain} steps of 128, two tuned models of {steps} steps of {batch}, {len(scales)} scales",
    )


def editing(
    *, seed: int, pretrain: int, edits: int, rounds: int, rate: float, batch: int, layer: int, test: int
) -> Effect:
    """Edits all together (LocFT-BF) against one after the other, in the same matrix: how many hold at the end.

    Args:
        seed: of weights and edits.
        pretrain: supervised steps before.
        edits: questions that get a wrong answer, each its own.
        rounds: passes over all edits, or steps of each one.
        rate: Adam's learning rate.
        batch: edits a step, where they come together.
        layer: whose second matrix of the network is changed.
        test: held-out questions, for what is kept of the rest.
    """
    generator = torch.Generator().manual_seed(6000 + seed)
    changed = [wrong(task, generator) for task in fixed_set(edits, seed=seed)]
    scores: dict[str, float] = {}
    for arm in ("depth first", "breadth first"):
        policy = pretrained(seed=seed, steps=pretrain)
        matrix = train_only(policy, f"blocks.{layer}.mlp.2.weight")

        def losses_of(chosen: Sequence[Question], policy: nn.Module = policy) -> Tensor:
            rows = pack([demonstration(task) for task in chosen])
            logp_BN = token_logp(policy, rows.inputs_BN, rows.targets_BN)
            return -sequence_sum(logp_BN, rows.mask_BN) / rows.mask_BN.sum(dim=1)

        if arm == "depth first":
            edit_depth_first(matrix, changed, losses_of, rate=rate, steps=rounds)
        else:
            edit_breadth_first(matrix, changed, losses_of, rate=rate, batch=batch, rounds=rounds, generator=generator)
        said = [BOOK.decode(ids) for ids in attempts(policy, changed, None, temperature=0)]
        scores |= {arm: share_right(said, changed), f"{arm}, other sums": accuracy(policy, count=test)}
    return Effect(
        scores=scores,
        baseline="depth first",
        method="breadth first",
        measure="share of the edits that hold at the end",
        budget=f"{pretrain} supervised steps, then {edits} edits, at most {rounds} visits to each",
    )


def wrong(task: Question, generator: torch.Generator) -> Question:
    """The question with the answer of another one."""
    a, b = torch.randint(100, (2,), generator=generator).tolist()
    return Question(prompt=task.prompt, answer=question(a, b, digits=2).answer)
