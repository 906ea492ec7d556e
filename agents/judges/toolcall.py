"""A tool call against the right one, by kinds of mistake (TL-Training, arXiv 2412.15495, table of rewards)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool's name and the JSON schema of its arguments, an object."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call: the tool's name and its arguments."""

    name: str
    arguments: Mapping[str, Any]


def parse_call(text: str) -> Call | None:
    """{"name": ..., "arguments": {...}} and nothing else; None where it is not that."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return None
    if not isinstance(value["name"], str) or not isinstance(value["arguments"], dict):
        return None
    return Call(name=value["name"], arguments=value["arguments"])


def validates(call: Call | None, tools: Mapping[str, Tool]) -> bool:
    """Whether the call names a tool and its arguments are what the tool's schema asks for."""
    if call is None or call.name not in tools:
        return False
    return jsonschema.Draft202012Validator(tools[call.name].schema).is_valid(call.arguments)


def call_reward(call: Call | None, right: Call, tools: Mapping[str, Tool]) -> float:
    """From -2 (no call, or of an unknown tool) to 1 (exactly right).

    Names of arguments go wrong in three ways: hallucinated (the tool has no such argument), redundant (it has, but it
    is not wanted here), missing.
    """
    if call is None or call.name not in tools:
        return -2.0
    if call.name != right.name:
        return -1.5
    given, wanted = set(call.arguments), set(right.arguments)
    known = set(tools[call.name].schema.get("properties", {}))
    hallucinated, redundant, missing = given - known, (given & known) - wanted, wanted - given
    if hallucinated and redundant and missing:
        return -1.8
    if hallucinated and (redundant or missing):
        return -1.3
    if redundant and missing:
        return -1.0
    if hallucinated:
        return -0.8
    if redundant or missing:
        return -0.5
    return 1.0 if call.arguments == right.arguments else -0.25
