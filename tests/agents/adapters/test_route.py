import pytest
import torch

from agents.adapters.route import SELECTOR, CallSpans, choose_tool, choose_toolset, split_call


def test_two_rows_of_one_call():
    masks = split_call(CallSpans(tool="add", name=(3, 5), arguments=(6, 9)), size=10)
    assert list(masks) == [SELECTOR, "arguments_add"]
    assert masks[SELECTOR].nonzero()[:, 0].tolist() == [3, 4]
    assert masks["arguments_add"].nonzero()[:, 0].tolist() == [6, 7, 8]
    assert not (masks[SELECTOR] & masks["arguments_add"]).any()


def test_the_likeliest_listed_name_wins_whatever_its_length():
    """add = 0.6 * 0.5, add_many = 0.6 * 0.5 * 0.9 * 0.9 by its tokens: the token that ends a name decides."""
    add, add_many = torch.tensor([0.6, 0.5, 0.2]).log(), torch.tensor([0.6, 0.5, 0.8, 0.9]).log()
    assert choose_tool([add, add_many], ["add", "add_many"]) == "add_many"
    assert choose_tool([add[:2], add_many], ["add", "add_many"]) == "add"  # without its end, the prefix always wins


def test_the_nearest_toolset():
    toolsets = {"files": torch.tensor([1.0, 0.1]), "arm": torch.tensor([0.0, 9.0])}
    assert choose_toolset(torch.tensor([0.2, 1.0]), toolsets) == "arm"
    assert choose_toolset(torch.tensor([7.0, 1.0]), toolsets) == "files"


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="non-empty spans in this order"):
        CallSpans(tool="add", name=(5, 3), arguments=(6, 9))
    with pytest.raises(ValueError, match="arguments end at 9"):
        split_call(CallSpans(tool="add", name=(3, 5), arguments=(6, 9)), size=8)
    with pytest.raises(ValueError, match="1 entries for 2 tools"):
        choose_tool([torch.zeros(1)], ["a", "b"])
    with pytest.raises(ValueError, match="toolsets is empty"):
        choose_toolset(torch.zeros(2), {})
