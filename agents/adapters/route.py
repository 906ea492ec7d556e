"""DualTune: a tool call in two steps, each with an adapter of its own.

Training: from one call come two rows of the same tokens. The selector's row trains the tool's name alone, the row of
that tool's adapter trains its arguments, with the name given. Inference: a toolset by similarity, a tool among its
names by the selector, then that tool's adapter (`PeftModel.set_adapter`) for the arguments.

Source: "DualTune: decoupled fine-tuning for on-device agentic systems", 2025.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SELECTOR = "selector"


@dataclass(frozen=True, kw_only=True)
class CallSpans:
    """Places [start, stop) in a row's tokens: of the tool's name, and of all arguments with the end token."""

    tool: str
    name: tuple[int, int]
    arguments: tuple[int, int]

    def __post_init__(self) -> None:
        if not 0 <= self.name[0] < self.name[1] <= self.arguments[0] < self.arguments[1]:
            raise ValueError(
                f"name is {self.name} and arguments are {self.arguments}, expected non-empty spans in this order"
            )


def split_call(spans: CallSpans, size: int) -> dict[str, Tensor]:
    """Adapter to its mask (size,) of trained tokens: the selector gets the name, the tool's adapter the arguments."""
    if spans.arguments[1] > size:
        raise ValueError(f"arguments end at {spans.arguments[1]}, expected at most size = {size}")
    places_N = torch.arange(size)
    masks = {}
    for adapter, (start, stop) in ((SELECTOR, spans.name), (argument_adapter(spans.tool), spans.arguments)):
        masks[adapter] = (places_N >= start) & (places_N < stop)
    return masks


def argument_adapter(tool: str) -> str:
    """The adapter that fills in a tool's arguments."""
    return f"arguments_{tool}"


def choose_toolset(query_D: Tensor, toolsets: Mapping[str, Tensor]) -> str:
    """The toolset whose description's embedding (D,) has the largest cosine with the query's."""
    if not toolsets:
        raise ValueError("toolsets is empty, expected at least one")
    names = list(toolsets)
    cosines = torch.cosine_similarity(torch.stack([toolsets[name] for name in names]), query_D[None], dim=-1)
    return names[int(cosines.argmax())]


def choose_tool(name_logp: Sequence[Tensor], tools: Sequence[str]) -> str:
    """The tool whose name the selector finds likeliest among the listed ones, so that none can be invented.

    Args:
        name_logp: for each tool the log-probabilities (n,) of its name's tokens and of the token that ends the name.
            They are summed: with its end in it, a name competes as a whole, and no length needs a correction.
        tools: their names.
    """
    if len(name_logp) != len(tools) or not tools:
        raise ValueError(f"name_logp has {len(name_logp)} entries for {len(tools)} tools, expected one each")
    return tools[int(torch.stack([logp_N.sum() for logp_N in name_logp]).argmax())]
