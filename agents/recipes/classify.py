"""CLS-RL without thinking (86): a class name as an answer, reinforced by whether it is exactly right.

Pictures are 6 x 6 black and white prototypes with pixels flipped at random, read by the decoder as 36 tokens. Both arms
start from the same few supervised steps on the same few pictures; one goes on with likelihood, one with GRPO.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.advantages import group_advantages
from agents.batch import TokenBatch, answered, ended, pack
from agents.judges.vision import class_reward
from agents.policies.decoder import Decoder, sample
from agents.policies.vocabulary import Vocabulary
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood, reinforce

NAMES = ("arm", "box", "cup", "dog", "egg", "fan", "gem", "hat")
BOOK = Vocabulary("01=" + "".join(sorted(set("".join(NAMES)))))
SIDE = 6


def classify(
    *, seed: int, pretrain: int, steps: int, shots: int, flips: float, batch: int, group: int, lr: float, test: int
) -> Effect:
    """Args:
    seed: of weights, pictures and samples.
    pretrain: supervised steps that both arms begin with.
    steps: optimiser steps after them.
    shots: pictures of each class.
    flips: probability that a pixel is flipped.
    batch: pictures a step.
    group: attempts at each picture.
    lr: learning rate.
    test: fresh pictures.
    """
    generator = torch.Generator().manual_seed(4000 + seed)
    known = pictures(shots * len(NAMES), flips=flips, generator=generator)
    fresh = pictures(test, flips=flips, generator=generator)

    def shown(_: nn.Module, generator: torch.Generator) -> TokenBatch:
        rows = [known[n] for n in torch.randint(len(known), (batch,), generator=generator).tolist()]
        return pack([answered(prompt, ended(BOOK.encode(name))) for prompt, name in rows])

    def tried(policy: nn.Module, generator: torch.Generator) -> TokenBatch | None:
        rows = [known[n] for n in torch.randint(len(known), (batch,), generator=generator).tolist()]
        repeated = [row for row in rows for _ in range(group)]
        drawn = sample(policy, [prompt for prompt, _ in repeated], limit=4, generator=generator)
        rewards = [class_reward(BOOK.decode(ids), name, thinking=False) for ids, (_, name) in zip(drawn, repeated)]
        judged = group_advantages(torch.tensor(rewards), torch.arange(batch).repeat_interleave(group))
        kept = zip(repeated, drawn, judged.advantages_B.tolist(), judged.informative_B.tolist(), strict=True)
        examples = [answered(prompt, ids, advantage=value) for (prompt, _), ids, value, useful in kept if useful]
        return pack(examples) if examples else None

    scores = {}
    for arm, draw, objective in (("SFT", shown, likelihood), ("CLS-RL", tried, reinforce)):
        torch.manual_seed(seed)
        policy = Decoder(vocabulary=len(BOOK))
        train(learner(policy, lr=lr, seed=seed), shown, likelihood, steps=pretrain)
        scores["before"] = share_named(policy, fresh)
        train(learner(policy, lr=lr / 3, seed=seed + 1), draw, objective, steps=steps)
        scores[arm] = share_named(policy, fresh)
    return Effect(
        scores=scores,
        baseline="SFT",
        method="CLS-RL",
        measure=f"share of fresh pictures named exactly, {len(NAMES)} classes",
        budget=f"{pretrain} supervised steps, "
        f"then {steps} steps of {batch} pictures ({group} attempts), {shots} a class",
    )


def pictures(count: int, *, flips: float, generator: torch.Generator) -> list[tuple[list[int], str]]:
    """Prompts and class names; the prototypes are always the same."""
    prototypes_KP = torch.rand(len(NAMES), SIDE * SIDE, generator=torch.Generator().manual_seed(5)) < 0.5
    label_B = torch.randint(len(NAMES), (count,), generator=generator)
    noise_BP: Tensor = torch.rand(count, SIDE * SIDE, generator=generator) < flips
    pixel_BP = (prototypes_KP[label_B] ^ noise_BP).int()
    texts = ["".join(map(str, row)) + "=" for row in pixel_BP.tolist()]
    return [(BOOK.encode(text), NAMES[label]) for text, label in zip(texts, label_B.tolist(), strict=True)]


def share_named(policy: nn.Module, shown: Sequence[tuple[list[int], str]]) -> float:
    """Share of pictures whose greedy answer is exactly the class."""
    drawn = sample(policy, [prompt for prompt, _ in shown], limit=4, temperature=0)
    return sum(BOOK.decode(ids) == name for ids, (_, name) in zip(drawn, shown, strict=True)) / len(shown)
