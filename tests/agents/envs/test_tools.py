"""The house with tools: words and calls go round, mistakes are seen, schemas say the same."""

import torch

from agents.envs.tools import ERRORS, TOOLS, mistaken, read_call, reply, requests, vocabulary, write_call
from agents.judges.toolcall import validates


def test_calls_come_back_and_validate() -> None:
    book = vocabulary()
    for each in requests(300, torch.Generator().manual_seed(0)):
        text = write_call(each.call)
        assert read_call(book.decode(book.encode(text))) == each.call
        assert validates(each.call, TOOLS)
        assert book.decode(book.encode(each.text)) == each.text


def test_a_mistake_is_a_valid_call_that_the_house_refuses() -> None:
    generator = torch.Generator().manual_seed(0)
    said = set()
    for each in requests(300, generator):
        slip = mistaken(each.call, generator)
        assert slip != each.call and validates(slip, TOOLS)
        said.add(reply(slip, each.call))
        assert reply(each.call, each.call) == ";"
    assert said == set(ERRORS)


def test_no_call_is_read_from_other_words() -> None:
    for text in ("", "set", "set lamp room", "set lamp room hall room hall"):
        assert read_call(text) is None
