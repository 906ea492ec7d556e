"""Eight exact identities between methods; each catches a bug that training would only hint at."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from agents.adapters.guidance import guide
from agents.adapters.merge import breadcrumbs, task_arithmetic
from agents.advantages import duration_weights, group_advantages
from agents.objectives.balance import balance_loss
from agents.objectives.masks import tree_layout
from agents.objectives.nll import dft_weights, nll
from agents.objectives.otr import one_token_rollout_mean_BN
from agents.objectives.pair import pair_loss, pair_margin
from agents.objectives.policy_gradient import policy_gradient
from agents.objectives.reduce import aggregate, sequence_sum
from agents.objectives.softq import soft_q_BN, soft_rewards_BN
from agents.objectives.tokens import token_cross_entropy


class TinyModel(nn.Module):
    """Two layers of causal attention in double precision, enough for context to matter."""

    def __init__(self, vocabulary: int = 11, width: int = 8) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.mix = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)
        self.double()

    def forward(self, ids_BN: Tensor, mask_NN: Tensor | None = None, positions_N: Tensor | None = None) -> Tensor:
        size = ids_BN.shape[1]
        mask_NN = torch.ones(size, size, dtype=torch.bool).tril() if mask_NN is None else mask_NN
        x = self.tokens(ids_BN) + self.places(torch.arange(size) if positions_N is None else positions_N)
        for layer in self.mix:
            x = x + functional.scaled_dot_product_attention(*layer(x).chunk(3, dim=-1), attn_mask=mask_NN)
        return self.head(x)

    def logp(self, ids_BN: Tensor) -> Tensor:
        """Of each token but the first, (B, N - 1)."""
        return -token_cross_entropy_double(self(ids_BN)[:, :-1], ids_BN[:, 1:])


def token_cross_entropy_double(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none").view(ids.shape)


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=False)])


@pytest.fixture
def model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel()


IDS = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 6, 7, 8]])
ANSWER = torch.tensor([[False, True, True, True], [False, True, True, True]])


@pytest.mark.parametrize("beta", [0.0, -0.1, 0.4])
def test_1_one_token_rollouts_are_dft(model, beta):
    logits, labels = model(IDS)[:, :-1], IDS[:, 1:]
    rollout = aggregate(one_token_rollout_mean_BN(logits, labels, beta=beta), ANSWER)
    logp = model.logp(IDS)
    dft, sft = nll(logp, ANSWER, dft_weights(logp)), nll(model.logp(IDS), ANSWER)
    expected = (1 - beta) * gradient(dft, model)
    found = gradient(rollout, model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, (1 - beta) * gradient(sft, model), rtol=1e-2)


def test_2_spin_starts_at_log_2(model):
    logp = sequence_sum(model.logp(IDS), ANSWER)
    loss = pair_loss(pair_margin(logp[:1], logp[1:], logp[:1], logp[1:]), 0.1).mean()
    assert loss.item() == pytest.approx(math.log(2))
    fresh = sequence_sum(model.logp(IDS), ANSWER)
    torch.testing.assert_close(gradient(loss, model), gradient(-0.05 * (fresh[0] - fresh[1]), model))


def test_3_grpo_of_a_pair_is_parallel_to_dpo_at_the_reference(model):
    logp = model.logp(IDS)
    advantages = group_advantages(torch.tensor([1.0, 0.0]), torch.tensor([7, 7])).advantages_B
    grpo = gradient(policy_gradient(logp, advantages, ANSWER, how="constant", length=4), model)
    sums = sequence_sum(model.logp(IDS), ANSWER)
    dpo = gradient(pair_loss(pair_margin(sums[:1], sums[1:], sums[:1], sums[1:]), 0.1).mean(), model)
    assert torch.cosine_similarity(grpo, dpo, dim=0).item() == pytest.approx(1.0, abs=1e-9)


def test_3_fails_with_means_of_sequences_of_different_length(model):
    uneven = ANSWER.clone()
    uneven[0, 2:] = False
    advantages = torch.tensor([0.5, -0.5])
    grpo = gradient(policy_gradient(model.logp(IDS), advantages, uneven, how="sequence"), model)
    sums = sequence_sum(model.logp(IDS), uneven)
    dpo = gradient(pair_loss(pair_margin(sums[:1], sums[1:], sums[:1], sums[1:]), 0.1).mean(), model)
    assert torch.cosine_similarity(grpo, dpo, dim=0).item() < 0.999


def test_4_soft_q_without_penalty_is_the_likelihood_and_its_rewards_telescope(model):
    logits, labels = model(IDS)[:, :-1], IDS[:, 1:]
    torch.testing.assert_close(
        soft_q_BN(logits, labels, ANSWER, penalty=0.0), token_cross_entropy(logits, labels).where(ANSWER, 0.0)
    )
    total = soft_rewards_BN(logits, labels, ANSWER, discount=1.0).sum(1)
    first_value = logits[:, 1].logsumexp(-1)
    expected = sequence_sum(model.logp(IDS), ANSWER) + first_value
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)


def test_5_limits_of_the_adapters():
    usage, types = torch.full((3, 4), 0.25), torch.tensor([0, 0, 1, 1])
    assert balance_loss(usage, types[:3], types, delta=0.0).item() == 0
    base = {"w": torch.randn(3, 5), "b": torch.randn(4)}
    tuned = [{name: value + torch.randn_like(value) for name, value in base.items()} for _ in range(3)]
    merged, added = breadcrumbs(base, tuned, 0.3, keep=1.0, remove=0.0), task_arithmetic(base, tuned, 0.3)
    assert all(torch.equal(merged[name], added[name]) for name in base)
    assert torch.equal(guide(base["w"], tuned[0]["w"], 0.0), base["w"])
    assert torch.equal(guide(base["w"], tuned[0]["w"], 1.0), tuned[0]["w"])


def test_6_durations_make_free_running_actors_synchronous():
    """pi = (0.6, 0.4) and actions of 1 s and 2 s: in a second, free-running actors finish them 3 to 1."""
    logits = torch.tensor([0.6, 0.4]).log().requires_grad_()
    advantages, durations = torch.tensor([0.3, 1.0]), torch.tensor([1.0, 2.0])
    arms = torch.tensor([0, 0, 0, 1])
    mask = torch.ones(4, 1, dtype=torch.bool)

    def slope(weights: Tensor | None) -> Tensor:
        logp = logits.log_softmax(-1)[arms, None]
        return torch.autograd.grad(policy_gradient(logp, advantages[arms], mask, weights=weights), logits)[0]

    synchronous = torch.autograd.grad(-(logits.softmax(-1) * advantages).sum(), logits)[0]
    torch.testing.assert_close(slope(duration_weights(durations[arms])), synchronous)
    assert not torch.allclose(slope(None), synchronous)


def test_7_a_tree_in_one_row_has_the_gradient_of_its_attempts(model):
    """Shared 1 2; then 3 4 5 in one attempt, 6 7 8 in the other."""
    flat = -model.logp(IDS).sum()
    packed = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    parent = torch.tensor([-1, 0, 1, 2, 3, 1, 5, 6])
    mask, positions, leaves = tree_layout(parent)
    children = torch.arange(1, 8)

    def loss(mask: Tensor | None, weights: Tensor) -> Tensor:
        logits = model(packed, mask, positions)[:, parent[children]]
        logp = -token_cross_entropy_double(logits, packed[:, children])
        return nll(logp, torch.ones_like(logp, dtype=torch.bool), weights[None, children], total=torch.tensor(1.0))

    expected = gradient(flat, model)
    torch.testing.assert_close(gradient(loss(mask, leaves), model), expected)
    assert not torch.allclose(gradient(loss(mask, torch.ones_like(leaves)), model), expected)
    assert not torch.allclose(gradient(loss(None, leaves), model), expected)


def test_8_accumulated_token_means_equal_the_whole_batch(model):
    uneven = ANSWER.clone()
    uneven[1, 2:] = False
    whole = gradient(nll(model.logp(IDS), uneven), model)
    total = uneven.sum()
    parts = [gradient(nll(model.logp(IDS[[i]]), uneven[[i]], total=total), model) for i in range(2)]
    means = [gradient(nll(model.logp(IDS[[i]]), uneven[[i]]), model) / 2 for i in range(2)]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    assert not torch.allclose(means[0] + means[1], whole)  # a mean of means, the published bug
