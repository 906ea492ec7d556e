"""The decoder: sampling with a cache equals the whole pass, and padding changes nothing."""

import pytest
import torch

from agents.policies.decoder import Decoder, sample, token_logp
from agents.policies.vocabulary import END, PAD, Vocabulary

PROMPTS = [[2, 3, 4], [5], [6, 7, 2, 3, 9]]


@pytest.fixture
def policy() -> Decoder:
    torch.manual_seed(0)
    model = Decoder(vocabulary=11, width=16, layers=2, heads=2, context=24)
    with torch.no_grad():  # away from near-uniform logits, so that a wrong position shows
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def greedy(policy: Decoder, prompt: list[int], limit: int) -> list[int]:
    """Token by token, the whole row each time and no cache."""
    ids = list(prompt)
    for _ in range(limit):
        logits_V = policy(torch.tensor([ids]))[0, -1].detach()
        logits_V[PAD] = -torch.inf
        ids.append(int(logits_V.argmax()))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


def test_cached_samples_equal_whole_passes(policy: Decoder) -> None:
    assert sample(policy, PROMPTS, limit=8, temperature=0) == [greedy(policy, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(policy: Decoder, side: str) -> None:
    row = torch.tensor([PROMPTS[2]])
    pad = torch.full((1, 4), PAD)
    padded = policy(torch.cat([pad, row] if side == "left" else [row, pad], dim=1))
    kept = padded[:, 4:] if side == "left" else padded[:, :-4]
    assert torch.allclose(kept, policy(row), atol=1e-5)
    assert torch.isfinite(padded).all()


def test_a_token_does_not_see_the_future(policy: Decoder) -> None:
    row = torch.tensor([PROMPTS[2]])
    other = row.clone()
    other[0, -1] = 4
    assert torch.equal(policy(row)[:, :-1], policy(other)[:, :-1])
    assert not torch.allclose(policy(row)[:, -1], policy(other)[:, -1])


def test_samples_follow_the_law(policy: Decoder) -> None:
    drawn = sample(policy, [PROMPTS[0]] * 4000, limit=1, generator=torch.Generator().manual_seed(0))
    logits_V = policy(torch.tensor([PROMPTS[0]]))[0, -1].detach()
    logits_V[PAD] = -torch.inf
    seen_V = torch.bincount(torch.tensor(drawn).flatten(), minlength=11) / 4000
    assert (seen_V - logits_V.softmax(0)).abs().max() < 0.03
    assert seen_V[PAD] == 0


def test_log_probability_is_of_the_next_token(policy: Decoder) -> None:
    row = torch.tensor([PROMPTS[2]])
    logp_BN = token_logp(policy, row[:, :-1], row[:, 1:])
    whole_NV = policy(row)[0].log_softmax(-1)
    assert logp_BN[0, 1].item() == pytest.approx(whole_NV[1, row[0, 2]].item(), abs=1e-5)


def test_too_long_a_row_is_refused(policy: Decoder) -> None:
    with pytest.raises(ValueError, match="at most 24"):
        policy(torch.full((1, 25), 3))


def test_vocabulary_comes_back_and_end_is_not_padding() -> None:
    book = Vocabulary(["set", "lamp", "x"], words=True)
    assert book.decode([*book.encode("set lamp x"), END, 2]) == "set lamp x"
    assert PAD != END
    with pytest.raises(ValueError, match="lampe"):
        book.encode("set lampe")
