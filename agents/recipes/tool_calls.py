"""Fine-tuning on records of tool calls of which some failed: TL-Training (85), KAT-Coder (7), AgentRefine (18).

A record is a request, perhaps a wrong call and the house's error, and the right call. Each arm says which records it
takes and whether a wrong call, known by the error after it, is trained on. All see as many records.
"""

from collections.abc import Sequence

import torch
from torch import nn

from agents.batch import Example, TokenBatch, pack
from agents.envs.tools import TOOLS, Request, mistaken, read_call, reply, requests, vocabulary, write_call
from agents.judges.toolcall import Call, call_reward
from agents.objectives.masks import divergence_points
from agents.objectives.nll import key_token_weights
from agents.policies.decoder import Decoder, sample
from agents.policies.vocabulary import END
from agents.train.effect import Effect
from agents.train.loop import learner, train
from agents.train.losses import likelihood

BOOK = vocabulary()
LIMIT = 8
CLAIMS = {
    "TL-Training": ("all calls trained", "sampled first calls that are exactly right"),
    "KAT-Coder": ("all calls trained", "mean judged reward of sampled first calls, -2 to 1"),
    "AgentRefine": ("clean records", "calls that are exactly right after an error"),
}


def tool_calls(
    *, seed: int, method: str, steps: int, batch: int, records: int, failing: float, lr: float, test: int
) -> Effect:
    """Args:
    seed: of weights, records and samples.
    method: whose claim is tested, a key of `CLAIMS`.
    steps: optimiser steps from random weights.
    batch: records a step.
    records: of the training set.
    failing: share of the records with a wrong call in them.
    lr: learning rate.
    test: requests.
    """
    baseline, measure = CLAIMS[method]
    settings = {"seed": seed, "steps": steps, "batch": batch, "lr": lr, "records": records}
    arms = {
        "clean records": taught(failing=0.0, mask=True, weigh=False, **settings),
        "all calls trained": taught(failing=failing, mask=False, weigh=False, **settings),
        "errors masked": taught(failing=failing, mask=True, weigh=False, **settings),
        "errors masked, key tokens": taught(failing=failing, mask=True, weigh=True, **settings),
    }
    wanted = "errors masked, key tokens" if method == "TL-Training" else "errors masked"
    column = {"TL-Training": 0, "KAT-Coder": 1, "AgentRefine": 2}[method]
    scores = {arm: measured(policy, count=test, seed=seed)[column] for arm, policy in arms.items()}
    return Effect(
        scores=scores,
        baseline=baseline,
        method=wanted,
        measure=measure,
        budget=f"{steps} steps of {batch} from {records} records, {failing:.0%} of them with a failed call",
    )


def taught(
    *, seed: int, steps: int, batch: int, records: int, failing: float, mask: bool, weigh: bool, lr: float
) -> Decoder:
    """A decoder after training on records; see `tool_calls` and `example`."""
    generator = torch.Generator().manual_seed(2000 + seed)
    asked = requests(records, generator)
    wrong = [
        mistaken(each.call, generator) if torch.rand((), generator=generator) < failing else None for each in asked
    ]
    rows = [example(each, slip, mask=mask) for each, slip in zip(asked, wrong, strict=True)]

    def draw(_: nn.Module, generator: torch.Generator) -> TokenBatch:
        return pack([rows[number] for number in torch.randint(len(rows), (batch,), generator=generator).tolist()])

    torch.manual_seed(seed)
    policy = Decoder(vocabulary=len(BOOK))
    train(learner(policy, lr=lr, seed=seed), draw, key_token_likelihood if weigh else likelihood, steps=steps)
    return policy


def example(request: Request, slip: Call | None, *, mask: bool) -> Example:
    """The record as ids; the request and what the house says are never trained, nor a failed call where `mask`."""
    parts = [(f"{request.text} :", False)]
    if slip is not None:
        parts += [(write_call(slip), not mask), (f"{reply(slip, request.call)} :", False)]
    parts.append((write_call(request.call), True))
    ids, loss = [], []
    for text, trained in parts:
        new = BOOK.encode(text)
        ids += new
        loss += [trained] * len(new)
    return Example(ids=(*ids, END), loss=(*loss, True))


_NAMES = {name: tuple(BOOK.encode(name)) for name in TOOLS}
_KEYS = {
    name: divergence_points(ids, [other for key, other in _NAMES.items() if key != name])
    for name, ids in _NAMES.items()
}


def key_token_likelihood(policy: nn.Module, batch: TokenBatch, total: torch.Tensor) -> torch.Tensor:
    """Likelihood in which the words that decide between tools weigh more; divided by the sum of the weights."""
    key_BN = torch.zeros_like(batch.mask_BN)
    for row, (ids, trained) in enumerate(zip(batch.targets_BN.tolist(), batch.mask_BN.tolist(), strict=True)):
        for place in range(len(ids) - 1):
            name = next((key for key, two in _NAMES.items() if tuple(ids[place : place + 2]) == two), None)
            if name is not None and trained[place]:
                key_BN[row, [place + offset for offset in _KEYS[name]]] = True
    weights_BN = key_token_weights(key_BN, batch.mask_BN)
    scale = batch.mask_BN.sum() / (weights_BN * batch.mask_BN).sum()
    weighed = TokenBatch(**{**vars(batch), "weights_BN": weights_BN * scale})
    return likelihood(policy, weighed, total)


def measured(policy: nn.Module, *, count: int, seed: int) -> tuple[float, float, float]:
    """Of fresh requests: share of sampled first calls that are right, their mean reward, share right after an error."""
    generator = torch.Generator().manual_seed(3000 + seed)
    asked = requests(count, generator)
    first = _calls(policy, [f"{each.text} :" for each in asked], generator)
    after = []
    for each in asked:
        slip = mistaken(each.call, generator)
        after.append(f"{each.text} : {write_call(slip)} {reply(slip, each.call)} :")
    second = _calls(policy, after, generator)
    rewards = [call_reward(call, each.call, TOOLS) for call, each in zip(first, asked, strict=True)]
    right = [call == each.call for call, each in zip(first, asked, strict=True)]
    mended = [call == each.call for call, each in zip(second, asked, strict=True)]
    return sum(right) / count, sum(rewards) / count, sum(mended) / count


def _calls(policy: nn.Module, texts: Sequence[str], generator: torch.Generator) -> list[Call | None]:
    drawn = sample(policy, [BOOK.encode(text) for text in texts], limit=LIMIT, generator=generator)
    return [read_call(BOOK.decode(ids)) for ids in drawn]
