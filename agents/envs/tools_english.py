"""Tools as a language model meets them: typed arguments, requests in English, a few tools offered with each request.

Three sets. `KNOWN` is trained on. `NEW` shares no tool with it, only names of arguments. `RENAMED` shares neither tools
nor names of arguments. What is asked in tests has values (choices of a fixed list aside) that no training request has,
so a right answer was read from the request. A tool is shown as a signature, `set_timer(minutes: integer, label?:
string)`, made from the JSON schema that judges the call: a schema written out would cost four times the tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import torch

from agents.judges.toolcall import Call, Tool, parse_call, validates

COLUMNS = ("JSON", "tool offered", "arguments", "valid", "right tool", "right values")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What an argument may be.

    schema  its JSON schema
    values  of training requests
    fresh   of test requests
    said    in a request, where not as it is written in the call
    """

    schema: Mapping[str, Any]
    values: tuple[Any, ...]
    fresh: tuple[Any, ...]
    said: Mapping[Any, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A tool with ways to ask for it; an argument that one of them leaves out is optional."""

    name: str
    arguments: Mapping[str, Kind]
    asks: tuple[str, ...]

    @property
    def tool(self) -> Tool:
        """Name and schema."""
        needed = [key for key in self.arguments if all(key in _mentioned(ask) for ask in self.asks)]
        properties = {key: dict(kind.schema) for key, kind in self.arguments.items()}
        schema = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
        return Tool(name=self.name, schema=schema)


@dataclass(frozen=True, kw_only=True)
class ToolRequest:
    """`text` as it is asked, the tools that are offered, the call that answers it."""

    text: str
    offered: tuple[Tool, ...]
    call: Call


def _choice(*values: str) -> Kind:
    return Kind(schema={"enum": list(values)}, values=values, fresh=values)


def _text(values: str, fresh: str) -> Kind:
    return Kind(schema={"type": "string"}, values=tuple(values.split(", ")), fresh=tuple(fresh.split(", ")))


def _whole(low: int, high: int) -> Kind:
    return Kind(schema={"type": "integer"}, values=tuple(range(low, high, 2)), fresh=tuple(range(low + 1, high, 2)))


def _decimal(low: int, high: int) -> Kind:
    values, fresh = (tuple(each + tenth for each in range(low, high)) for tenth in (0.5, 0.25))
    return Kind(schema={"type": "number"}, values=values, fresh=fresh)


def _flag(yes: str, no: str) -> Kind:
    return Kind(schema={"type": "boolean"}, values=(True, False), fresh=(True, False), said={True: yes, False: no})


ROOM = _choice("kitchen", "bedroom", "hall", "office")
CITY = _text("Paris, London, Rome, Madrid, Tokyo, Boston, Cairo, Vienna", "Berlin, Dublin, Oslo, Lima, Chicago")
PERSON = _text("Anna, Tom, Maria, John, Lucy, Peter, Sarah, Ben", "Emma, David, Nina, Mark, Julia")
TEXT = _text(
    "dinner is ready, the train is late, see you soon, call me back, the door is open, we are at home, thank you",
    "happy birthday, the car is broken, good luck tomorrow, lunch at noon, the shop is closed",
)
ITEM = _text("milk, bread, apples, rice, coffee, soap, cheese, salt", "butter, tea, eggs, onions, sugar")
TIME = _text("7:30, 8:15, 9:00, 12:45, 18:20, 21:10, 6:50", "10:05, 14:40, 5:25, 19:55, 22:30")
THING = _text("cube, cup, bottle, ball, box, spoon", "plate, book, can, pen, bowl")
PERCENT, COUNT, AMOUNT = _whole(5, 100), _whole(2, 15), _decimal(2, 60)
KINDS = {
    "room": ROOM,
    "day": _choice("monday", "tuesday", "friday", "sunday"),
    "colour": _choice("red", "green", "blue", "white"),
    "city": CITY,
    "start": CITY,
    "goal": CITY,
    "person": PERSON,
    "text": TEXT,
    "item": ITEM,
    "time": TIME,
    "thing": THING,
    "level": PERCENT,
    "minutes": _whole(3, 90),
    "count": COUNT,
    "degrees": _decimal(12, 28),
    "amount": AMOUNT,
    "metres": _decimal(0, 4),
    "on": _flag("on", "off"),
    "station": CITY,
    "hours": COUNT,
    "parcel_id": _whole(1000, 9000),
    "courier": _choice("dhl", "ups", "fedex"),
    "zone": _choice("north", "south", "roof"),
    "litres": AMOUNT,
    "student": PERSON,
    "score": PERCENT,
    "filename": _text("a.txt, b.pdf", "report.pdf, plan.txt, photo.png, letter.doc"),
    "copies": COUNT,
    "dock": _choice("left", "middle", "right"),
    "target": PERCENT,
    "valve": _whole(1, 40),
    "locked": _flag("Lock", "Unlock"),
    "film": _text("Jaws, Alien", "Gravity, Titanic, Rocky, Avatar"),
    "seats": COUNT,
}


def _skill(name: str, arguments: str, *asks: str) -> Skill:
    return Skill(name=name, arguments={key: KINDS[key] for key in arguments.split()}, asks=asks)


KNOWN = (
    _skill(
        "set_light", "room level", "Set the {room} light to {level} percent.", "Dim the light in the {room} to {level}."
    ),
    _skill("get_weather", "city day", "How is the weather in {city}?", "Will it rain in {city} on {day}?"),
    _skill("set_timer", "minutes", "Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes."),
    _skill("send_message", "person text", "Tell {person}: {text}.", 'Send "{text}" to {person}.'),
    _skill("add_to_list", "item count", "Put {item} on my list.", "Add {count} {item} to the shopping list."),
    _skill(
        "set_heating",
        "room degrees",
        "Heat the {room} to {degrees} degrees.",
        "I want {degrees} degrees in the {room}.",
    ),
    _skill("switch_fan", "room on", "Turn {on} the fan in the {room}.", "Fan in the {room} {on}, please."),
    _skill("set_alarm", "time day", "Wake me at {time}.", "I need an alarm at {time} on {day}."),
    _skill(
        "find_route",
        "start goal",
        "How do I get from {start} to {goal}?",
        "Show the way to {goal}, starting in {start}.",
    ),
    _skill("book_train", "start goal day", "A train from {start} to {goal} on {day}, please."),
    _skill("call_person", "person", "Call {person}.", "I would like to talk to {person} on the phone."),
    _skill("create_note", "text", "Write a note: {text}.", 'Note down "{text}".'),
    _skill("pay_person", "person amount", "Pay {amount} euros to {person}.", "I owe {person} {amount}, settle that."),
    _skill("pick_object", "thing colour", "Pick up the {colour} {thing}.", "Grasp the {thing}, the {colour} one."),
    _skill("drive_forward", "metres", "Drive {metres} metres ahead.", "Go forward {metres} m."),
    _skill("clean_room", "room minutes", "Vacuum the {room}.", "Clean the {room} for {minutes} minutes."),
    _skill("paint_lamp", "room colour", "Make the lamp in the {room} {colour}."),
    _skill("search_shop", "item city", "Where can I buy {item} in {city}?", "Find a shop in {city} that has {item}."),
    _skill("count_objects", "thing", "How many of this do you see: {thing}?", "Count every {thing} on the table."),
    _skill("set_volume", "level", "Volume to {level}.", "Play at {level} percent volume."),
)

NEW = (
    _skill("set_blinds", "room level", "Close the blinds of the {room} to {level} percent."),
    _skill("remind_person", "person text time", "Remind {person} at {time}: {text}.", 'Remind {person}: "{text}".'),
    _skill("order_food", "item count", "Order {count} {item} from the market.", "Have {item} delivered."),
    _skill("get_pollen", "city day", "How much pollen is there in {city} on {day}?"),
    _skill("switch_heater", "room on", "Switch the heater in the {room} {on}."),
    _skill("book_hotel", "city day count", "A hotel in {city} from {day} for {count} people."),
    _skill("sell_item", "item amount", "Sell the {item} for {amount} euros."),
    _skill("push_object", "thing metres", "Push the {thing} {metres} metres away."),
)

RENAMED = (
    _skill("rent_bike", "station hours", "Rent a bike at the station {station} for {hours} hours."),
    _skill("track_parcel", "parcel_id courier", "Where is parcel {parcel_id}, sent with {courier}?"),
    _skill("water_plants", "zone litres", "Give the plants in the {zone} zone {litres} litres."),
    _skill("grade_essay", "student score", "The essay of {student} gets a score of {score}."),
    _skill("print_file", "filename copies", "Print {copies} copies of {filename}.", "Print {filename}."),
    _skill("charge_robot", "dock target", "Charge up to {target} percent at the {dock} dock."),
    _skill("lock_valve", "valve locked", "{locked} valve number {valve}."),
    _skill("buy_ticket", "film seats", "{seats} seats for {film}, please."),
)


def tool_requests(
    count: int, skills: Sequence[Skill], generator: torch.Generator, *, fresh: bool, offered: int = 3
) -> list[ToolRequest]:
    """Drawn requests, each tool as often as the others.

    Args:
        count: of requests.
        skills: of the tool that is wanted and of those offered beside it.
        generator: draws them.
        fresh: whether values are those of tests.
        offered: tools in all, in drawn order.
    """
    return [_request(skills[number % len(skills)], skills, generator, fresh, offered) for number in range(count)]


def _request(
    skill: Skill, skills: Sequence[Skill], generator: torch.Generator, fresh: bool, offered: int
) -> ToolRequest:
    def below(size: int) -> int:
        return int(torch.randint(size, (), generator=generator))

    ask = skill.asks[below(len(skill.asks))]
    arguments: dict[str, Any] = {}
    for key in (key for key in skill.arguments if key in _mentioned(ask)):
        kind = skill.arguments[key]
        left = [value for value in (kind.fresh if fresh else kind.values) if value not in arguments.values()]
        arguments[key] = left[below(len(left))]
    said = {key: (skill.arguments[key].said or {}).get(value, value) for key, value in arguments.items()}
    others = [each for each in skills if each.name != skill.name]
    order = torch.randperm(len(others), generator=generator).tolist()[: offered - 1]
    tools = [others[each].tool for each in order]
    tools.insert(below(offered), skill.tool)
    return ToolRequest(text=ask.format(**said), offered=tuple(tools), call=Call(name=skill.name, arguments=arguments))


def signature(tool: Tool) -> str:
    """The tool in one line: names and types of its arguments, "?" after those that may be left out."""
    shown = []
    for key, kind in tool.schema["properties"].items():
        kinds = " | ".join(json.dumps(each) for each in kind["enum"]) if "enum" in kind else kind["type"]
        shown.append(f"{key}{'' if key in tool.schema['required'] else '?'}: {kinds}")
    return f"{tool.name}({', '.join(shown)})"


def written(call: Call) -> str:
    """The call as JSON, as `parse_call` reads it."""
    return json.dumps({"name": call.name, "arguments": dict(call.arguments)})


def looked_at(answer: str, request: ToolRequest) -> dict[str, bool]:
    """What is right about an answer, under the names of `COLUMNS`; "valid" has all before it, "right values" all.

    The answer must be the call and nothing else. "arguments" are their names: none missing, none that the tool lacks.
    """
    call, tools = parse_call(answer), {tool.name: tool for tool in request.offered}
    named = complete = chosen = False
    if call is not None:
        named, chosen = call.name in tools, call.name == request.call.name
        schema = tools[call.name].schema if named else None
        complete = schema is not None and set(schema["required"]) <= set(call.arguments) <= set(schema["properties"])
    valid = validates(call, tools)
    return dict(
        zip(COLUMNS, (call is not None, named, complete, valid, chosen, valid and call == request.call), strict=True)
    )


def _mentioned(ask: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(ask) if name}
