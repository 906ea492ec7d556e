"""A house with tools: requests in words, the call that is wanted, and what the house says of a wrong one.

Tools share beginnings ("set lamp", "set heat", "get heat"), so that few words decide which one is called. A call is
written in words, "set lamp room hall value low".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agents.judges.toolcall import Call, Tool
from agents.policies.vocabulary import Vocabulary

ROOMS = ("hall", "kitchen", "bath", "attic", "cellar", "porch")
VALUES = ("low", "mid", "high")
NEEDS = {
    "set lamp": ("room", "value"),
    "set heat": ("room", "value"),
    "set fan": ("room", "value"),
    "get lamp": ("room",),
    "get heat": ("room",),
    "get fan": ("room",),
    "lock door": ("room",),
    "lock window": ("room",),
}
_ASKS = {
    "set lamp": "light {room} {value} please",
    "set heat": "warm {room} {value} please",
    "set fan": "air {room} {value} please",
    "get lamp": "light {room} how",
    "get heat": "warm {room} how",
    "get fan": "air {room} how",
    "lock door": "shut {room} entry",
    "lock window": "shut {room} pane",
}
ERRORS = ("error tool", "error room", "error value")
TOOLS = {
    name: Tool(
        name=name,
        schema={
            "type": "object",
            "properties": {key: {"enum": list(ROOMS if key == "room" else VALUES)} for key in needs},
            "required": list(needs),
            "additionalProperties": False,
        },
    )
    for name, needs in NEEDS.items()
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """`text` as it is asked; `call` is what answers it."""

    text: str
    call: Call


def vocabulary() -> Vocabulary:
    """Words of every text of this world."""
    asked = " ".join(_ASKS.values()).replace("{room}", "").replace("{value}", "").split()
    called = " ".join([*NEEDS, *ERRORS]).split()
    return Vocabulary(sorted({*asked, *called, *ROOMS, *VALUES, ":", ";"}), words=True)


def requests(count: int, generator: torch.Generator) -> list[Request]:
    """Drawn requests."""
    names, found = tuple(NEEDS), []
    for tool, room, value in torch.randint(10**6, (count, 3), generator=generator).tolist():
        name = names[tool % len(names)]
        whole = {"room": ROOMS[room % len(ROOMS)], "value": VALUES[value % len(VALUES)]}
        arguments = {key: whole[key] for key in NEEDS[name]}
        found.append(Request(text=_ASKS[name].format(**whole), call=Call(name=name, arguments=arguments)))
    return found


def write_call(call: Call) -> str:
    """The call in words."""
    return " ".join([call.name, *(f"{key} {value}" for key, value in call.arguments.items())])


def read_call(text: str) -> Call | None:
    """What `write_call` wrote; None where it is no call."""
    words = text.split()
    if len(words) < 2 or len(words) % 2:
        return None
    arguments = dict(zip(words[2::2], words[3::2], strict=True))
    return Call(name=" ".join(words[:2]), arguments=arguments) if len(arguments) == len(words) // 2 - 1 else None


def reply(call: Call | None, wanted: Call) -> str:
    """What the house says: ";" to the right call, else what is wrong first."""
    if call is None or call.name != wanted.name or set(call.arguments) != set(wanted.arguments):
        return ERRORS[0]
    if call.arguments["room"] != wanted.arguments["room"]:
        return ERRORS[1]
    return ";" if call.arguments == wanted.arguments else ERRORS[2]


def mistaken(call: Call, generator: torch.Generator) -> Call:
    """A near miss: another tool, or another value of an argument."""
    kind, draw = torch.randint(10**6, (2,), generator=generator).tolist()
    if kind % 2:
        others = [each for each in NEEDS if each != call.name and NEEDS[each] == NEEDS[call.name]]
        return Call(name=others[draw % len(others)], arguments=call.arguments)
    key = tuple(call.arguments)[kind // 2 % len(call.arguments)]
    choices: Sequence[str] = ROOMS if key == "room" else VALUES
    others = [each for each in choices if each != call.arguments[key]]
    return Call(name=call.name, arguments={**call.arguments, key: others[draw % len(others)]})
