import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.schema import (
    ITEMS,
    ActionChunk,
    ApiAction,
    CodeAction,
    ImageObservation,
    MessageAction,
    Note,
    Record,
    RobotObservation,
    SchemaError,
    TextObservation,
    Trajectory,
    WebObservation,
    from_json,
    to_json,
)

SEEN = TextObservation(content="5", source="environment", tool_call_id="c1")
CALL = ApiAction(function="add", kwargs={"a": 2, "b": [3.0, None, {"c": True}]}, tool_call_id="c1")
ROBOT = RobotObservation(
    embodiment="so101", state=(0.1, -0.0), images={"wrist": "wrist/0.png"}, instruction="pick", time_s=0.1 + 0.2
)
CHUNK = ActionChunk(embodiment="so101", actions=((0.1, 2.0), (3.0, 1e-300)), start_s=0.3, dt_s=0.05, reward=1.0)
PAGE = WebObservation(
    html=None,
    axtree="button",
    url="https://a.example",
    image_observation=ImageObservation(content="page.png", source="environment", annotations=({"x": 1},)),
    viewport_size=(800, 600),
)
EVERY = Trajectory(
    id="all",
    content=(
        TextObservation(content="Füge 2 und 3 zusammen", source="user", name="a person"),
        CALL,
        SEEN,
        CodeAction(language="python", content="1 + 1"),
        MessageAction(content="done", reasoning_content="because", description="end"),
        PAGE,
        ROBOT,
        CHUNK,
    ),
    available_custom_tools=("add",),
    available_code_languages=("python",),
    details={"dataset": "toy", "n": 3},
)
RECORD = Record(
    trajectory=EVERY,
    notes={
        1: Note(logp_old=(-0.1, -2.0), reward=1.0, advantage=-0.5, group="g1", source="expert", dt=0.25),
        7: Note(loss=False, source="prefix"),
    },
)


def test_every_item_comes_back_equal():
    assert {type(item) for item in EVERY.content} | {ImageObservation} == set(ITEMS.values())
    assert from_json(to_json(RECORD)) == RECORD
    assert from_json(to_json(EVERY), Trajectory) == EVERY
    assert to_json(from_json(to_json(RECORD))) == to_json(RECORD)


numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.text(max_size=2), plain, max_size=2),
    st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=4),
    st.text(max_size=10),
    numbers,
)
def test_any_content_comes_back_to_the_bit(kwargs, rows, text, reward):
    trajectory = Trajectory(
        id=text,
        content=(
            ApiAction(function="f", kwargs=kwargs, tool_call_id="c", reward=reward),
            TextObservation(content=text, source="agent", tool_call_id="c"),
            ActionChunk(embodiment="e", actions=tuple(map(tuple, rows)), start_s=reward, dt_s=0.1),
        ),
    )
    back = from_json(to_json(trajectory), Trajectory)
    assert back == trajectory
    assert repr(back) == repr(trajectory)  # also tells -0.0 from 0.0, 1 from True and from 1.0


def written(**changes) -> dict:
    return json.loads(to_json(EVERY)) | changes


def item(**changes) -> dict:
    return written(content=[{"class_": "message_action", "content": "hi"} | changes])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (written(colour="red"), "unknown field 'colour', expected id, content"),
        ({"id": "a"}, "field 'content' is missing"),
        (written(schema_version="9.0.0"), r"schema_version is '9\.0\.0', expected one of"),
        (item(thoughts="x"), r"content\[0\]: unknown field 'thoughts', expected content, description"),
        (item(class_="robot"), r"content\[0\]: class_ is 'robot', expected one of message_action"),
        (item(content=3), r"content\[0\]\.content: '3' is int, expected str"),
        (item(reward=True), r"content\[0\]\.reward: 'True' is bool, expected float"),
        (item(reward="1"), r"content\[0\]\.reward: '1' is str, expected float"),
        (item(class_="text_observation", source="robot"), "is str, expected Literal"),
        (written(content={}), "content: '{}' is dict, expected tuple"),
        (written(content=[3]), r"content\[0\]: class_ is None"),
        ([], "value: .* is list, expected Trajectory"),
        (written(available_code_languages=["bash"]), "expected the languages that are used"),
    ],
)
def test_decoding_is_strict(value, message):
    with pytest.raises(SchemaError, match=message):
        from_json(json.dumps(value), Trajectory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"id": "a", "content": [], "details": {"x": NaN}}', "NaN is not JSON"),
        ('{"id": "a", "content": [], "details": {"x": 1e999}}', r"details\['x'\]: 'inf' is float, expected a finite"),
        ('{"id": "a", "id": "b", "content": []}', "a field twice"),
    ],
)
def test_text_that_is_no_json_of_ours(text, message):
    with pytest.raises(SchemaError, match=message):
        from_json(text, Trajectory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((replace(CALL, tool_call_id=None), replace(SEEN, tool_call_id=None)), "needs a tool_call_id"),
        ((CALL,), r"content\[0\]: tool_call_id 'c1' has no observation"),
        ((SEEN,), r"content\[0\]: tool_call_id 'c1' is of no call before it"),
        ((SEEN, CALL), "of no call before it"),
        ((CALL, SEEN, SEEN), r"content\[2\]: tool_call_id 'c1' has its answer in content\[1\]"),
        ((CALL, CALL, SEEN), r"content\[1\]: tool_call_id 'c1' is that of content\[0\]"),
        ((replace(CHUNK, actions=()),), "expected rows of one length"),
        ((replace(CHUNK, actions=((1.0,), (1.0, 2.0))),), "expected rows of one length"),
        ((replace(CHUNK, dt_s=0.0),), "dt_s is 0"),
    ],
)
def test_rules_between_items(content, message):
    with pytest.raises(SchemaError, match=message):
        Trajectory(id="a", content=content)


def test_calls_may_be_answered_later_and_the_last_not_at_all():
    second = replace(CALL, tool_call_id="c2")
    Trajectory(id="a", content=(CALL, second, replace(SEEN, tool_call_id="c2"), SEEN))
    Trajectory(id="a", content=(replace(CALL, tool_call_id=None),))


def test_notes_belong_to_items():
    with pytest.raises(SchemaError, match="notes has index 8, expected 0 to 7"):
        Record(trajectory=EVERY, notes={8: Note()})
    with pytest.raises(SchemaError, match=r"notes\[0\]\.dt is -1"):
        Record(trajectory=EVERY, notes={0: Note(dt=-1.0)})
    text = to_json(RECORD).replace('"notes": {"1"', '"notes": {"01"')
    with pytest.raises(SchemaError, match="'01' is str, expected the index of an item"):
        from_json(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"details": {"x": (1, 2)}},
        {"details": {3: 1}},
        {"details": {"x": float("nan")}},
        {"details": {"x": {1, 2}}},
        {"id": 5},
        {"content": [SEEN]},
    ],
    ids=str,
)
def test_what_would_not_come_back_is_not_written(changed):
    with pytest.raises(SchemaError):
        to_json(replace(EVERY, available_code_languages=None, **changed))
