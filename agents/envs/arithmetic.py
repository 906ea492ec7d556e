"""Sums: questions that a small decoder can learn, with an exact judge, and as a world of several attempts with a tool.

Answers are written from the last digit, so that a carry is known when it is needed: 27+15= is answered 24.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch

from agents.policies.vocabulary import Vocabulary

SYMBOLS = "0123456789+-=?!c<>:;x."


@dataclass(frozen=True, kw_only=True)
class Question:
    """`prompt` as the policy reads it; `answer` as it should be written."""

    prompt: str
    answer: str


def vocabulary() -> Vocabulary:
    """Characters of every text of this world."""
    return Vocabulary(SYMBOLS)


def question(first: int, second: int, *, digits: int, sign: str = "+") -> Question:
    """The sum, or with "-" the difference modulo 10^digits, of two numbers below 10^digits."""
    if sign not in "+-":
        raise ValueError(f"sign is {sign!r}, expected '+' or '-'")
    value = first + second if sign == "+" else (first - second) % 10**digits
    width = digits + (sign == "+")
    return Question(
        prompt=f"{first:0{digits}d}{sign}{second:0{digits}d}=",
        answer=f"{value:0{width}d}"[::-1],
    )


def questions(
    count: int, *, digits: int, generator: torch.Generator, held_out: bool = False, sign: str = "+"
) -> list[Question]:
    """Drawn questions; one in five of all pairs is held out, by a rule of its numbers, and never drawn otherwise."""
    found: list[Question] = []
    while len(found) < count:
        for a, b in torch.randint(10**digits, (count, 2), generator=generator).tolist():
            if is_held_out(a, b) == held_out:
                found.append(question(a, b, digits=digits, sign=sign))
    return found[:count]


def is_held_out(first: int, second: int) -> bool:
    """Whether the pair is of the test set; a hash, since a linear rule would hold out whole classes of sums."""
    return crc32(f"{first},{second}".encode()) % 5 == 0


class ArithmeticEnv:
    """One question, several attempts: after a wrong answer the world says "x", after a right one it ends.

    A call of the tool, "c" and a sum as in "c27+15", is answered with its value and counts as an attempt.
    """

    def __init__(self, *, turns: int = 3) -> None:
        self.turns = turns
        self._question: Question | None = None
        self._said: tuple[str, ...] = ()

    def reset(self, task: Question) -> str:
        """The prompt."""
        self._question, self._said = task, ()
        return task.prompt

    def step(self, action: str) -> str:
        """What the world says to an attempt. Raises RuntimeError once it has ended."""
        if self._question is None or self.ended:
            raise RuntimeError("the attempt has ended, expected reset first")
        self._said = (*self._said, action)
        if action.startswith("c"):
            return call_calculator(action)
        return "." if action == self._question.answer else "x"

    @property
    def success(self) -> bool:
        """Whether the last answer was right."""
        return self._question is not None and bool(self._said) and self._said[-1] == self._question.answer

    @property
    def ended(self) -> bool:
        """Right, or out of turns."""
        return self.success or len(self._said) >= self.turns

    def snapshot(self) -> tuple[Question | None, tuple[str, ...]]:
        """All of the state."""
        return self._question, self._said

    def restore(self, state: tuple[Question | None, tuple[str, ...]]) -> None:
        """Back to a snapshot."""
        self._question, self._said = state


def call_calculator(action: str) -> str:
    """The value of "c27+15", from the last digit as answers are; "?" where it is no sum."""
    first, plus, second = action.removeprefix("c").partition("+")
    if not (plus and first.isdecimal() and second.isdecimal()):
        return "?"
    width = max(len(first), len(second)) + 1
    return f"{int(first) + int(second):0{width}d}"[::-1]


def share_right(answers: Sequence[str], tasks: Sequence[Question]) -> float:
    """Share of the answers that are exactly right."""
    return sum(a == t.answer for a, t in zip(answers, tasks, strict=True)) / len(tasks)
