"""One record of an attempt, for text and robots alike: what was done, what was seen, and notes for training beside it.

A `Trajectory` has the shape of the Agent Data Protocol (neulab/agent-data-protocol, schema 1.2): a list of actions and
observations, each with its class's name in `class_`. Two items are ours, `RobotObservation` and `ActionChunk`; a file
without them is readable there. What training adds (`Note`) stands outside the trajectory, keyed by the item's index, so
that the record itself stays what happened.

Decoding is strict: a field that is unknown, missing or of another type is an error that names it. Numbers are finite,
and what `to_json` writes, `from_json` gives back equal, bit for bit.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

SCHEMA_VERSION = "1.2.0"
READABLE_VERSIONS = (SCHEMA_VERSION, "1.1.0", "1.0.0")

Speaker = Literal["user", "agent", "environment"]
Source = Literal["policy", "expert", "prefix", "world_model"]


class SchemaError(ValueError):
    """A trajectory or its JSON that is not what the schema asks for; the message begins with the place."""


@dataclass(frozen=True, kw_only=True)
class MessageAction:
    """The agent says something."""

    content: str
    description: str | None = None
    reasoning_content: str | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class ApiAction:
    """The agent calls a tool; `kwargs` is any JSON object."""

    function: str
    kwargs: Mapping[str, Any]
    tool_call_id: str | None = None
    description: str | None = None
    reasoning_content: str | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class CodeAction:
    """The agent runs code."""

    language: str
    content: str
    tool_call_id: str | None = None
    description: str | None = None
    reasoning_content: str | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """A robot policy's chunk: `actions` H rows of A, physical units; `dt_s` [s] apart, the first at `start_s`."""

    embodiment: str
    actions: tuple[tuple[float, ...], ...]
    start_s: float
    dt_s: float
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class TextObservation:
    """Words of the user, of another agent or of the environment."""

    content: str
    source: Speaker
    name: str | None = None
    tool_call_id: str | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageObservation:
    """A picture; `content` is its path, `annotations` JSON objects about what it shows."""

    content: str
    source: Speaker
    annotations: tuple[Any, ...] | None = None
    tool_call_id: str | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class WebObservation:
    """A page; `viewport_size` [pixel] is width and height."""

    html: str | None
    axtree: str | None
    url: str | None
    image_observation: ImageObservation | None
    viewport_size: tuple[int, int] | None
    tool_call_id: str | None = None
    reward: float | None = None


@dataclass(frozen=True, kw_only=True)
class RobotObservation:
    """What a robot policy saw: `state` (S,) as the embodiment lays out, a file for each camera, `time_s` [s]."""

    embodiment: str
    state: tuple[float, ...]
    images: Mapping[str, str]
    instruction: str
    time_s: float
    tool_call_id: str | None = None
    reward: float | None = None


Action = MessageAction | ApiAction | CodeAction | ActionChunk
Observation = TextObservation | ImageObservation | WebObservation | RobotObservation
Item = Action | Observation


@dataclass(frozen=True, kw_only=True)
class Note:
    """What training knows of one item.

    loss       whether its tokens, or its chunk, are trained
    logp_old   log-probability [nat] of each token or step when it was sampled
    reward     after judging; the item's own `reward` is what the environment gave
    advantage  of `agents.advantages`
    group      attempts at the same task share it
    source     who wrote it
    dt         how long it took [s]
    """

    loss: bool = True
    logp_old: tuple[float, ...] | None = None
    reward: float | None = None
    advantage: float | None = None
    group: str | None = None
    source: Source = "policy"
    dt: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """An attempt from beginning to end; the rules of tool calls are checked when it is made.

    A tool call (`ApiAction`, `CodeAction`) that an observation follows has a `tool_call_id`, no two share one, and each
    is matched by exactly one later observation.
    """

    id: str
    content: tuple[Item, ...]
    schema_version: str = SCHEMA_VERSION
    available_custom_tools: tuple[str, ...] | None = None
    available_code_languages: tuple[str, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema_version not in READABLE_VERSIONS:
            raise SchemaError(f"schema_version is {self.schema_version!r}, expected one of {READABLE_VERSIONS}")
        _check_calls(self.content)
        _check_chunks(self.content)
        used = {item.language for item in self.content if isinstance(item, CodeAction)}
        if self.available_code_languages is not None and used != set(self.available_code_languages):
            raise SchemaError(
                f"available_code_languages is {sorted(self.available_code_languages)}, expected the languages that are "
                f"used: {sorted(used)}"
            )


@dataclass(frozen=True, kw_only=True)
class Record:
    """A trajectory and its notes, keyed by the index of the item."""

    trajectory: Trajectory
    notes: Mapping[int, Note] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.trajectory.content)
        for index, note in self.notes.items():
            if not 0 <= index < size:
                raise SchemaError(f"notes has index {index}, expected 0 to {size - 1}")
            if note.dt is not None and note.dt <= 0:
                raise SchemaError(f"notes[{index}].dt is {note.dt}, expected more than 0")


def _check_calls(content: tuple[Item, ...]) -> None:
    calls: dict[str, int] = {}
    answers: dict[str, int] = {}
    for index, item in enumerate(content):
        call = getattr(item, "tool_call_id", None)
        if isinstance(item, ApiAction | CodeAction):
            followed = index + 1 < len(content) and isinstance(content[index + 1], Observation)
            if call is None and followed:
                raise SchemaError(f"content[{index}]: a tool call that an observation follows needs a tool_call_id")
            if call is not None and calls.setdefault(call, index) != index:
                raise SchemaError(f"content[{index}]: tool_call_id {call!r} is that of content[{calls[call]}] already")
        elif call is not None:
            if call not in calls:
                raise SchemaError(f"content[{index}]: tool_call_id {call!r} is of no call before it")
            if answers.setdefault(call, index) != index:
                raise SchemaError(f"content[{index}]: tool_call_id {call!r} has its answer in content[{answers[call]}]")
    for call, index in calls.items():
        if call not in answers:
            raise SchemaError(f"content[{index}]: tool_call_id {call!r} has no observation with it")


def _check_chunks(content: tuple[Item, ...]) -> None:
    for index, item in enumerate(content):
        if isinstance(item, ActionChunk):
            if not item.actions or len({len(row) for row in item.actions}) != 1 or not item.actions[0]:
                raise SchemaError(f"content[{index}].actions: expected rows of one length, at least one number each")
            if item.dt_s <= 0:
                raise SchemaError(f"content[{index}].dt_s is {item.dt_s}, expected more than 0")


def to_json(value: Record | Trajectory) -> str:
    """One line of JSON. Raises SchemaError where a value is not of its field's type, since it would not come back."""
    written = _encode(value, "")
    if _decode(written, type(value), "") != value:
        raise SchemaError("a value would not come back equal: give tuples for sequences and lists inside JSON objects")
    return json.dumps(written, allow_nan=False, ensure_ascii=False)


def from_json[T: (Record, Trajectory)](text: str, kind: type[T] = Record) -> T:
    """Reads what `to_json` wrote, or a trajectory of the Agent Data Protocol with `kind=Trajectory`."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise SchemaError(f"not JSON: {error}") from error
    return _decode(value, kind, "")


def class_name(kind: type) -> str:
    """What stands in `class_`, e.g. "api_action"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


ITEMS: dict[str, type] = {class_name(kind): kind for kind in get_args(Item)}


def _encode(value: Any, place: str) -> Any:
    if is_dataclass(value):
        head = {"class_": class_name(type(value))} if type(value) in ITEMS.values() else {}
        written = {f.name: _encode(getattr(value, f.name), f"{place}.{f.name}") for f in fields(value)}
        needed = {f.name for f in fields(value) if f.default is MISSING}
        return head | {name: item for name, item in written.items() if item is not None or name in needed}
    if isinstance(value, Mapping):
        return {str(key): _encode(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise _wrong(value, "a JSON value", place)


def _decode(value: Any, kind: Any, place: str) -> Any:
    """`value` of JSON as `kind`, which is one of the annotations that the classes above use."""
    if kind is Any:
        return _plain(value, place)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _plain(float(value), place)
    if kind in (str, int, bool, NoneType) and type(value) is kind:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        repeated = arguments[-1] is Ellipsis
        if repeated or len(value) == len(arguments):
            kinds = [arguments[0]] * len(value) if repeated else arguments
            return tuple(_decode(item, k, f"{place}[{i}]") for i, (item, k) in enumerate(zip(value, kinds)))
    if origin is Mapping and isinstance(value, dict):
        return {_key(k, arguments[0], place): _decode(v, arguments[1], f"{place}[{k!r}]") for k, v in value.items()}
    if origin is UnionType:
        return _decode_union(value, arguments, place)
    if is_dataclass(kind) and isinstance(value, dict):
        return _decode_fields(value, kind, place)
    raise _wrong(value, _describe(kind), place)


def _decode_union(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not NoneType]
    if len(others) == 1:
        return _decode(value, others[0], place)
    named = value.get("class_") if isinstance(value, dict) else None
    if not isinstance(value, dict) or named not in ITEMS:
        raise SchemaError(f"{place or 'item'}: class_ is {named!r}, expected one of {', '.join(ITEMS)}")
    return _decode_fields(value, ITEMS[named], place)


def _decode_fields(value: dict[str, Any], kind: Any, place: str) -> Any:
    hints = _hints(kind)
    given = dict(value)
    if kind in ITEMS.values() and given.pop("class_", None) != class_name(kind):
        raise SchemaError(f"{place}.class_ is {value.get('class_')!r}, expected {class_name(kind)!r}")
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise SchemaError(f"{place or kind.__name__}: unknown field {unknown[0]!r}, expected {', '.join(hints)}")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in given]
    if missing:
        raise SchemaError(f"{place or kind.__name__}: field {missing[0]!r} is missing")
    return kind(**{name: _decode(item, hints[name], f"{place}.{name}".lstrip(".")) for name, item in given.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _key(key: str, kind: type, place: str) -> Any:
    if kind is str:
        return key
    if not re.fullmatch(r"0|[1-9][0-9]*", key):
        raise _wrong(key, "the index of an item", place)
    return int(key)


def _plain(value: Any, place: str) -> Any:
    """Any JSON value, as long as its numbers are finite."""
    if isinstance(value, dict):
        return {key: _plain(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(value, "a finite number", place)
    return value


def _describe(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "").replace("agents.schema.", "")


def _wrong(value: Any, expected: str, place: str) -> SchemaError:
    return SchemaError(
        f"{place.lstrip('.') or 'value'}: {str(value)[:40]!r} is {type(value).__name__}, expected {expected}"
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise SchemaError(f"a JSON object has a field twice, among {', '.join(key for key, _ in pairs)}")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise SchemaError(f"{name} is not JSON: numbers are finite")
