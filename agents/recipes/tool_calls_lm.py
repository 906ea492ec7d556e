"""SmolLM2-135M learns to call tools: LoRA on requests with the calls that answer them, judged on tools it never saw.

Three arms. "as released" is told the form of an answer in words; "one example shown" sees a request with its call
besides, the harder baseline; "tuned" is told what the first is told. All decode greedily. The main score is the share
of calls that validate against the schema of a tool that was offered; `agents.envs.tools_english` says what the three
sets of tools are. Test requests are the same for all seeds, which differ in adapters, records and their order.
"""

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.batch import TokenBatch, answered, pack
from agents.envs.tools_english import COLUMNS, KNOWN, NEW, RENAMED, ToolRequest, looked_at, signature, tool_requests
from agents.envs.tools_english import written as write_call
from agents.policies.hf_lm import (
    ChatModel,
    Message,
    add_lora,
    answer_likelihood,
    answers,
    fold_lora,
    from_hub,
    from_wheel,
    length_sorted_batches,
    save_adapters,
)
from agents.train.effect import Effect
from agents.train.loop import learner, train
from vla.rollout.evaluate import wilson

SETS = {"new tools": NEW, "new tools and names": RENAMED}
TASK = 'Answer with one call of one tool, as JSON: {"name": tool, "arguments": {argument: value, ...}}'
RELEASED, SHOWN, TUNED = "as released", "one example shown", "tuned"
Judged = Mapping[str, Sequence[Mapping[str, Any]]]  # set -> request, answer and columns of each


def tool_calls_lm(
    *,
    seed: int,
    language: str,
    layers: int,
    rank: int,
    alpha: int,
    lr: float,
    records: int,
    steps: int,
    batch: int,
    test: int,
    limit: int,
    out: str | None = None,
) -> Effect:
    """Args:
    seed: of adapters, records and their order.
    language: "wheel" for SmolLM2-135M, else a model of the Hub or a folder.
    layers: the first ones are used; of the wheel's 30.
    rank: of the adapters.
    alpha: their scale is alpha / rank.
    lr: learning rate.
    records: of the training set.
    steps: optimiser steps.
    batch: records a step.
    test: requests of each set of tools.
    limit: tokens of an answer.
    out: a folder for answers, counts, losses and adapters; None keeps nothing.
    """
    folder = None if out is None else Path(out)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    policy = read(language, layers)
    begin = time.process_time()
    log = None if folder is None else folder / f"losses_{seed}.jsonl"
    tune(policy, seed=seed, rank=rank, alpha=alpha, lr=lr, records=records, steps=steps, batch=batch, log=log)
    minutes = (time.process_time() - begin) / 60
    if folder is not None:
        save_adapters(policy, folder / f"adapters_{seed}.safetensors")
    fold_lora(policy)
    judged = {TUNED: measured(policy, asked_in_tests(test), limit=limit)}
    if folder is not None:
        keep(folder / f"tuned_{seed}.json", judged, {"cpu_minutes_of_training": minutes})
    judged = {**untuned(language, layers, test, limit), **judged}
    if folder is not None:
        keep(folder / f"all_{seed}.json", judged, {"cpu_minutes_of_training": minutes})
    return Effect(
        scores={f"{arm}, {name}": share(rows) for arm, each in judged.items() for name, rows in each.items()},
        baseline=f"{SHOWN}, new tools and names",
        method=f"{TUNED}, new tools and names",
        measure="share of calls that validate against their schema",
        budget=f"{steps} steps of {batch} from {records} requests to {len(KNOWN)} tools, LoRA of rank {rank}",
    )


def keep(path: Path, judged: Mapping[str, Judged], more: Mapping[str, Any]) -> None:
    """Writes counts and answers of each arm."""
    counted = {arm: counts(each) for arm, each in judged.items()}
    path.write_text(json.dumps({**more, "counts": counted, "answers": judged}, indent=1))


def read(language: str, layers: int) -> ChatModel:
    """The model before tuning."""
    return from_wheel(layers) if language == "wheel" else from_hub(language)


def asked_in_tests(count: int) -> dict[str, list[ToolRequest]]:
    """Requests of each set of tools, the same for every seed of a recipe."""
    generator = torch.Generator().manual_seed(4000)
    return {name: tool_requests(count, skills, generator, fresh=True) for name, skills in SETS.items()}


@cache
def untuned(language: str, layers: int, test: int, limit: int) -> dict[str, Judged]:
    """Both arms without training; greedy answers to the same requests, so one look serves all seeds."""
    policy, asked = read(language, layers), asked_in_tests(test)
    example = tool_requests(len(KNOWN), KNOWN, torch.Generator().manual_seed(5000), fresh=False)[0]
    shown = [*told(example)[1:], {"role": "assistant", "content": write_call(example.call)}]
    return {
        RELEASED: measured(policy, asked, limit=limit),
        SHOWN: measured(policy, asked, limit=limit, shown=shown),
    }


def told(request: ToolRequest, shown: Sequence[Message] = ()) -> list[Message]:
    """The conversation up to the answer; `shown` are messages before the request."""
    tools = "\n".join(signature(tool) for tool in request.offered)
    asked = {"role": "user", "content": f"Tools:\n{tools}\nRequest: {request.text}"}
    return [{"role": "system", "content": TASK}, *shown, asked]


def tune(
    policy: ChatModel,
    *,
    seed: int,
    rank: int,
    alpha: int,
    lr: float,
    records: int,
    steps: int,
    batch: int,
    log: Path | None = None,
) -> list[dict[str, float]]:
    """Adds adapters and trains them; the losses. See `tool_calls_lm`."""
    generator = torch.Generator().manual_seed(2000 + seed)
    asked = tool_requests(records, KNOWN, generator, fresh=False)
    rows = [
        answered(policy.prompt(told(each)), [*policy.encode(write_call(each.call)), policy.end_id]) for each in asked
    ]
    waiting: list[list[int]] = []

    def draw(_: nn.Module, generator: torch.Generator) -> TokenBatch:
        if not waiting:
            waiting.extend(length_sorted_batches([len(row.ids) for row in rows], batch, generator))
        return pack([rows[number] for number in waiting.pop()])

    torch.manual_seed(seed)
    add_lora(policy, rank=rank, alpha=alpha)
    return train(learner(policy, lr=lr, seed=seed), draw, answer_likelihood, steps=steps, log=log)


def measured(
    policy: ChatModel, asked: Mapping[str, Sequence[ToolRequest]], *, limit: int, shown: Sequence[Message] = ()
) -> Judged:
    """Greedy answers to the requests of each set, and what is right about them."""
    judged = {}
    for name, requests in asked.items():
        ids = answers(policy, [policy.prompt(told(each, shown)) for each in requests], limit=limit, enough=is_prose)
        judged[name] = [
            {"request": each.text, "wanted": write_call(each.call), "answer": answer, **looked_at(answer, each)}
            for each, answer in zip(requests, map(policy.text, ids), strict=True)
        ]
    return judged


def is_prose(beginning: str) -> bool:
    """Whether an answer that begins so cannot be a call any more; it is not read to its end."""
    return not beginning.lstrip().startswith("{") and bool(beginning.strip())


def share(rows: Sequence[Mapping[str, Any]], column: str = "valid") -> float:
    """Of the answers for which the column holds."""
    return sum(row[column] for row in rows) / len(rows)


def counts(judged: Judged) -> dict[str, dict[str, Any]]:
    """For each set and column: how many, of how many, and the 95 % Wilson interval of the share."""
    found: dict[str, dict[str, Any]] = {}
    for name, rows in judged.items():
        sums = {column: sum(row[column] for row in rows) for column in COLUMNS}
        found[name] = {column: (count, len(rows), *wilson(count, len(rows))) for column, count in sums.items()}
    return found
