"""RAFT (58): sample several answers, keep the best of each question, fine-tune on it, repeat. Arithmetic.

The control trains on the same number of own answers without ranking them.
"""

import torch
from torch import nn

from agents.batch import TokenBatch, answered, pack
from agents.envs.arithmetic import Question
from agents.recipes.sums import BOOK, accuracy, attempts, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood


def raft(*, seed: int, pretrain: int, steps: int, tasks: int, samples: int, lr: float, test: int) -> Effect:
    """Args:
    seed: of weights, questions and samples.
    pretrain: supervised steps before.
    steps: rounds of sampling, each with one optimiser step.
    tasks: questions a round.
    samples: answers a question.
    lr: learning rate.
    test: held-out questions.
    """
    scores = {"before": accuracy(pretrained(seed=seed, steps=pretrain), count=test)}
    pool = fixed_set(2000, seed=seed)
    for arm, ranked in (("unranked", False), ("RAFT", True)):
        policy = pretrained(seed=seed, steps=pretrain)

        def draw(policy: nn.Module, generator: torch.Generator, ranked: bool = ranked) -> TokenBatch | None:
            chosen = torch.randint(len(pool), (tasks,), generator=generator).tolist()
            return best_of([pool[number] for number in chosen], policy, generator, samples=samples, ranked=ranked)

        train(learner(policy, lr=lr, seed=seed), draw, likelihood, steps=steps)
        scores[arm] = accuracy(policy, count=test)
    return Effect(
        scores=scores,
        baseline="before",
        method="RAFT",
        measure="accuracy on held-out sums of two digits",
        budget=f"{pretrain} supervised steps, then {steps} rounds of {tasks} x {samples} samples",
    )


def best_of(
    tasks: list[Question], policy: nn.Module, generator: torch.Generator, *, samples: int, ranked: bool
) -> TokenBatch | None:
    """One answer for each task: a right one, where there is any, or whichever came first where not ranked."""
    repeated = [task for task in tasks for _ in range(samples)]
    answers = attempts(policy, repeated, generator)
    kept = []
    for number, task in enumerate(tasks):
        own = answers[number * samples : (number + 1) * samples]
        right = [ids for ids in own if BOOK.decode(ids) == task.answer] if ranked else own
        if right:
            kept.append(answered(BOOK.encode(task.prompt), right[0]))
    return pack(kept) if kept else None
