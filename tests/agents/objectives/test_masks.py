import pytest
import torch

from agents.objectives.masks import (
    corrupt_inputs,
    divergence_points,
    padding_mask,
    target_mask,
    top_entropy_mask,
    tree_layout,
)


def test_targets_by_lengths_keep_the_end_token():
    """The padding's id is the end's id: a mask by id would lose the end, one by lengths does not."""
    end = 2
    ids = torch.tensor([[5, 6, 7, end, end, end], [5, 8, 9, 7, 6, end]])
    mask = target_mask(torch.tensor([2, 1]), torch.tensor([4, 6]), 6)
    assert mask.tolist() == [[False, False, True, True, False, False], [False] + [True] * 5]
    assert ids[mask].tolist().count(end) == 2
    assert ids[mask & (ids != end)].tolist().count(end) == 0  # the mask that the next test refuses


def test_padding_that_is_the_end_is_refused():
    with pytest.raises(ValueError, match="pad_id and end_id are both 2"):
        padding_mask(torch.tensor([[1, 2]]), pad_id=2, end_id=2)
    assert padding_mask(torch.tensor([[1, 2, 0]]), pad_id=0, end_id=2).tolist() == [[True, True, False]]


def test_labels_that_are_all_masked_away_are_an_error():
    with pytest.raises(ValueError, match="sequence 1 has no target"):
        target_mask(torch.tensor([2, 6]), torch.tensor([4, 6]), 6)
    with pytest.raises(ValueError, match="lengths has 7"):
        target_mask(torch.tensor([2]), torch.tensor([7]), 6)


def test_top_entropy_counts_over_the_batch():
    entropy = torch.tensor([[9.0, 1.0, 2.0], [3.0, 8.0, 7.0]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert top_entropy_mask(entropy, mask, 0.4).tolist() == [[False] * 3, [False, True, True]]
    assert top_entropy_mask(entropy, mask, 1.0).tolist() == mask.tolist()
    assert not top_entropy_mask(entropy, mask, 0.0).any()


def test_divergence_points_by_hand():
    get_user, get_users, get_order, drop = [1, 2, 3], [1, 2, 3, 4], [1, 2, 5], [9]
    assert divergence_points(get_user, [get_users, get_order, drop]) == [0, 2]
    assert divergence_points(get_users, [get_user, drop]) == [0, 3]
    assert divergence_points(drop, []) == [0]
    with pytest.raises(ValueError, match="no token"):
        divergence_points([], [drop])


def test_corruption_hides_its_share_of_the_answer_alone():
    ids = torch.arange(20_000).view(2, -1)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, 2000:] = True
    hidden = corrupt_inputs(ids, answer, 0.4, mask_id=-5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hidden[~answer], ids[~answer])
    assert ((hidden == -5)[answer]).float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert torch.equal(corrupt_inputs(ids, answer, 0.0, mask_id=0), ids)
    noise = corrupt_inputs(ids, answer, 1.0, vocabulary=3, generator=torch.Generator().manual_seed(0))
    assert set(noise[answer].tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="exactly one"):
        corrupt_inputs(ids, answer, 0.4)
    with pytest.raises(ValueError, match=r"rate is 1\.4"):
        corrupt_inputs(ids, answer, 1.4, mask_id=0)


def test_tree_layout_by_hand():
    """0-1 then either 2 or 3-4."""
    mask, positions, leaves = tree_layout(torch.tensor([-1, 0, 1, 1, 3]))
    assert positions.tolist() == [0, 1, 2, 2, 3]
    assert leaves.tolist() == [2, 2, 1, 1, 1]
    assert mask[4].tolist() == [True, True, False, True, True]
    with pytest.raises(ValueError, match="parent"):
        tree_layout(torch.tensor([-1, 2, 0]))
