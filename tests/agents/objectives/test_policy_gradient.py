import math

import pytest
import torch

from agents.objectives.policy_gradient import (
    clip_fraction,
    importance_ratio,
    kl_k1_BN,
    kl_k3_BN,
    policy_gradient,
)

ONE = torch.ones(1, 1, dtype=torch.bool)


def single(ratio: float, advantage: float, **settings) -> tuple[float, float]:
    """Loss and its derivative in log p of one token with this ratio."""
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss = policy_gradient(
        logp, torch.tensor([advantage]), ONE, logp_old_BN=torch.zeros(1, 1, dtype=torch.float64), **settings
    )
    return loss.item(), torch.autograd.grad(loss, logp)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "settings", "loss", "slope"),
    [
        (1.1, 2.0, {}, -2.2, -2.2),
        (1.5, 2.0, {}, -2.4, 0.0),
        (1.27, 1.0, {"clip_high": 0.28}, -1.27, -1.27),
        (1.27, 1.0, {"clip_high": 0.2}, -1.2, 0.0),
        (0.5, 2.0, {}, -1.0, -1.0),
        (0.5, -2.0, {}, 1.6, 0.0),
        (5.0, -2.0, {}, 10.0, 10.0),
        (5.0, -2.0, {"dual_clip": 3.0}, 6.0, 0.0),
        (5.0, 2.0, {"dual_clip": 3.0}, -2.4, 0.0),
        (5.0, 2.0, {"surrogate": "cispo", "clip_low": 1.0}, -1.2 * 2 * math.log(5), -2.4),
        (5.0, 2.0, {"surrogate": "reinforce"}, -2 * math.log(5), -2.0),
    ],
)
def test_one_token_by_hand(ratio, advantage, settings, loss, slope):
    assert single(ratio, advantage, **settings) == pytest.approx((loss, slope))


def test_on_policy_every_surrogate_has_the_gradient_of_reinforce():
    logp = torch.randn(3, 5, requires_grad=True)
    advantages, mask = torch.randn(3), torch.rand(3, 5) < 0.7
    gradients = [
        torch.autograd.grad(policy_gradient(logp, advantages, mask, surrogate=name), logp)[0]  # type: ignore[arg-type]
        for name in ("clip", "cispo", "reinforce")
    ]
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


def test_ratio_of_a_sequence():
    logp = torch.tensor([[0.1, 0.3, 9.0]])
    mask = torch.tensor([[True, True, False]])
    old = torch.zeros(1, 3)
    assert importance_ratio(logp, old, mask, "sequence_sum")[0].tolist() == pytest.approx([math.exp(0.4)] * 3)
    assert importance_ratio(logp, old, mask, "sequence_mean")[0].tolist() == pytest.approx([math.exp(0.2)] * 3)
    assert importance_ratio(logp, old, mask)[0, :2].tolist() == pytest.approx([math.exp(0.1), math.exp(0.3)])


def test_clip_range_may_differ_between_tokens():
    """Tokens of a demonstration have a range of their own."""
    logp = torch.full((1, 2), math.log(1.5))
    high = torch.tensor([[0.2, 1.0]])
    mask, old = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    loss = policy_gradient(logp, torch.ones(1), mask, logp_old_BN=old, clip_high=high)
    assert float(loss) == pytest.approx(-(1.2 + 1.5) / 2)


def test_no_weight_no_advantage_no_gradient():
    logp = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    for advantages, weights in ((torch.zeros(2), None), (torch.ones(2), torch.zeros(2, 3))):
        loss = policy_gradient(logp, advantages, mask, logp_old_BN=torch.randn(2, 3), weights=weights)
        assert torch.autograd.grad(loss, logp)[0].abs().max() == 0


@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_sum"])
def test_finite_for_any_log_ratio(ratio):
    logp = torch.tensor([[900.0, -900.0, 0.0]], requires_grad=True)
    mask, old = torch.tensor([[True, True, False]]), torch.tensor([[0.0, 0.0, -torch.inf]])
    for advantage in (-1.0, 0.0, 1.0):
        loss = policy_gradient(logp, torch.tensor([advantage]), mask, logp_old_BN=old, ratio=ratio)
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, logp)[0]).all()


def test_kl_estimates_by_enumeration():
    """Means over a whole vocabulary: both estimate KL(p || ref); as losses neither has its gradient."""
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(7, dtype=torch.float64).log_softmax(-1)
    logp = logits.log_softmax(-1)
    p = logp.detach().exp()
    kl = (p * (logp.detach() - ref)).sum()
    k1, k3 = kl_k1_BN(logp[None], ref[None])[0], kl_k3_BN(logp[None], ref[None])[0]
    assert (k3 >= 0).all()
    torch.testing.assert_close((p * k1).sum().detach(), kl)
    torch.testing.assert_close((p * k3).sum().detach(), kl)
    slope_k1 = torch.autograd.grad((p * k1).sum(), logits, retain_graph=True)[0]
    slope_k3 = torch.autograd.grad((p * k3).sum(), logits, retain_graph=True)[0]
    forward_kl = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), logits)[0]
    torch.testing.assert_close(slope_k1, torch.zeros_like(slope_k1))
    torch.testing.assert_close(slope_k3, forward_kl)


@pytest.mark.parametrize("unbiased", [True, False])
def test_gradient_of_the_kl_term_by_enumeration(unbiased):
    """Every token of the vocabulary as a sample of the old policy, weighted by its probability there."""
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ref, old = (torch.randn(7, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    old = old if unbiased else logits.detach().log_softmax(-1)
    logp = logits.log_softmax(-1)
    slopes = torch.zeros(7, dtype=torch.float64)
    for a in range(7):
        loss = policy_gradient(
            logp[None, [a]],
            torch.zeros(1),
            ONE,
            logp_old_BN=old[None, [a]],
            logp_ref_BN=ref[None, [a]],
            kl_coefficient=0.3,
            unbiased_kl=unbiased,
        )
        slopes += old[a].exp() * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    reverse, forward = (logp.exp() * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    expected = torch.autograd.grad(0.3 * (reverse if unbiased else forward), logits)[0]
    torch.testing.assert_close(slopes, expected)


def test_clip_fraction():
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0]])
    assert clip_fraction(ratio, advantages, torch.ones(1, 5)) == pytest.approx(0.4)


def test_errors_name_what_is_wrong():
    logp, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"logp_ref has shape \(2, 4\).*same tokenizer"):
        policy_gradient(logp, torch.ones(2), mask, logp_ref_BN=torch.zeros(2, 4), kl_coefficient=0.1)
    with pytest.raises(ValueError, match="logp_ref is None"):
        policy_gradient(logp, torch.ones(2), mask, kl_coefficient=0.1)
    with pytest.raises(ValueError, match="advantages is nan"):
        policy_gradient(logp, torch.tensor([torch.nan, 1.0]), mask)
    with pytest.raises(ValueError, match=r"surrogate is 'ppo', expected one of clip"):
        policy_gradient(logp, torch.ones(2), mask, surrogate="ppo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ratio is 'chunk'"):
        policy_gradient(logp, torch.ones(2), mask, ratio="chunk")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dual_clip is 0\.5"):
        policy_gradient(logp, torch.ones(2), mask, dual_clip=0.5)
