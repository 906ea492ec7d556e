"""Demonstrations and reinforcement at once: CHORD (108) and Prefix-RFT (55), against fine-tuning first. Arithmetic.

The baseline is fine-tuning and then GRPO on exactly as many demonstrations and attempts, with the best of several
learning rates on separate questions; against weaker baselines mixed methods had looked better than they are
(arXiv 2604.23747). The mixed method gets the same sweep.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from agents.advantages import prefix_advantages
from agents.batch import Example, TokenBatch, answered, pack
from agents.envs.arithmetic import Question, questions, share_right
from agents.policies.decoder import Decoder, sample
from agents.recipes.sums import BOOK, LIMIT, accuracy, attempts, demonstration, fixed_set, group_batch, pretrained
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import blend, likelihood, reinforce


def mixed(
    *,
    seed: int,
    method: str,
    pretrain: int,
    steps: int,
    tasks: int,
    group: int,
    expert: int,
    share: float,
    weigh: bool,
    lrs: Sequence[float],
    test: int,
) -> Effect:
    """Args:
    seed: of weights, questions and samples.
    method: "CHORD" or "Prefix-RFT".
    pretrain: supervised steps before, on fresh sums.
    steps: rounds of attempts, each with one optimiser step; the baseline fine-tunes for as many before.
    tasks: questions a round.
    group: attempts a question.
    expert: demonstrations a round.
    share: CHORD's largest mu; it rises over a tenth of the steps and falls as a cosine to a tenth of itself.
    weigh: CHORD's token weight p (1 - p).
    lrs: tried by each arm.
    test: held-out questions.
    """
    if method not in ("CHORD", "Prefix-RFT"):
        raise ValueError(f"method is {method!r}, expected 'CHORD' or 'Prefix-RFT'")
    lesson = Lesson(
        pool=fixed_set(1000, seed=seed),
        seed=seed,
        steps=steps,
        tasks=tasks,
        group=group,
        expert=expert,
        share=share,
        weigh=weigh,
    )
    arms = {"SFT, then GRPO": lesson.first_then, method: lesson.chord if method == "CHORD" else lesson.prefixed}
    scores = {"before": accuracy(pretrained(seed=seed, steps=pretrain), count=test)}
    for arm, teach in arms.items():
        scores[arm] = accuracy(_best(teach, seed=seed, pretrain=pretrain, lrs=lrs, count=test), count=test)
    shown = expert if method == "CHORD" else tasks
    return Effect(
        scores=scores,
        baseline="SFT, then GRPO",
        method=method,
        measure="accuracy on held-out sums of two digits",
        budget=f"{pretrain} supervised steps, then {steps} x ({shown} demonstrations + {tasks} x {group} attempts), "
        f"best of {len(lrs)} learning rates",
    )


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What an arm has to teach with; fields as the arguments of `mixed`."""

    pool: Sequence[Question]
    seed: int
    steps: int
    tasks: int
    group: int
    expert: int
    share: float
    weigh: bool

    def first_then(self, policy: Decoder, lr: float) -> None:
        """Fine-tuning on all demonstrations, then GRPO."""

        def demonstrations(_: nn.Module, generator: torch.Generator) -> TokenBatch:
            return pack([demonstration(task) for task in self._chosen(self.expert, generator)])

        def own(policy: nn.Module, generator: torch.Generator) -> TokenBatch | None:
            rows = group_batch(policy, self._chosen(self.tasks, generator), self.group, generator)
            return pack(rows) if rows else None

        train(learner(policy, lr=lr, seed=self.seed), demonstrations, likelihood, steps=self.steps)
        train(learner(policy, lr=lr, seed=self.seed + 1), own, reinforce, steps=self.steps)

    def chord(self, policy: Decoder, lr: float) -> None:
        """Both in each step, the demonstrations with share mu."""

        def draw(policy: nn.Module, generator: torch.Generator) -> TokenBatch:
            demonstrations = [demonstration(task) for task in self._chosen(self.expert, generator)]
            own = group_batch(policy, self._chosen(self.tasks, generator), self.group, generator)
            return pack([*own, *demonstrations])

        state = learner(policy, lr=lr, seed=self.seed)
        for step in range(1, self.steps + 1):
            objective = partial(blend, share=mixing(step, self.steps, self.share), weigh=self.weigh)
            train(state, draw, objective, steps=step)

    def prefixed(self, policy: Decoder, lr: float) -> None:
        """Attempts, of which one in each group continues a demonstration's beginning, shorter and shorter."""
        state = learner(policy, lr=lr, seed=self.seed)

        def draw(policy: nn.Module, generator: torch.Generator) -> TokenBatch:
            lowest = 0.95 * 0.5 * (1 + math.cos(math.pi * state.step / self.steps))
            return pack(prefix_batch(policy, self._chosen(self.tasks, generator), self.group, lowest, generator))

        train(state, draw, reinforce, steps=self.steps)

    def _chosen(self, count: int, generator: torch.Generator) -> list[Question]:
        return [self.pool[number] for number in torch.randint(len(self.pool), (count,), generator=generator).tolist()]


def mixing(step: int, steps: int, peak: float) -> float:
    """CHORD's mu at a step counted from one."""
    rise = max(1, steps // 10)
    if step <= rise:
        return peak * step / rise
    fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return peak * (0.1 + 0.9 * fall)


def _best(
    teach: Callable[[Decoder, float], None], *, seed: int, pretrain: int, lrs: Sequence[float], count: int
) -> Decoder:
    """The policy of the learning rate that is best on questions of the training side that were not trained on."""
    tasks = questions(count, digits=2, generator=torch.Generator().manual_seed(555 + seed))
    tried = []
    for lr in lrs:
        policy = pretrained(seed=seed, steps=pretrain)
        teach(policy, lr)
        said = [BOOK.decode(ids) for ids in attempts(policy, tasks, None, temperature=0)]
        tried.append((share_right(said, tasks), policy))
    return max(tried, key=lambda each: each[0])[1]


def prefix_batch(
    policy: nn.Module, tasks: Sequence[Question], group: int, lowest: float, generator: torch.Generator
) -> list[Example]:
    """For each task `group - 1` own attempts and one that continues a demonstration's beginning.

    Args:
        policy: makes the attempts.
        tasks: questions.
        group: attempts a question.
        lowest: the share of the demonstration that is given is uniform between this and 0.95.
        generator: of the draws.
    """
    repeated = [task for task in tasks for _ in range(group - 1)]
    own = attempts(policy, repeated, generator)
    shares = lowest + (0.95 - lowest) * torch.rand(len(tasks), generator=generator)
    given = [
        BOOK.encode(task.answer[: int(u * len(task.answer))]) for task, u in zip(tasks, shares.tolist(), strict=True)
    ]
    starts = [BOOK.encode(task.prompt) + prefix for task, prefix in zip(tasks, given, strict=True)]
    rest = sample(policy, starts, limit=LIMIT, generator=generator)
    answers = own + [prefix + more for prefix, more in zip(given, rest, strict=True)]
    everyone = [*repeated, *tasks]
    prefix_lengths = [0] * len(repeated) + [len(prefix) for prefix in given]
    longest = max(len(answer) for answer in answers)
    prefix_BN = torch.arange(longest)[None] < torch.tensor(prefix_lengths)[:, None]
    right = [float(BOOK.decode(ids) == task.answer) for ids, task in zip(answers, everyone, strict=True)]
    groups_B = torch.cat([torch.arange(len(tasks)).repeat_interleave(group - 1), torch.arange(len(tasks))])
    advantages_BN = prefix_advantages(torch.tensor(right), groups_B, torch.zeros_like(groups_B), prefix_BN)
    rows = []
    for task, ids, advantage_N in zip(everyone, answers, advantages_BN.expand(-1, longest), strict=True):
        prompt = BOOK.encode(task.prompt)
        spread = (0.0,) * len(prompt) + tuple(advantage_N[: len(ids)].tolist())
        rows.append(answered(prompt, ids, advantage=spread))
    return rows
