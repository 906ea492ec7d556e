"""The English tools: right calls are right in every column, each mistake shows in its own, sets share what they say."""

import json

import jsonschema
import pytest
import torch

from agents.envs.tools_english import COLUMNS, KNOWN, NEW, RENAMED, looked_at, signature, tool_requests, written
from agents.judges.toolcall import Call, parse_call

SETS = (KNOWN, NEW, RENAMED)


def drawn(skills: tuple, *, fresh: bool = True, seed: int = 0, count: int = 200) -> list:
    return tool_requests(count, skills, torch.Generator().manual_seed(seed), fresh=fresh)


def request_of(name: str, skills: tuple = KNOWN):
    return next(each for each in drawn(skills) if each.call.name == name)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("skills", SETS)
def test_the_wanted_call_is_right_in_every_column(skills: tuple, fresh: bool) -> None:
    for each in drawn(skills, fresh=fresh):
        assert parse_call(written(each.call)) == each.call
        assert looked_at(written(each.call), each) == dict.fromkeys(COLUMNS, True)
        said = [value for value in each.call.arguments.values() if not isinstance(value, bool)]
        assert all(str(value) in each.text for value in said), "a value that the request does not tell"
        assert len({tool.name for tool in each.offered}) == 3 and each.call.name in {t.name for t in each.offered}


def test_schemas_are_schemas_and_every_tool_is_asked_for() -> None:
    for skills in SETS:
        for skill in skills:
            jsonschema.Draft202012Validator.check_schema(dict(skill.tool.schema))
        assert {each.call.name for each in drawn(skills)} == {skill.name for skill in skills}


def test_what_the_sets_share() -> None:
    names = [{skill.name for skill in skills} for skills in SETS]
    arguments = [{key for skill in skills for key in skill.arguments} for skills in SETS]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert arguments[1] <= arguments[0]
    assert not arguments[2] & (arguments[0] | arguments[1])


def test_values_of_tests_are_not_those_of_training() -> None:
    def told(fresh: bool) -> set:
        kinds = {id(kind): kind for skills in SETS for skill in skills for kind in skill.arguments.values()}
        free = [kind for kind in kinds.values() if "enum" not in kind.schema and kind.schema["type"] != "boolean"]
        assert all(not set(kind.values) & set(kind.fresh) for kind in free)
        return {
            text for each in drawn(KNOWN, fresh=fresh) for text in each.call.arguments.values() if type(text) is str
        }

    kinds = {value for skill in KNOWN for kind in skill.arguments.values() for value in kind.schema.get("enum", ())}
    assert told(True) & told(False) <= kinds


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ('{"name": "set_timer", "arguments": {"minutes": 5}', set(COLUMNS)),
        ('Sure! {"name": "set_timer", "arguments": {"minutes": 5}}', set(COLUMNS)),
        ('{"name": "fly", "arguments": {}}', set(COLUMNS) - {"JSON"}),
        ('{"name": "set_timer", "arguments": {}}', {"arguments", "valid", "right values"}),
        ('{"name": "set_timer", "arguments": {"minutes": 5, "hours": 1}}', {"arguments", "valid", "right values"}),
        ('{"name": "set_timer", "arguments": {"minutes": "5"}}', {"valid", "right values"}),
        ('{"name": "set_timer", "arguments": {"minutes": 5.5}}', {"valid", "right values"}),
        ('{"name": "set_timer", "arguments": {"minutes": 5}}', {"right values"}),
    ],
)
def test_each_mistake_shows_in_its_columns(answer: str, wrong: set) -> None:
    found = looked_at(answer, request_of("set_timer"))  # fresh minutes are even numbers, so five is not asked
    assert {column for column, right in found.items() if not right} == wrong


def test_another_tool_that_was_offered_may_be_valid_but_not_right() -> None:
    for each in drawn(KNOWN):
        other = next((tool for tool in each.offered if tool.name == "call_person" != each.call.name), None)
        if other is not None:
            found = looked_at(written(Call(name="call_person", arguments={"person": "Emma"})), each)
            assert {column for column, right in found.items() if not right} == {"right tool", "right values"}
            return
    raise AssertionError("no request has it beside another tool")


def test_a_flag_is_no_number() -> None:
    """Python takes 1 for true; the schema does not."""
    asked = request_of("switch_fan")
    text = written(asked.call).replace(json.dumps(asked.call.arguments["on"]), str(int(asked.call.arguments["on"])))
    assert not looked_at(text, asked)["valid"] and not looked_at(text, asked)["right values"]


def test_signatures() -> None:
    tools = {skill.name: signature(skill.tool) for skills in SETS for skill in skills}
    assert tools["set_timer"] == "set_timer(minutes: integer)"
    assert tools["get_weather"] == 'get_weather(city: string, day?: "monday" | "tuesday" | "friday" | "sunday")'
    assert tools["lock_valve"] == "lock_valve(valve: integer, locked: boolean)"


def test_draws_follow_the_generator() -> None:
    assert drawn(NEW) == drawn(NEW)
    assert drawn(NEW) != drawn(NEW, seed=1)
