import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.objectives.reduce import aggregate, per_token, require_finite, require_shape, sequence_sum

LOSSES = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [("token", 16 / 4), ("sequence", (6 / 3 + 10) / 2), ("constant", 16 / (2 * 5))],
)
def test_the_three_means_by_hand(how, expected):
    assert float(aggregate(LOSSES, MASK, how, length=5)) == pytest.approx(expected)


@pytest.mark.parametrize(("how", "total"), [("token", 4), ("sequence", 2), ("constant", 2)])
def test_parts_of_a_step_add_up_to_the_whole(how, total):
    whole = aggregate(LOSSES, MASK, how, length=5)
    rows = [aggregate(LOSSES[[i]], MASK[[i]], how, total=torch.tensor(total), length=5) for i in range(2)]
    assert float(sum(rows)) == pytest.approx(float(whole))


def test_sequences_without_a_token_are_not_counted():
    empty = torch.cat([MASK, torch.zeros(1, 3, dtype=torch.bool)])
    losses = torch.cat([LOSSES, torch.ones(1, 3)])
    assert float(aggregate(losses, empty, "sequence")) == float(aggregate(LOSSES, MASK, "sequence"))


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_what_is_masked_may_be_infinite(how):
    losses = torch.where(MASK, LOSSES, torch.inf).requires_grad_()
    loss = aggregate(losses, MASK, how, length=3)
    loss.backward()
    assert losses.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(losses.grad).all()
    assert losses.grad[~MASK].abs().max() == 0


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_nothing_to_train_is_zero_with_zero_gradient(how):
    losses = torch.rand(2, 3, requires_grad=True)
    loss = aggregate(losses, torch.zeros(2, 3, dtype=torch.bool), how, length=3)
    loss.backward()
    assert loss.item() == 0
    assert losses.grad is not None
    assert losses.grad.abs().max() == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=6), min_size=1, max_size=5))
def test_means_equal_those_of_plain_python(rows):
    width = max(map(len, rows))
    losses = torch.tensor([row + [7.0] * (width - len(row)) for row in rows], dtype=torch.float64)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    flat = [x for row in rows for x in row]
    assert float(aggregate(losses, mask, "token")) == pytest.approx(sum(flat) / len(flat), abs=1e-9)
    by_row = sum(sum(row) / len(row) for row in rows) / len(rows)
    assert float(aggregate(losses, mask, "sequence")) == pytest.approx(by_row, abs=1e-9)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="expected one of token, sequence, constant"):
        aggregate(LOSSES, MASK, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length is None"):
        aggregate(LOSSES, MASK, "constant")
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2\), expected \(2, 3\)"):
        aggregate(LOSSES, MASK[:, :2])
    with pytest.raises(ValueError, match=r"weights has shape \(3,\)"):
        per_token(torch.ones(3), LOSSES, "weights")
    with pytest.raises(ValueError, match=r"rewards is nan at \[1\]"):
        require_finite("rewards", torch.tensor([1.0, torch.nan]))
    require_shape(LOSSES, other=None)


def test_sequence_sum():
    assert sequence_sum(LOSSES, MASK).tolist() == [6.0, 10.0]
