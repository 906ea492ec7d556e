"""FAFT (15): train on good and bad attempts alike, each behind what the judge said of it; ask with "all right" at test.

Arithmetic. All arms may use the same few demonstrations and the same sampled answers: fine-tuning takes the
demonstrations alone, rejection sampling the right answers too, FAFT every answer with its feedback.
"""

from collections.abc import Sequence

import torch
from torch import nn

from agents.batch import Example, TokenBatch, answered, ended, pack
from agents.envs.arithmetic import Question, questions, share_right
from agents.policies.decoder import sample
from agents.recipes.sums import BOOK, LIMIT, attempts, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood

RIGHT, WRONG = ".", "x"


def feedback(
    *, seed: int, pretrain: int, steps: int, batch: int, examples: int, sampled: int, lr: float, test: int
) -> Effect:
    """Args:
    seed: of weights, questions and samples.
    pretrain: supervised steps before.
    steps: optimiser steps of each arm.
    batch: examples a step.
    examples: demonstrations.
    sampled: further questions, with one sampled answer each.
    lr: learning rate.
    test: held-out questions.
    """
    start = pretrained(seed=seed, steps=pretrain)
    gold, more = fixed_set(examples, seed=seed), fixed_set(sampled, seed=seed + 500)
    own = [BOOK.decode(ids) for ids in attempts(start, more, torch.Generator().manual_seed(seed))]
    right = [(task, said) for task, said in zip(more, own, strict=True) if said == task.answer]
    shown = [(task, task.answer) for task in gold]
    arms: dict[str, tuple[list[Example], str]] = {
        "SFT": ([row("", task, said) for task, said in shown], ""),
        "rejection sampling": ([row("", task, said) for task, said in [*shown, *right]], ""),
        "FAFT": ([row(told(task, said), task, said) for task, said in [*shown, *zip(more, own, strict=True)]], RIGHT),
    }
    scores = {}
    for arm, (rows, front) in arms.items():
        policy = pretrained(seed=seed, steps=pretrain)

        def draw(_: nn.Module, generator: torch.Generator, rows: list[Example] = rows) -> TokenBatch:
            return pack([rows[n] for n in torch.randint(len(rows), (batch,), generator=generator).tolist()])

        train(learner(policy, lr=lr, seed=seed), draw, likelihood, steps=steps)
        scores[arm] = accuracy_behind(policy, front, count=test)
    return Effect(
        scores=scores,
        baseline="SFT",
        method="FAFT",
        measure="accuracy on held-out sums of two digits",
        budget=f"{pretrain} supervised steps, then {steps} steps of {batch}; "
        f"{examples} demonstrations, {sampled} samples",
    )


def told(task: Question, said: str) -> str:
    """The judge's word."""
    return RIGHT if said == task.answer else WRONG


def row(front: str, task: Question, said: str) -> Example:
    """A question behind the feedback, and the answer that had it."""
    return answered(BOOK.encode(front + task.prompt), ended(BOOK.encode(said)))


def accuracy_behind(policy: nn.Module, front: str, *, count: int) -> float:
    """Share of held-out questions answered exactly with `front` before them."""
    tasks: Sequence[Question] = questions(count, digits=2, generator=torch.Generator().manual_seed(77), held_out=True)
    drawn = sample(policy, [BOOK.encode(front + task.prompt) for task in tasks], limit=LIMIT, temperature=0)
    return share_right([BOOK.decode(ids) for ids in drawn], tasks)
