import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.advantages import (
    duration_weights,
    group_advantages,
    leave_one_out_advantages,
    prefix_advantages,
    soft_overlong,
    spread_turns,
    turn_advantages,
)

rewards_and_groups = st.lists(st.tuples(st.floats(-5, 5, width=32), st.integers(0, 3)), min_size=2, max_size=12)


@settings(max_examples=40, deadline=None)
@given(rewards_and_groups, st.booleans())
def test_groups_against_plain_python(rows, scale):
    rewards, groups = torch.tensor([r for r, _ in rows], dtype=torch.float64), torch.tensor([g for _, g in rows])
    found = group_advantages(rewards, groups, scale=scale)
    for i, (reward, group) in enumerate(rows):
        mates = [r for r, g in rows if g == group]
        mean = sum(mates) / len(mates)
        if len(set(mates)) == 1:
            assert found.advantages_B[i] == 0
            assert not found.informative_B[i]
            continue
        deviation = (sum((r - mean) ** 2 for r in mates) / (len(mates) - 1)) ** 0.5
        expected = (reward - mean) / (deviation + 1e-4 if scale else 1.0)
        assert found.advantages_B[i].item() == pytest.approx(expected, abs=1e-6)
        assert found.informative_B[i]


def test_a_group_without_variance_has_exactly_no_advantage():
    """Rounding makes the mean of equal rewards another number: over epsilon that would be an advantage."""
    plain_formula = []
    for reward in (0.1, 0.3, 0.7, 1e3 + 0.1):
        rewards = torch.full((11,), reward)
        plain_formula.append(((rewards - rewards.mean()) / (rewards.std() + 1e-4)).abs().max().item())
        found = group_advantages(rewards, torch.zeros(11, dtype=torch.long))
        assert found.advantages_B.tolist() == [0.0] * 11
        assert not found.informative_B.any()
    assert max(plain_formula) > 1e-4


def test_dynamic_sampling_keeps_mixed_outcomes():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    kept = group_advantages(rewards, torch.tensor([0, 0, 1, 1, 2, 2])).informative_B
    assert kept.tolist() == [False, False, False, False, True, True]


def test_leave_one_out_by_hand():
    found = leave_one_out_advantages(torch.tensor([3.0, 0.0, 0.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 9, 9]))
    assert found.advantages_B.tolist() == pytest.approx([3.0, -1.5, -1.5, -2.0, 2.0])
    with pytest.raises(ValueError, match="group 9 has one attempt"):
        leave_one_out_advantages(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 9]))


def test_rewards_must_be_finite():
    with pytest.raises(ValueError, match=r"rewards is nan at \[1\]"):
        group_advantages(torch.tensor([0.0, torch.nan]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="groups has shape"):
        group_advantages(torch.zeros(2), torch.zeros(3))


def torchrl_advantages(rewards, values, valid, after, discount, smoothing):
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    out = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        n = int(valid[b].sum())
        next_values = torch.cat([values[b, 1:n], after[b : b + 1]])
        ended = torch.zeros(1, n, 1, dtype=torch.bool)
        advantage, _ = generalized_advantage_estimate(
            discount,
            smoothing,
            values[b, :n].view(1, n, 1),
            next_values.view(1, n, 1),
            rewards[b, :n].view(1, n, 1),
            done=ended,
            terminated=ended,
        )
        out[b, :n] = advantage.view(n)
    return out


def turns() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    valid = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    return rewards, values, valid, torch.tensor([0.7, 0.0, -2.0])


def test_turns_by_hand():
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    found = turn_advantages(rewards, values, valid, discount=0.9, smoothing=0.8)
    last = 1 - 0.25
    assert found[0].tolist() == pytest.approx([0.9 * 0.25 - 0.5 + 0.72 * last, last])


def test_turns_are_sums_of_errors():
    rewards, values, valid, after = turns()
    found = turn_advantages(rewards, values, valid, after_B=after, discount=0.9, smoothing=0.8)
    for b in range(3):
        n = int(valid[b].sum())
        ahead = [*values[b, 1:n].tolist(), after[b].item()]
        errors = [rewards[b, k].item() + 0.9 * ahead[k] - values[b, k].item() for k in range(n)]
        expected = [sum(0.72**j * errors[k + j] for j in range(n - k)) for k in range(n)]
        assert found[b, :n].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow  # the import alone
def test_turns_equal_another_library():
    pytest.importorskip("torchrl")
    rewards, values, valid, after = turns()
    found = turn_advantages(rewards, values, valid, after_B=after, discount=0.9, smoothing=0.8)
    torch.testing.assert_close(found, torchrl_advantages(rewards, values, valid, after, 0.9, 0.8))


def test_turns_limits():
    """Smoothing 1 is the return minus the value; padding changes nothing."""
    rewards, values, valid, after = turns()
    found = turn_advantages(rewards, values, valid, after_B=after, discount=0.9, smoothing=1.0)
    returns = rewards[0] @ 0.9 ** torch.arange(5.0) + 0.9**5 * after[0]
    assert found[0, 0].item() == pytest.approx((returns - values[0, 0]).item(), rel=1e-5)
    noise = torch.where(valid, rewards, 99.0)
    assert torch.equal(found, turn_advantages(noise, values, valid, after_B=after, discount=0.9, smoothing=1.0))
    assert found[~valid].abs().max() == 0
    with pytest.raises(ValueError, match="after one that did not take place"):
        turn_advantages(rewards, values, valid.flip(1))


def test_tokens_share_their_turn():
    spread = spread_turns(torch.tensor([[0.5, -1.0]]), torch.tensor([[0, 0, -1, 1, -1]]))
    assert spread.tolist() == [[0.5, 0.5, 0.0, -1.0, 0.0]]
    with pytest.raises(ValueError, match="turn has 2"):
        spread_turns(torch.zeros(1, 2), torch.tensor([[2]]))


def test_prefix_by_hand():
    """Own attempts 0 and 1; one attempt continues prefix 5, two continue prefix 6. Half of the tokens are prefixes."""
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    groups, prefixes = torch.zeros(5, dtype=torch.long), torch.tensor([0, 0, 5, 6, 6])
    prefix = torch.zeros(5, 2, dtype=torch.bool)
    prefix[2:, 0] = True
    found = prefix_advantages(rewards, groups, prefixes, prefix, epsilon=0.0)
    root = 0.5**0.5
    expected = [[-root, -root], [root, root], [0.5, 0.5], [-0.25, -root], [0.25, root]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_failed_continuation_is_blamed():
    """With nothing to compare with, the released code gives R >= 0; here a failure among successes is negative."""
    found = prefix_advantages(
        torch.tensor([1.0, 1.0, 0.0]),
        torch.zeros(3, dtype=torch.long),
        torch.tensor([0, 0, 5]),
        torch.tensor([[False, False], [False, False], [True, False]]),
    )
    assert found[2].tolist() == [-1.0, -1.0]


def test_a_prefix_needs_own_attempts():
    with pytest.raises(ValueError, match="group 3 has no attempt of the policy's own"):
        prefix_advantages(torch.ones(1), torch.tensor([3]), torch.tensor([0]), torch.tensor([[True, False]]))


def test_duration_weights_have_mean_one():
    weights = duration_weights(torch.tensor([1.0, 2.0, 3.0]))
    assert weights.tolist() == [0.5, 1.0, 1.5]
    with pytest.raises(ValueError, match="durations has 0"):
        duration_weights(torch.tensor([1.0, 0.0]))


def test_soft_overlong_by_hand():
    lengths = torch.tensor([0, 80, 90, 100, 500])
    assert soft_overlong(lengths, limit=100, buffer=20).tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])
    with pytest.raises(ValueError, match="buffer is 0"):
        soft_overlong(lengths, limit=100, buffer=0)
