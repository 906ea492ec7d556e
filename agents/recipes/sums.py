"""What the recipes on sums share: a decoder after some supervised steps, batches of demonstrations, accuracy."""

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from agents.advantages import group_advantages
from agents.batch import Example, TokenBatch, answered, ended, pack
from agents.envs.arithmetic import Question, questions, share_right, vocabulary
from agents.policies.decoder import Decoder, sample
from agents.train.loop import Draw, learner, train
from agents.train.losses import likelihood

BOOK = vocabulary()
LIMIT = 6  # tokens of an answer


@cache
def _pretrained(seed: int, steps: int, digits: int) -> Decoder:
    torch.manual_seed(seed)
    policy = Decoder(vocabulary=len(BOOK))
    fresh = learner(policy, lr=3e-3, seed=seed)
    train(
        fresh,
        lambda _, generator: demonstrated(questions(128, digits=digits, generator=generator)),
        likelihood,
        steps=steps,
    )
    return policy


def pretrained(*, seed: int, steps: int, digits: int = 2) -> Decoder:
    """A decoder that has seen `steps` batches of 128 fresh sums; about 200 teach it most sums of two digits."""
    return copy.deepcopy(_pretrained(seed, steps, digits))


def fixed_set(count: int, *, seed: int, digits: int = 2, sign: str = "+") -> list[Question]:
    """A training set: the same questions for each arm of a recipe."""
    return questions(count, digits=digits, generator=torch.Generator().manual_seed(1000 + seed), sign=sign)


def demonstrated(tasks: Sequence[Question]) -> TokenBatch:
    """Questions with their right answers."""
    return pack([demonstration(task) for task in tasks])


def demonstration(task: Question) -> Example:
    """One question with its right answer."""
    return answered(BOOK.encode(task.prompt), ended(BOOK.encode(task.answer)), expert=True)


def drawn_from(tasks: Sequence[Question], size: int) -> Draw:
    """Batches of demonstrations from a fixed set, with replacement."""

    def draw(_: nn.Module, generator: torch.Generator) -> TokenBatch:
        chosen = torch.randint(len(tasks), (size,), generator=generator).tolist()
        return demonstrated([tasks[number] for number in chosen])

    return draw


def attempts(
    policy: nn.Module, tasks: Sequence[Question], generator: torch.Generator | None, *, temperature: float = 1.0
) -> list[list[int]]:
    """An answer's ids for each task."""
    prompts = [BOOK.encode(task.prompt) for task in tasks]
    return sample(policy, prompts, limit=LIMIT, temperature=temperature, generator=generator)


def accuracy(policy: nn.Module, *, count: int, digits: int = 2, sign: str = "+") -> float:
    """Share of held-out questions answered exactly; greedy, the same questions for every policy."""
    tasks = questions(count, digits=digits, generator=torch.Generator().manual_seed(77), held_out=True, sign=sign)
    return share_right([BOOK.decode(each) for each in attempts(policy, tasks, None, temperature=0)], tasks)


def group_batch(
    policy: nn.Module, tasks: Sequence[Question], group: int, generator: torch.Generator, *, scale: bool = True
) -> list[Example]:
    """`group` attempts at each task with their advantages; groups in which all fare alike are left out."""
    repeated = [task for task in tasks for _ in range(group)]
    answers = attempts(policy, repeated, generator)
    rewards_B = torch.tensor(
        [float(BOOK.decode(ids) == task.answer) for ids, task in zip(answers, repeated, strict=True)]
    )
    groups_B = torch.arange(len(tasks)).repeat_interleave(group)
    judged = group_advantages(rewards_B, groups_B, scale=scale)
    rows = zip(repeated, answers, judged.advantages_B.tolist(), judged.informative_B.tolist(), strict=True)
    return [answered(BOOK.encode(task.prompt), ids, advantage=value) for task, ids, value, kept in rows if kept]
