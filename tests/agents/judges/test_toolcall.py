"""Each line of the table of rewards, by hand."""

import pytest

from agents.judges.toolcall import Call, Tool, call_reward, parse_call, validates

SCHEMA = {
    "type": "object",
    "properties": {"room": {"enum": ["hall", "bath"]}, "value": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["room"],
    "additionalProperties": False,
}
TOOLS = {"set": Tool(name="set", schema=SCHEMA), "get": Tool(name="get", schema=SCHEMA)}
RIGHT = Call(name="set", arguments={"room": "hall", "value": 3})


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("no json", -2.0),
        ('{"name": "fly", "arguments": {}}', -2.0),
        ('{"name": "get", "arguments": {"room": "hall", "value": 3}}', -1.5),
        ('{"name": "set", "arguments": {"room": "hall", "note": "", "when": 1}}', -1.8),
        ('{"name": "set", "arguments": {"room": "hall", "when": 1}}', -1.3),
        ('{"name": "set", "arguments": {"room": "hall", "value": 3, "note": "", "when": 1}}', -1.3),
        ('{"name": "set", "arguments": {"room": "hall", "note": ""}}', -1.0),
        ('{"name": "set", "arguments": {"room": "hall", "value": 3, "when": 1}}', -0.8),
        ('{"name": "set", "arguments": {"room": "hall"}}', -0.5),
        ('{"name": "set", "arguments": {"room": "hall", "value": 3, "note": ""}}', -0.5),
        ('{"name": "set", "arguments": {"room": "hall", "value": 4}}', -0.25),
        ('{"name": "set", "arguments": {"value": 3, "room": "hall"}}', 1.0),
    ],
)
def test_table(text: str, reward: float) -> None:
    assert call_reward(parse_call(text), RIGHT, TOOLS) == reward


def test_a_call_is_its_two_fields_and_no_more() -> None:
    assert parse_call('{"name": "set", "arguments": {}, "id": 1}') is None
    assert parse_call('{"name": "set", "arguments": []}') is None
    assert parse_call('[{"name": "set"}]') is None


def test_validation_is_the_schema() -> None:
    assert validates(RIGHT, TOOLS)
    assert not validates(Call(name="set", arguments={"room": "attic"}), TOOLS)
    assert not validates(Call(name="set", arguments={}), TOOLS)
    assert not validates(Call(name="set", arguments={"room": "hall", "when": 1}), TOOLS)
    assert not validates(None, TOOLS)
