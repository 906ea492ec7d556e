"""S3FT (99): where the model's own answer is right, train on it, else on the reference in the model's own words.

Sums and differences; the references are written in another style (a "." before the answer), which the judge accepts.
Fine-tuning on references teaches the style too, and what the model could do before suffers: that is measured.
"""

from collections.abc import Sequence

import torch
from torch import nn

from agents.batch import Example, TokenBatch, answered, ended, pack
from agents.envs.arithmetic import Question, questions
from agents.recipes.sums import BOOK, accuracy, attempts, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood


def s3ft(*, seed: int, pretrain: int, steps: int, batch: int, examples: int, lr: float, test: int) -> Effect:
    """Args:
    seed: of weights and batches.
    pretrain: supervised steps on sums before.
    steps: optimiser steps on differences.
    batch: examples a step.
    examples: of the training set.
    lr: learning rate.
    test: held-out questions of each kind.
    """
    tasks = fixed_set(examples, seed=seed, sign="-")
    scores = {"before": accuracy(pretrained(seed=seed, steps=pretrain), count=test)}
    for arm, selective in (("SFT", False), ("S3FT", True)):
        policy = pretrained(seed=seed, steps=pretrain)
        rows = targets(policy, tasks, selective=selective)

        def draw(_: nn.Module, generator: torch.Generator, rows: list[Example] = rows) -> TokenBatch:
            return pack([rows[n] for n in torch.randint(len(rows), (batch,), generator=generator).tolist()])

        train(learner(policy, lr=lr, seed=seed), draw, likelihood, steps=steps)
        scores |= {arm: accuracy(policy, count=test), f"{arm}, new task": judged_accuracy(policy, count=test)}
    return Effect(
        scores=scores,
        baseline="SFT",
        method="S3FT",
        measure="accuracy kept on held-out sums after fine-tuning on differences",
        budget=f"{pretrain} supervised steps on sums, then {steps} steps of {batch} from {examples} differences",
    )


def judge(said: str, task: Question) -> bool:
    """Whether an answer says the right thing, in either style."""
    return said.removeprefix(".") == task.answer


def targets(policy: nn.Module, tasks: Sequence[Question], *, selective: bool) -> list[Example]:
    """The reference of each task, or the own answer where it is right, or the reference in the own style."""
    own = [BOOK.decode(ids) for ids in attempts(policy, tasks, None, temperature=0)]
    rows = []
    for task, said in zip(tasks, own, strict=True):
        text = "." + task.answer
        if selective:
            text = said if judge(said, task) else text.removeprefix(".")
        rows.append(answered(BOOK.encode(task.prompt), ended(BOOK.encode(text)), expert=True))
    return rows


def judged_accuracy(policy: nn.Module, *, count: int) -> float:
    """Share of held-out differences that are right in either style."""
    generator = torch.Generator().manual_seed(79)
    tasks = questions(count, digits=2, generator=generator, held_out=True, sign="-")
    own = [BOOK.decode(ids) for ids in attempts(policy, tasks, None, temperature=0)]
    return sum(judge(said, task) for said, task in zip(own, tasks, strict=True)) / count
