"""What each recipe collects, selects and weighs, on cases small enough to work out by hand."""

import pytest
import torch
from torch import Tensor, nn

from agents.batch import pack
from agents.envs.arithmetic import question
from agents.envs.tools import requests
from agents.judges.toolcall import Call
from agents.objectives.reduce import sequence_sum
from agents.policies.decoder import Decoder, frozen_copy, token_logp
from agents.policies.vocabulary import END
from agents.recipes import tool_calls
from agents.recipes.bandits import finished
from agents.recipes.feedback import told
from agents.recipes.fine_tune import hide
from agents.recipes.mixed import mixing, prefix_batch
from agents.recipes.raft import best_of
from agents.recipes.rise import context, improvements
from agents.recipes.s3ft import targets
from agents.recipes.spin import pair_objective, pairs
from agents.recipes.sums import BOOK, demonstrated, group_batch

TASKS = [question(27, 15, digits=2), question(60, 9, digits=2)]


class Fixed(nn.Module):
    """Answers every question with the same text, whatever it is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.turn = [*BOOK.encode(text), END], -1

    def forward(self, ids_BN: Tensor, cache: object = None) -> Tensor:
        self.turn = 0 if ids_BN.shape[1] > 1 else self.turn + 1
        logits_BNV = torch.full((*ids_BN.shape, len(BOOK)), -30.0)
        logits_BNV[..., self.ids[min(self.turn, len(self.ids) - 1)]] = 30.0
        return logits_BNV


def fresh() -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocabulary=len(BOOK), width=16, layers=1, heads=2, context=32)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def text(ids: Tensor) -> str:
    return BOOK.decode(ids.tolist())


def test_raft_keeps_only_right_answers() -> None:
    kept = best_of(TASKS, Fixed("240"), generator(), samples=3, ranked=True)
    assert kept is not None and len(kept) == 1
    assert text(kept.targets_BN[0][kept.mask_BN[0]]) == TASKS[0].answer
    unranked = best_of(TASKS, Fixed("240"), generator(), samples=3, ranked=False)
    assert unranked is not None and len(unranked) == 2
    assert best_of(TASKS, Fixed("999"), generator(), samples=3, ranked=True) is None


def test_rise_trains_the_last_turn_alone() -> None:
    assert BOOK.decode(context(TASKS[0], ["111", "222"])) == "27+15=222x"
    # the first answer to 27+15 is right and is kept; that to 60+09 is wrong and never mended
    kept = improvements(TASKS, Fixed("240"), generator(), samples=2, tau=1.0)
    assert kept is not None and len(kept) == 1
    assert text(kept.targets_BN[0][kept.mask_BN[0]]) == "240"
    assert kept.weights_BN[0][kept.mask_BN[0]].unique().tolist() == [pytest.approx(2.71828, abs=1e-4)]


def test_groups_without_contrast_are_dropped() -> None:
    assert group_batch(Fixed("240"), TASKS, 4, generator()) == []


def test_spin_at_its_own_reference_is_log_two_with_half_the_gradient() -> None:
    policy, beta = fresh(), 0.1
    rows = pairs(TASKS, frozen_copy(policy), generator())
    loss = pair_objective(policy, frozen_copy(policy), rows, beta)
    assert loss.item() == pytest.approx(0.693147, abs=1e-5)
    got = torch.autograd.grad(loss, list(policy.parameters()))
    logp_B = sequence_sum(token_logp(policy, rows.inputs_BN, rows.targets_BN), rows.mask_BN)
    wanted = torch.autograd.grad(-beta / 2 * (logp_B[::2] - logp_B[1::2]).mean(), list(policy.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted, strict=True))


def test_masked_thought_hides_answers_and_keeps_labels_and_questions() -> None:
    rows = demonstrated(TASKS)
    hidden = hide(rows, 1.0, generator())
    assert torch.equal(hidden.targets_BN, rows.targets_BN)
    assert text(hidden.inputs_BN[0]) == "27+15=???"
    assert torch.equal(hide(rows, 0.0, generator()).inputs_BN, rows.inputs_BN)


def test_s3ft_prefers_own_right_answers_then_own_style() -> None:
    said = [BOOK.decode(row.ids) for row in targets(Fixed(".240"), TASKS, selective=True)]
    assert said == ["27+15=.240", "60+09=960"]
    assert [BOOK.decode(row.ids) for row in targets(Fixed("240"), TASKS, selective=False)] == [
        "27+15=.240",
        "60+09=.960",
    ]


def test_feedback_is_the_judges() -> None:
    assert (told(TASKS[0], "240"), told(TASKS[0], "241")) == (".", "x")


def test_chord_rises_and_falls() -> None:
    shares = [mixing(step, 100, 0.5) for step in range(1, 101)]
    assert shares[0] == pytest.approx(0.05) and max(shares) == shares[9] == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(0.05)
    assert shares[9:] == sorted(shares[9:], reverse=True)


def test_prefix_tokens_share_one_advantage_and_the_prompt_has_none() -> None:
    rows = pack(prefix_batch(Fixed("999"), TASKS[:1], 3, 0.9, generator()))
    assert len(rows) == 3
    assert text(rows.targets_BN[2]).startswith("7+15=24")  # two of three digits are the demonstration's
    assert rows.advantages_BN[~rows.mask_BN].abs().sum() == 0


def test_a_failed_call_has_no_loss_where_errors_are_masked() -> None:
    request = requests(1, torch.Generator().manual_seed(1))[0]
    slip = Call(name="lock window" if request.call.name != "lock window" else "lock door", arguments={"room": "hall"})
    for mask in (True, False):
        batch = pack([tool_calls.example(request, slip, mask=mask)])
        trained = tool_calls.BOOK.decode(batch.targets_BN[0][batch.mask_BN[0]].tolist())
        assert ("lock" in trained.split()[:1]) != mask
        assert "error" not in trained


def test_quick_actions_finish_more_often() -> None:
    drawn = finished(torch.zeros(2), torch.tensor([1.0, 9.0]), 20_000, generator())
    assert (drawn == 0).float().mean().item() == pytest.approx(0.9, abs=0.01)
