"""RISE (24): learn to mend one's own wrong answers over several turns. Arithmetic.

Turn one is the policy's own, turn two the best of its own further samples; only that last turn is trained, with weight
exp(reward / tau). The control fine-tunes on as many right answers in one turn (rejection sampling); it is asked again
in the same way and, which is the baseline, afresh: as many independent attempts.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from agents.batch import TokenBatch, answered, ended, pack
from agents.envs.arithmetic import ArithmeticEnv, Question, questions
from agents.policies.decoder import sample
from agents.recipes.raft import best_of
from agents.recipes.sums import BOOK, LIMIT, attempts, fixed_set, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood


def rise(
    *, seed: int, pretrain: int, steps: int, tasks: int, samples: int, tau: float, lr: float, turns: int, test: int
) -> Effect:
    """Args:
    seed: of weights, questions and samples.
    pretrain: supervised steps before.
    steps: rounds, each with one optimiser step.
    tasks: questions a round.
    samples: further answers to each question.
    tau: temperature of the weight.
    lr: learning rate.
    turns: attempts at test.
    test: held-out questions.
    """
    pool, scores = fixed_set(2000, seed=seed), {}

    def chosen(generator: torch.Generator) -> list[Question]:
        return [pool[number] for number in torch.randint(len(pool), (tasks,), generator=generator).tolist()]

    def draw_control(policy: nn.Module, generator: torch.Generator) -> TokenBatch | None:
        return best_of(chosen(generator), policy, generator, samples=samples, ranked=True)

    def draw_rise(policy: nn.Module, generator: torch.Generator) -> TokenBatch | None:
        return improvements(chosen(generator), policy, generator, samples=samples, tau=tau)

    for arm, draw in (("rejection sampling", draw_control), ("RISE", draw_rise)):
        policy = pretrained(seed=seed, steps=pretrain)
        train(learner(policy, lr=lr, seed=seed), draw, likelihood, steps=steps)
        solved = turn_accuracy(policy, turns=turns, count=test)
        scores |= {arm: solved[-1], f"{arm}, first turn": solved[0]}
        scores[f"{arm}, afresh"] = turn_accuracy(policy, turns=turns, count=test, afresh=True)[-1]
    return Effect(
        scores=scores,
        baseline="rejection sampling, afresh",
        method="RISE",
        measure=f"held-out sums of two digits solved within {turns} turns",
        budget=f"{pretrain} supervised steps, then {steps} rounds of {tasks} x {samples} samples",
    )


def improvements(
    tasks: Sequence[Question], policy: nn.Module, generator: torch.Generator, *, samples: int, tau: float
) -> TokenBatch | None:
    """For each question a first answer, which is context, and a right one of the further samples, which is trained."""
    first = [BOOK.decode(ids) for ids in attempts(policy, tasks, generator)]
    contexts = [context(task, [said]) for task, said in zip(tasks, first, strict=True)]
    again = sample(policy, [each for each in contexts for _ in range(samples)], limit=LIMIT, generator=generator)
    fresh = attempts(policy, [task for task in tasks for _ in range(samples)], generator)
    kept = []
    for number, (task, said) in enumerate(zip(tasks, first, strict=True)):
        own = [*again[number * samples :][:samples], *fresh[number * samples :][:samples]]
        right = [ids for ids in own if BOOK.decode(ids) == task.answer]
        if said == task.answer:  # nothing to mend: the first turn itself is kept
            kept.append(answered(BOOK.encode(task.prompt), ended(BOOK.encode(said)), weight=math.exp(1 / tau)))
        elif right:
            kept.append(answered(contexts[number], right[0], weight=math.exp(1 / tau)))
    return pack(kept) if kept else None


def context(task: Question, said: Sequence[str]) -> list[int]:
    """The question, and the last answer with the world's "x" after it: a window of two turns."""
    return BOOK.encode(task.prompt + "".join(f"{each}x" for each in said[-1:]))


@torch.no_grad()
def turn_accuracy(policy: nn.Module, *, turns: int, count: int, afresh: bool = False) -> list[float]:
    """Share solved after each turn; the first turn is greedy, later ones sampled, since a repeat could not help.

    Args:
        policy: answers.
        turns: attempts at each question, until one is right.
        count: held-out questions.
        afresh: the question alone is shown each time, not the wrong answer.
    """
    tasks = questions(count, digits=2, generator=torch.Generator().manual_seed(77), held_out=True)
    worlds, generator = [ArithmeticEnv(turns=turns) for _ in tasks], torch.Generator().manual_seed(78)
    said: list[list[str]] = [[] for _ in tasks]
    for world, task in zip(worlds, tasks, strict=True):
        world.reset(task)
    shares = []
    for turn in range(turns):
        open_ = [number for number, world in enumerate(worlds) if not world.ended]
        prompts = [context(tasks[number], [] if afresh else said[number]) for number in open_]
        temperature = 1.0 if turn else 0.0
        drawn = sample(policy, prompts, limit=LIMIT, temperature=temperature, generator=generator) if open_ else []
        for number, ids in zip(open_, drawn, strict=True):
            said[number].append(BOOK.decode(ids))
            worlds[number].step(said[number][-1])
        shares.append(sum(world.success for world in worlds) / count)
    return shares
