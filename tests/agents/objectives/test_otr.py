import pytest
import torch

from agents.objectives.otr import one_token_rollout_BN, one_token_rollout_mean_BN

LOGITS = torch.tensor([[[0.5, -1.0, 2.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
IDS = torch.tensor([[2, 0]])


@pytest.mark.parametrize("kappa", [0.7, 1.0, 1.5])
def test_mean_over_draws_by_enumeration(kappa):
    law, logp = (LOGITS / kappa).softmax(-1), LOGITS.log_softmax(-1)
    expected = [
        -sum(float(law[0, n, a] * (1.0 if a == IDS[0, n] else -0.2) * logp[0, n, a]) for a in range(3))
        for n in range(2)
    ]
    assert one_token_rollout_mean_BN(LOGITS, IDS, beta=-0.2, kappa=kappa)[0].tolist() == pytest.approx(
        expected, rel=1e-5
    )


def test_draws_have_that_mean_and_its_gradient():
    logits = LOGITS.clone().requires_grad_()
    drawn = one_token_rollout_BN(
        logits, IDS, draws=200_000, beta=-0.2, kappa=1.3, generator=torch.Generator().manual_seed(0)
    )
    exact = one_token_rollout_mean_BN(logits, IDS, beta=-0.2, kappa=1.3)
    torch.testing.assert_close(drawn, exact, atol=0.02, rtol=0)
    slopes = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (drawn, exact)]
    torch.testing.assert_close(slopes[0], slopes[1], atol=0.01, rtol=0)


def test_draws_repeat_with_their_generator():
    def loss() -> torch.Tensor:
        return one_token_rollout_BN(LOGITS, IDS, draws=4, generator=torch.Generator().manual_seed(3))

    assert torch.equal(loss(), loss())
