"""Facts in a linear memory: keys that overlap, so that one edit to convergence undoes another."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from agents.adapters.edit import edit_breadth_first, edit_depth_first, train_only


class Memory(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def setting() -> tuple[Memory, list[tuple[torch.Tensor, int]]]:
    torch.manual_seed(0)
    keys = torch.randn(12, 16) + 2 * torch.randn(16)  # a common part: the keys are far from orthogonal
    return Memory(), [(key, i % 6) for i, key in enumerate(keys)]


def losses_of(model: Memory):
    def losses(edits):
        keys, answers = torch.stack([key for key, _ in edits]), torch.tensor([answer for _, answer in edits])
        return functional.cross_entropy(model(keys), answers, reduction="none")

    return losses


def hold(model: Memory, edits) -> float:
    answers = torch.tensor([answer for _, answer in edits])
    return (model(torch.stack([key for key, _ in edits])).argmax(-1) == answers).float().mean().item()


def test_all_edits_together_hold_and_one_by_one_they_do_not():
    model, edits = setting()
    means = edit_breadth_first(
        train_only(model, "layers.1.weight"),
        edits,
        losses_of(model),
        rate=3e-2,
        batch=4,
        rounds=500,
        generator=torch.Generator().manual_seed(0),
    )
    assert hold(model, edits) == 1.0
    assert means[-1] < 1e-2
    assert len(means) < 500  # stopped

    one_by_one, edits = setting()
    parameter = train_only(one_by_one, "layers.1.weight")
    edit_depth_first(parameter, edits, losses_of(one_by_one), rate=3e-2, steps=200)
    assert hold(one_by_one, edits[-1:]) == 1.0
    assert hold(one_by_one, edits) < 0.8


def test_only_the_named_matrix_changes():
    model, edits = setting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edit_breadth_first(train_only(model, "layers.0.weight"), edits, losses_of(model), rounds=1)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["layers.0.weight"]


def test_edits_that_hold_are_left_alone():
    model, edits = setting()
    parameter = train_only(model, "layers.0.weight")
    before = parameter.clone()
    means = edit_breadth_first(parameter, edits, losses_of(model), threshold=1e9)
    assert len(means) == 1
    assert torch.equal(parameter, before)


def test_errors_name_what_is_wrong():
    model, edits = setting()
    with pytest.raises(ValueError, match=r"no parameter 'layers\.9\.weight', but e\.g\. layers\.0\.weight"):
        train_only(model, "layers.9.weight")
    with pytest.raises(ValueError, match="the loss of an edit is nan"):
        edit_breadth_first(
            train_only(model, "layers.0.weight"), edits, lambda _: torch.tensor([torch.nan], requires_grad=True)
        )
