"""The loop: parts of a step add up to the whole, and a resumed run is the same run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents.batch import Example, TokenBatch, answered, pack
from agents.objectives.nll import nll
from agents.policies.decoder import Decoder, token_logp
from agents.train.loop import Learner, learner, load, save, train, update
from agents.train.losses import blend, likelihood

ROWS = [answered([2], [3, 4, 5, 6, 1]), answered([2, 3], [1]), answered([4, 4, 4], [5, 1]), answered([6], [1])]


def fresh(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    return learner(Decoder(vocabulary=8, width=16, layers=1, heads=2, context=16), lr=1e-2, seed=seed)


def gradient(objective, parts: int) -> Tensor:
    state = fresh()
    state.optimizer.step = lambda *_: None  # type: ignore[method-assign]  # keep the weights, read the gradient
    state.optimizer.zero_grad = lambda *_, **__: None  # type: ignore[method-assign]
    update(state, pack(ROWS), objective, parts=parts, clip=1e9)
    return torch.cat([each.grad.flatten() for each in state.policy.parameters() if each.grad is not None])


def mean_of_means(policy: nn.Module, batch: TokenBatch, total: Tensor) -> Tensor:
    """The published mistake: each part divided by its own tokens."""
    return nll(token_logp(policy, batch.inputs_BN, batch.targets_BN), batch.mask_BN) / len(ROWS)


def test_parts_of_a_step_add_up() -> None:
    assert torch.allclose(gradient(likelihood, 1), gradient(likelihood, 4), atol=1e-6)
    assert not torch.allclose(gradient(mean_of_means, 4), gradient(likelihood, 1), atol=1e-3)


def draw(_: nn.Module, generator: torch.Generator) -> TokenBatch:
    return pack([ROWS[n] for n in torch.randint(len(ROWS), (3,), generator=generator).tolist()])


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    whole, half, resumed = fresh(), fresh(), fresh(1)
    train(whole, draw, likelihood, steps=6)
    train(half, draw, likelihood, steps=3)
    save(half, tmp_path / "learner.safetensors")
    load(resumed, tmp_path / "learner.safetensors")
    train(resumed, draw, likelihood, steps=6, log=tmp_path / "metrics.jsonl")
    for one, two in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(one, two)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_blend_is_its_parts() -> None:
    own = [answered([2], [3, 1], advantage=1.0), answered([2], [4, 1], advantage=-1.0)]
    shown = [answered([2], [5, 6, 1], expert=True)]
    policy, total = fresh().policy, torch.tensor(7)

    def loss(rows: list[Example], share: float) -> float:
        batch = pack(rows)
        return blend(policy, batch, batch.mask_BN.sum(), share=share, weigh=False).item()

    assert loss(own + shown, 1.0) == pytest.approx(likelihood(policy, pack(shown), torch.tensor(3)).item(), abs=1e-6)
    assert loss(own + shown, 0.3) == pytest.approx(0.7 * loss(own, 0.0) + 0.3 * loss(shown, 1.0), abs=1e-6)
    assert total == pack(own + shown).mask_BN.sum()


def test_nothing_to_learn_counts_as_a_step() -> None:
    state = fresh()
    assert train(state, lambda *_: None, likelihood, steps=3) == []
    assert state.step == 3


def test_examples_need_a_flag_for_each_id() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        Example(ids=(2, 3), loss=(True,))
    with pytest.raises(ValueError, match="empty"):
        pack([])
