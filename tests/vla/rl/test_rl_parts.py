"""What algorithms share: masks, backups, conservatism, weights, running quantiles, draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.vla.rl.point import PROBLEM, demonstrations
from vla.rl.backup import candidate_values, pessimistic, states_after, taken_values, td_loss
from vla.rl.conservatism import conservative_logsumexp, even_chunks, floored, perturbed_chunks
from vla.rl.extraction import best_of, exponential_weights, imitation
from vla.rl.learner import seeded_draws
from vla.rl.presets import ACTORS, make_actor, make_critic
from vla.rl.task_quantiles import TaskQuantiles

BINARY_A = torch.tensor([False, True])


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def critic_of(kind: str, ensemble: int = 2):
    torch.manual_seed(0)
    return make_critic(kind, PROBLEM, width=16, layers=1, ensemble=ensemble, law="squared")


@pytest.mark.parametrize("name", [name for name in ACTORS if name != "residual"])
@pytest.mark.parametrize("masked", [True, False])
def test_padded_actions_change_neither_loss_nor_gradient(name: str, masked: bool) -> None:
    """Bit for bit; and without the mask they do."""
    torch.manual_seed(0)
    actor = make_actor(name, PROBLEM, width=16, layers=1)
    batch = demonstrations(64, 0)
    assert not batch.valid_BH.all()
    noise_BHA = torch.rand(batch.actions_BHA.shape, generator=seeded()) * 2 - 1
    other = replace(batch, actions_BHA=batch.actions_BHA.where(batch.valid_BH[..., None], noise_BHA))
    results = []
    for each in (batch, other):
        torch.manual_seed(1)
        if not masked:
            each = replace(each, valid_BH=torch.ones_like(each.valid_BH))
        loss = imitation(actor, each)
        results.append([loss, *torch.autograd.grad(loss, list(actor.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results)) == masked


def test_imitation_is_a_mean_over_valid_actions() -> None:
    torch.manual_seed(0)
    actor, batch = make_actor("l1", PROBLEM, width=16, layers=1), demonstrations(32, 0)
    losses_BH = actor.loss_BH(batch.features_BGD[:, 0], batch.actions_BHA).detach().numpy()
    weights_B = torch.rand(32, generator=seeded())
    expected = (losses_BH * weights_B.numpy()[:, None])[batch.valid_BH.numpy()].sum() / batch.valid_BH.sum()
    assert imitation(actor, batch, weights_B=weights_B).item() == pytest.approx(expected.item(), rel=1e-5)
    assert imitation(actor, batch).item() == pytest.approx(losses_BH[batch.valid_BH.numpy()].mean(), rel=1e-5)
    nothing = imitation(actor, replace(batch, valid_BH=torch.zeros_like(batch.valid_BH)))
    assert nothing.item() == 0


def test_states_after_stop_with_the_steps_taken() -> None:
    """Even where later observations of the episode are there, a prefix longer than the chunk ends at its last step."""
    batch = demonstrations(8, 0)
    marked = replace(
        batch,
        features_BGD=torch.arange(4.0)[None, :, None].expand(8, -1, 2),
        valid_BH=torch.tensor([[True, False, False], [True, True, True]]).repeat(4, 1),
    )
    assert states_after(marked)[:2, :, 0].tolist() == [[1, 1, 1], [1, 2, 3]]


def test_targets_are_clipped_and_rows_without_a_future_left_out() -> None:
    critic, batch = critic_of("prefix"), demonstrations(64, 0)
    nowhere = replace(batch, known_B=torch.zeros_like(batch.known_B))
    for each, value in ((batch, 5.0), (nowhere, float("nan"))):
        loss, _, usable_BP, metrics = td_loss(
            critic, each, lambda states_ND, value=value: states_ND.new_full((len(states_ND),), value), PROBLEM
        )
        if each is batch:
            assert metrics["target_max"] == 1 and metrics["clipped_share"] > 0.5
        else:
            open_B = ~each.terminated_B
            assert not usable_BP[open_B, -1].any(), "the state after the chunk is not known"
            assert usable_BP[open_B, :-1].all() and usable_BP[each.terminated_B].all()
    assert loss.isnan(), "a value of NaN that is used must show"
    none = replace(batch, rows_BH=torch.zeros_like(batch.rows_BH))
    loss, _, _, metrics = td_loss(critic, none, lambda states_ND: states_ND[:, 0], PROBLEM)
    assert loss == 0 and all(torch.as_tensor(value).isfinite() for value in metrics.values())


@pytest.mark.parametrize("kind", ["flat", "prefix"])
def test_a_flat_critic_asks_for_one_state_a_row(kind: str) -> None:
    asked = []
    td_loss(critic_of(kind), demonstrations(8, 0), lambda s: asked.append(len(s)) or s[:, 0], PROBLEM)
    assert asked == [8 if kind == "flat" else 8 * PROBLEM.horizon]


def test_the_value_of_the_steps_taken() -> None:
    values_EBP = torch.arange(12.0).view(2, 2, 3)
    usable_BP = torch.tensor([[True, False, False], [True, True, True]])
    taken_EB, known_B = taken_values(values_EBP, usable_BP, torch.tensor([2, 3]))
    assert taken_EB.tolist() == [[1, 5], [7, 11]] and known_B.tolist() == [False, True]
    flat_EB, _ = taken_values(values_EBP[..., -1:], usable_BP[:, -1:], torch.tensor([2, 3]))
    assert flat_EB.tolist() == [[2, 5], [8, 11]]


def test_pessimism_over_a_subset_is_redqs() -> None:
    values_EN = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    draws = [pessimistic(values_EN, 2, seeded(i)).item() for i in range(400)]
    # The lowest of two out of four: 0 in 3 pairs of 6, 1 in 2, 2 in 1.
    assert np.mean(draws) == pytest.approx(4 / 6, abs=0.1)
    assert pessimistic(values_EN, None, seeded()).item() == 0


def test_smooth_noise_has_its_deviation_and_is_smooth() -> None:
    moved_MBHA = perturbed_chunks(torch.zeros(500, 8, 2), 4, seeded(), BINARY_A, deviation=0.1)
    moves_NH = moved_MBHA[..., 0].flatten(0, 1)
    torch.testing.assert_close(moves_NH.std(0), torch.full((8,), 0.1), atol=0.01, rtol=0)
    assert np.corrcoef(moves_NH[:, 3], moves_NH[:, 4])[0, 1] > 0.8, "neighbours in time go together"
    assert perturbed_chunks(torch.zeros(3, 1, 2), 4, seeded(), BINARY_A).shape == (4, 3, 1, 2)
    data_BHA = demonstrations(20, 0).actions_BHA
    assert (perturbed_chunks(data_BHA, 2, seeded(), BINARY_A)[..., 1] == data_BHA[..., 1]).all()


def test_logsumexp_of_even_chunks_is_the_integral() -> None:
    """With densities, the sum over draws estimates log M + log of the integral of exp(value) over the cube."""
    chunks_MBHA = even_chunks(torch.zeros(1, 1, 1), 20000, seeded(), torch.tensor([False]))
    values_EMBP = 2 * chunks_MBHA.flatten(1)[None, :, None, :]
    found = conservative_logsumexp(
        values_EMBP, torch.full((20000, 1), -np.log(2.0)), torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    )
    assert found.item() == pytest.approx(np.log(20000) + np.log(np.sinh(2.0)), abs=0.02)


def test_the_floor_is_the_return_where_it_is_known() -> None:
    values_EMBP = torch.tensor([[[[0.1, 0.9], [0.1, 0.9]]]])
    held = floored(values_EMBP, torch.tensor([0.5, float("nan")]))
    assert held.flatten().tolist() == pytest.approx([0.5, 0.9, 0.1, 0.9])


def test_the_best_is_by_lower_bound() -> None:
    """Of two candidates the critics agree on the first and quarrel about the second, whose mean is higher."""
    batch, chunks_MBHA = demonstrations(2, 0), torch.stack([torch.zeros(2, 3, 2), torch.ones(2, 3, 2)])

    class Quarrel:
        columns = slice(2, 3)

        def __call__(self, features_BD, actions_BHA):
            on_B = actions_BHA[:, 0, 0]
            return torch.stack([0.5 + 1.0 * on_B, 0.5 - 0.6 * on_B])[..., None].expand(-1, -1, 3)

        def value(self, outputs):
            return outputs

    for caution, index in ((0.0, 1), (1.0, 0)):
        chosen_BHA, best_B = best_of(Quarrel(), batch.features_BGD[:, 0], chunks_MBHA, caution=caution)
        assert best_B.tolist() == [index, index] and (chosen_BHA == index).all()


def test_candidates_are_valued_as_one_by_one() -> None:
    critic, batch = critic_of("prefix"), demonstrations(5, 0)
    chunks_MBHA = perturbed_chunks(batch.actions_BHA, 3, seeded(), BINARY_A)
    values_EMBP = candidate_values(critic, batch.features_BGD[:, 0], chunks_MBHA)
    torch.testing.assert_close(values_EMBP[:, 1], critic(batch.features_BGD[:, 0], chunks_MBHA[1]))


def test_exponential_weights() -> None:
    found = exponential_weights(torch.tensor([0.0, 1.0, 9.0]), inverse_temperature=2.0, cap=20.0)
    assert found.tolist() == pytest.approx([1.0, np.exp(2.0), 20.0])


def test_running_quantiles_find_each_tasks_best_share() -> None:
    rng, quantiles = np.random.default_rng(0), TaskQuantiles(2, share=0.3)
    for _ in range(400):
        task_B = torch.from_numpy(rng.integers(0, 2, 64))
        values_B = torch.from_numpy(rng.normal(size=64)).float() * (1 + 9 * task_B) + 100 * task_B
        quantiles.observe(values_B, task_B)
    np.testing.assert_allclose(quantiles.thresholds_T, [0.524, 105.24], atol=0.15, rtol=0.01)
    assert quantiles.above(torch.tensor([0.0, 110.0]), torch.tensor([0, 1])).tolist() == [False, True]


def test_draws_of_a_step_are_its_own_and_leave_torchs_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded_draws(7, 3) as generator:
        first = (torch.rand(2), torch.rand(2, generator=generator))
    assert torch.equal(torch.rand(3), expected)
    with seeded_draws(7, 3) as generator:
        again = (torch.rand(2), torch.rand(2, generator=generator))
    with seeded_draws(7, 4) as generator:
        other = (torch.rand(2), torch.rand(2, generator=generator))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[1])
