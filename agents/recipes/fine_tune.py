"""Other losses on the same demonstrations: masked thought (34), one-token rollouts (38), inverse soft-Q (104).

Arithmetic; every arm starts from the same weights and sees the same batches of a small training set.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from agents.batch import TokenBatch
from agents.objectives.masks import corrupt_inputs
from agents.policies.decoder import Decoder
from agents.recipes.sums import BOOK, accuracy, drawn_from, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import Draw, Objective, learner, train
from agents.train.losses import dynamic_likelihood, inverse_soft_q, likelihood, one_token_rollout


def _run(*, seed: int, pretrain: int, draw: Draw, objective: Objective, steps: int, lr: float) -> Decoder:
    policy = pretrained(seed=seed, steps=pretrain)
    train(learner(policy, lr=lr, seed=seed), draw, objective, steps=steps)
    return policy


def _budget(pretrain: int, steps: int, batch: int, examples: int) -> str:
    return f"{pretrain} supervised steps, then {steps} steps of {batch} from {examples} demonstrations"


def masked_thought(
    *, seed: int, pretrain: int, steps: int, batch: int, examples: int, rate: float, lr: float, test: int
) -> Effect:
    """MFT: a share of the answer's input ids is hidden, rising to `rate` over the first two thirds of the steps.

    Args:
        seed: of weights and batches.
        pretrain: supervised steps before, on fresh sums.
        steps: optimiser steps.
        batch: demonstrations a step.
        examples: of the training set.
        rate: the largest share that is hidden.
        lr: learning rate.
        test: held-out questions.
    """
    plain = drawn_from(fixed_set(examples, seed=seed), batch)
    drawn = 0

    def masked(policy: nn.Module, generator: torch.Generator) -> TokenBatch:
        nonlocal drawn
        drawn += 1
        rows = plain(policy, generator)
        assert rows is not None
        return hide(rows, min(rate, rate * drawn / (2 / 3 * steps)), generator)

    scores = {}
    for arm, draw in (("SFT", plain), ("MFT", masked)):
        policy = _run(seed=seed, pretrain=pretrain, draw=draw, objective=likelihood, steps=steps, lr=lr)
        scores[arm] = accuracy(policy, count=test)
    return Effect(
        scores=scores,
        baseline="SFT",
        method="MFT",
        measure="accuracy on held-out sums of two digits",
        budget=_budget(pretrain, steps, batch, examples),
    )


def hide(batch: TokenBatch, rate: float, generator: torch.Generator) -> TokenBatch:
    """The batch with random digits in place of some of the answer's inputs; targets stay whole."""
    answer_BN = torch.cat([torch.zeros_like(batch.mask_BN[:, :1]), batch.mask_BN[:, :-1]], dim=1)
    mask_id = BOOK.encode("?")[0]
    inputs_BN = corrupt_inputs(batch.inputs_BN, answer_BN, rate, mask_id=mask_id, generator=generator)
    return replace(batch, inputs_BN=inputs_BN)


def one_token(
    *, seed: int, pretrain: int, steps: int, batch: int, examples: int, beta: float, kappa: float, lr: float, test: int
) -> Effect:
    """OTR against DFT, which it equals at kappa = 1 but for a factor; SFT stands beside.

    Args:
        seed: see `masked_thought`, as for the rest that is not here.
        pretrain: see there.
        steps: see there.
        batch: see there.
        examples: see there.
        beta: reward of a token that is not the label.
        kappa: temperature of the draws.
        lr: see there.
        test: see there.
    """
    draw = drawn_from(fixed_set(examples, seed=seed), batch)
    rollout = partial(one_token_rollout, beta=beta, kappa=kappa)
    scores = {}
    for arm, objective in (("SFT", likelihood), ("DFT", dynamic_likelihood), ("OTR", rollout)):
        policy = _run(seed=seed, pretrain=pretrain, draw=draw, objective=objective, steps=steps, lr=lr)
        scores[arm] = accuracy(policy, count=test)
    return Effect(
        scores=scores,
        baseline="DFT",
        method="OTR",
        measure="accuracy on held-out sums of two digits",
        budget=_budget(pretrain, steps, batch, examples),
    )


def inverse_rl(
    *, seed: int, pretrain: int, steps: int, batch: int, examples: int, penalty: float, lr: float, test: int
) -> Effect:
    """Inverse soft-Q against plain likelihood.

    Args:
        seed: see `masked_thought`, as for the rest that is not here.
        pretrain: see there.
        steps: see there.
        batch: see there.
        examples: see there.
        penalty: lambda of the Bellman term.
        lr: see there.
        test: see there.
    """
    draw = drawn_from(fixed_set(examples, seed=seed), batch)
    scores = {}
    for arm, objective in (("SFT", likelihood), ("IRL", partial(inverse_soft_q, penalty=penalty))):
        policy = _run(seed=seed, pretrain=pretrain, draw=draw, objective=objective, steps=steps, lr=lr)
        scores[arm] = accuracy(policy, count=test)
    return Effect(
        scores=scores,
        baseline="SFT",
        method="IRL",
        measure="accuracy on held-out sums of two digits",
        budget=_budget(pretrain, steps, batch, examples),
    )
