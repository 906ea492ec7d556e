"""SPIN (68): demonstrations preferred to the last iterate's own answers, which is also the reference. Arithmetic.

The control goes on with plain fine-tuning on the same demonstrations for as many steps.
"""

import torch
from torch import Tensor, nn

from agents.batch import TokenBatch, answered, pack
from agents.envs.arithmetic import Question
from agents.objectives.pair import pair_loss, pair_margin
from agents.objectives.reduce import sequence_sum
from agents.policies.decoder import frozen_copy, token_logp
from agents.recipes.sums import BOOK, accuracy, attempts, demonstration, drawn_from, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood


def spin(
    *, seed: int, pretrain: int, rounds: int, steps: int, batch: int, examples: int, beta: float, lr: float, test: int
) -> Effect:
    """Args:
    seed: of weights, questions and samples.
    pretrain: supervised steps before.
    rounds: iterations, each with the policy at its beginning as the opponent.
    steps: optimiser steps of an iteration.
    batch: pairs a step.
    examples: of the training set.
    beta: of the pair loss.
    lr: learning rate.
    test: held-out questions.
    """
    tasks = fixed_set(examples, seed=seed)
    control = pretrained(seed=seed, steps=pretrain)
    scores = {"before": accuracy(control, count=test)}
    train(learner(control, lr=lr, seed=seed), drawn_from(tasks, batch), likelihood, steps=rounds * steps)
    policy = pretrained(seed=seed, steps=pretrain)
    for number in range(rounds):
        opponent = frozen_copy(policy)

        def draw(_: nn.Module, generator: torch.Generator, opponent: nn.Module = opponent) -> TokenBatch:
            chosen = torch.randint(len(tasks), (batch,), generator=generator).tolist()
            return pairs([tasks[each] for each in chosen], opponent, generator)

        def objective(policy: nn.Module, rows: TokenBatch, _: Tensor, opponent: nn.Module = opponent) -> Tensor:
            return pair_objective(policy, opponent, rows, beta)

        train(learner(policy, lr=lr, seed=seed + number), draw, objective, steps=steps)
    scores |= {"SFT": accuracy(control, count=test), "SPIN": accuracy(policy, count=test)}
    return Effect(
        scores=scores,
        baseline="SFT",
        method="SPIN",
        measure="accuracy on held-out sums of two digits",
        budget=f"{pretrain} supervised steps, then {rounds} x {steps} steps of {batch} from {examples} demonstrations",
    )


def pairs(tasks: list[Question], opponent: nn.Module, generator: torch.Generator) -> TokenBatch:
    """Rows in turn: a demonstration, and the opponent's answer to the same question."""
    own = attempts(opponent, tasks, generator)
    both = [
        (demonstration(task), answered(BOOK.encode(task.prompt), ids)) for task, ids in zip(tasks, own, strict=True)
    ]
    return pack([row for pair in both for row in pair])


def pair_objective(policy: nn.Module, reference: nn.Module, rows: TokenBatch, beta: float) -> Tensor:
    """Mean pair loss of rows that alternate between chosen and rejected; the batch must not be cut inside a pair."""
    logp_B = sequence_sum(token_logp(policy, rows.inputs_BN, rows.targets_BN), rows.mask_BN)
    with torch.no_grad():
        ref_B = sequence_sum(token_logp(reference, rows.inputs_BN, rows.targets_BN), rows.mask_BN)
    margin_B = pair_margin(logp_B[::2], logp_B[1::2], ref_B[::2], ref_B[1::2])
    return pair_loss(margin_B, beta).mean()
