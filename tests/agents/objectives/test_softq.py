import pytest
import torch

from agents.objectives.softq import soft_q_BN, soft_rewards_BN
from agents.objectives.tokens import token_cross_entropy


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 7, generator=generator).requires_grad_()
    ids = torch.randint(7, (2, 5), generator=generator)
    mask = torch.tensor([[False, True, False, True, True], [True, True, True, False, False]])
    return logits, ids, mask


def test_rewards_by_a_plain_loop():
    """Values at the next of the policy's own tokens: what the environment wrote in between is passed over."""
    logits, ids, mask = batch()
    rewards = soft_rewards_BN(logits, ids, mask, 0.9)
    for b in range(2):
        places = mask[b].nonzero()[:, 0].tolist()
        for here, after in zip(places, [*places[1:], None]):
            value = 0.0 if after is None else logits[b, after].logsumexp(-1).item()
            assert rewards[b, here].item() == pytest.approx(
                logits[b, here, ids[b, here]].item() - 0.9 * value, abs=1e-5
            )
    assert rewards[~mask].abs().max() == 0


def test_no_penalty_is_the_likelihood():
    logits, ids, mask = batch()
    loss = soft_q_BN(logits, ids, mask, penalty=0.0)
    torch.testing.assert_close(loss, token_cross_entropy(logits, ids).where(mask, 0.0))


def test_a_cut_sequence_has_no_penalty_at_its_end():
    logits, ids, mask = batch()
    cut = soft_q_BN(logits, ids, mask, penalty=0.5, cut_B=torch.tensor([True, False]))
    ended = soft_q_BN(logits, ids, mask, penalty=0.5)
    likelihood = token_cross_entropy(logits, ids)
    torch.testing.assert_close(cut[0, 4], likelihood[0, 4])
    assert cut[0, 4] != ended[0, 4]
    torch.testing.assert_close(cut[1], ended[1])
    torch.testing.assert_close(cut[0, :4], ended[0, :4])


def test_penalty_fixes_the_constant_that_the_likelihood_leaves_open():
    logits, ids, mask = batch()
    shifted = logits + 3.0
    assert torch.allclose(
        soft_q_BN(logits, ids, mask, penalty=0.0), soft_q_BN(shifted, ids, mask, penalty=0.0), atol=1e-5
    )
    assert not torch.allclose(soft_q_BN(logits, ids, mask, penalty=0.1), soft_q_BN(shifted, ids, mask, penalty=0.1))


def test_masked_tokens_have_no_gradient():
    logits, ids, mask = batch()
    soft_q_BN(logits, ids, mask, penalty=0.1).sum().backward()
    assert logits.grad is not None
    assert logits.grad[~mask].abs().max() == 0
    assert torch.isfinite(logits.grad).all()


def test_shapes_are_checked():
    logits, ids, mask = batch()
    with pytest.raises(ValueError, match=r"logits has shape \(2, 4\), expected \(2, 5\)"):
        soft_rewards_BN(logits[:, :4], ids, mask)
