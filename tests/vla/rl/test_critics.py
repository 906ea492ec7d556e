"""Critics: what may depend on what, and whether they learn values that are known exactly."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.vla.rl.chains import (
    DETERMINISTIC,
    DISCOUNT,
    GOAL,
    Attempt,
    all_chunks,
    bootstrap_discounted_once,
    random_walks,
    replay_of,
    states_of,
    undiscounted_inside,
)
from vla.rl.critics import DecoupledCritic, EnsembleCritic, FlatCritic, PrefixCritic, ValueNetwork, polyak
from vla.rl.interfaces import ChunkBatch
from vla.rl.sampling import Sampler, chunks
from vla.rl.targets import attainable, batch_targets
from vla.rl.value_laws import Bernoulli, HLGauss, Squared

D, A, H = 5, 3, 4
LAWS = [Squared(), HLGauss(low=0.0, high=1.0, bins=21), Bernoulli(low=0.0, high=1.0)]


def prefix(horizon: int = H, features: int = D, action_dim: int = A, **changes) -> PrefixCritic:
    torch.manual_seed(0)
    return PrefixCritic(features, action_dim, horizon, **{"width": 32, "layers": 2, "heads": 2, **changes})


def flat(**changes) -> FlatCritic:
    torch.manual_seed(0)
    return FlatCritic(D, A, H, **{"width": 16, "layers": 2, **changes})


def decoupled(**changes) -> DecoupledCritic:
    torch.manual_seed(0)
    return DecoupledCritic(D, A, H, **{"short": 2, "width": 16, "layers": 2, **changes})


def inputs(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, D, generator=generator), torch.rand(rows, H, A, generator=generator) * 2 - 1


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize(("make", "columns"), [(prefix, [0, 1, 2, 3]), (flat, [3]), (decoupled, [1, 3])])
def test_columns_are_those_that_are_filled(make: Callable, columns: list[int], law) -> None:
    critic: EnsembleCritic = make(law=law, ensemble=3)
    outputs = critic(*inputs())
    values_EBH = critic.value(outputs)
    assert outputs.shape == (3, 6, H, *([law.outputs] if law.outputs else [])) and values_EBH.shape == (3, 6, H)
    assert list(range(H))[critic.columns] == columns
    assert values_EBH.isfinite().all(dim=0).all(dim=0).tolist() == [i in columns for i in range(H)]
    loss = critic.loss(outputs, torch.full((6, H), 0.5), torch.ones(6, H, dtype=torch.bool))
    loss.backward()
    gradients = [weight.grad for weight in critic.parameters() if weight.grad is not None]
    assert loss.isfinite() and gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_no_prefix_sees_what_comes_after_it() -> None:
    """Bit for bit; and it does see what is in it."""
    critic, (features_BD, actions_BHA) = prefix(), inputs()
    before = critic(features_BD, actions_BHA)
    for i in range(H):
        perturbed = actions_BHA.clone()
        perturbed[:, i] += 1.0
        after = critic(features_BD, perturbed)
        assert torch.equal(after[:, :, :i], before[:, :, :i])
        assert (after[:, :, i:] != before[:, :, i:]).all()


def test_a_short_prefix_of_the_decoupled_critic_does_not_see_the_rest() -> None:
    critic, (features_BD, actions_BHA) = decoupled(), inputs()
    before = critic(features_BD, actions_BHA)
    after = critic(features_BD, torch.cat([actions_BHA[:, :2], -actions_BHA[:, 2:]], dim=1))
    assert torch.equal(after[:, :, 1], before[:, :, 1]) and (after[:, :, 3] != before[:, :, 3]).all()


def test_other_horizons_are_refused() -> None:
    features_BD, actions_BHA = inputs()
    with pytest.raises(ValueError, match="chunks of 3 steps, expected horizon 4"):
        prefix()(features_BD, actions_BHA[:, :3])
    with pytest.raises(ValueError, match="width 30 is not a multiple of heads 4"):
        prefix(width=30, heads=4)
    with pytest.raises(ValueError, match=r"short is 4, expected 1\.\.3"):
        decoupled(short=4)


def test_critics_of_an_ensemble_share_nothing() -> None:
    critic, (features_BD, actions_BHA) = prefix(ensemble=2), inputs()
    outputs = critic(features_BD, actions_BHA)
    assert (outputs[0] != outputs[1]).all()
    outputs[0].sum().backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in critic.networks[1].parameters())


def test_rows_do_not_know_each_other() -> None:
    critic, (features_BD, actions_BHA) = prefix(), inputs(64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        critic(features_BD[order], actions_BHA[order]), critic(features_BD, actions_BHA)[:, order], atol=1e-6, rtol=1e-5
    )


def test_padding_of_a_truncated_chunk_has_no_gradient_and_that_of_a_terminated_one_has() -> None:
    """Behind a cut nothing is known, so nothing is learned; behind an end the value must learn not to care."""
    cut = Attempt(states=[0, 1, 2], actions=[1, 1], rewards=[0.0, 0.0], terminated=False)
    end = Attempt(states=[4, 5, 6], actions=[1, 1], rewards=[0.0, 1.0], terminated=True)
    replay = replay_of([cut, end])
    batch = chunks(replay, np.array([0, 2]), horizon=H, version="env", discount=DISCOUNT, rng=np.random.default_rng(0))
    actions_BHA = batch.actions_BHA.requires_grad_()
    critic = prefix(features=1, action_dim=1)
    targets_BH, usable_BH = batch_targets(batch, torch.zeros(2, H), DISCOUNT)
    critic.loss(critic(batch.features_BGD[:, 0], actions_BHA), targets_BH, usable_BH).backward()
    assert actions_BHA.grad is not None
    assert actions_BHA.grad[0, :2].abs().min() > 0 and (actions_BHA.grad[0, 2:] == 0).all()
    assert actions_BHA.grad[1].abs().min() > 0


def test_distilling_stops_at_the_expectile() -> None:
    """Continuations worth 0 and 1, evenly: the expectile of weight k is k."""
    critic = decoupled(ensemble=1)
    values_EB = torch.tensor([[0.0, 1.0] * 8])
    for expectile in (0.5, 0.8):
        outputs = torch.full((1, 16, H), expectile, requires_grad=True)
        critic.distil(outputs, values_EB, torch.ones(16, dtype=torch.bool), expectile).backward()
        assert outputs.grad is not None
        assert outputs.grad[:, :, 1].sum() == pytest.approx(0.0, abs=1e-6) and outputs.grad[:, :, 1].abs().min() > 0
        assert (outputs.grad[:, :, [0, 2, 3]] == 0).all()


def test_the_whole_chunk_does_not_train_the_short_prefix() -> None:
    critic = decoupled()
    critic.loss(critic(*inputs()), torch.ones(6, H), torch.ones(6, H, dtype=torch.bool)).backward()
    for network in critic.networks:
        short, whole = network.mlps  # pyright: ignore
        assert all(weight.grad is None or (weight.grad == 0).all() for weight in short.parameters())
        assert all(weight.grad.abs().sum() > 0 for weight in whole.parameters())


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_a_value_network_gives_one_value_a_row(law) -> None:
    network = ValueNetwork(D, width=16, layers=2, law=law)
    assert network.value(network(inputs()[0])).shape == (6,)


def test_polyak_moves_a_share_of_the_way() -> None:
    source, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.75 * target.weight + 0.25 * source.weight
    polyak(target, source, 0.25)
    torch.testing.assert_close(target.weight, expected)
    polyak(target, source, 1.0)
    assert torch.equal(target.weight, source.weight)


def one_hot(features_BD: Tensor) -> Tensor:
    return functional.one_hot(features_BD[:, 0].long(), 12).float()


def learn(critic: EnsembleCritic, batch_of: Callable[[int], ChunkBatch], steps: int, targets: Callable) -> Tensor:
    """Fits a critic where the policy plays each state's best chunk of the batch. Returns values (B, H) of the last."""
    target, optimizer = deepcopy(critic), torch.optim.Adam(critic.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for step in range(steps):
        batch = batch_of(step)
        states_BG, features_BD = states_of(batch), one_hot(batch.features_BGD[:, 0])
        with torch.no_grad():
            whole_B = target.value(target(features_BD, batch.actions_BHA)).mean(dim=0)[:, -1]
        value_S = torch.zeros(12).scatter_reduce(0, states_BG[:, 0], whole_B, "amax", include_self=False)
        targets_BH, usable_BH = targets(batch, value_S[states_BG[:, 1:]], DISCOUNT)
        targets_BH, _ = attainable(targets_BH, usable_BH, low=0.0, high=1.0)
        loss = critic.loss(critic(features_BD, batch.actions_BHA), targets_BH, usable_BH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        polyak(target, critic, 0.1)
    with torch.no_grad():
        return critic.value(critic(features_BD, batch.actions_BHA)).mean(dim=0)


def chain_values(horizon: int, targets: Callable, steps: int = 300) -> tuple[list[float], Tensor]:
    batch, _ = all_chunks(horizon)
    critic = prefix(horizon, 12, 1, layers=1, ensemble=1)
    values_BH = learn(critic, lambda step: batch, steps, targets)
    whole_SC = values_BH[:, -1].view(GOAL, 2**horizon)
    return whole_SC.amax(dim=1).tolist(), whole_SC


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_a_network_learns_the_chain(horizon: int) -> None:
    values, whole_SC = chain_values(horizon, batch_targets, steps=800 if horizon == 3 else 300)
    assert np.abs(np.array(values) - DETERMINISTIC).max() < 0.02
    if horizon == 3:  # what was planned after the goal does not matter
        assert float(whole_SC[4, 0b110:].max() - whole_SC[4, 0b110:].min()) < 0.02
        assert float(whole_SC[5, 0b100:].max() - whole_SC[5, 0b100:].min()) < 0.02


@pytest.mark.parametrize("bug", [undiscounted_inside, bootstrap_discounted_once])
def test_a_network_shows_the_bugs(bug: Callable) -> None:
    values, _ = chain_values(3, bug)
    assert np.abs(np.array(values) - DETERMINISTIC).max() > 0.05


def test_a_single_demonstration_is_valued_by_its_distance_to_success() -> None:
    steps = 10
    actions = np.random.default_rng(0).uniform(-1, 1, steps).tolist()
    rewards = [0.0] * (steps - 1) + [1.0]
    replay = replay_of([Attempt(states=range(steps + 1), actions=actions, rewards=rewards, terminated=True)])

    def batch_of(step: int) -> ChunkBatch:
        rng = np.random.default_rng(step)
        return chunks(replay, replay.starts, horizon=H, version="env", discount=DISCOUNT, rng=rng)

    critic = prefix(H, 12, 1, layers=1, ensemble=1)
    values_BH = learn(critic, batch_of, 500, batch_targets)
    assert (values_BH - batch_of(0).return_mc_B[:, None]).abs().max() < 0.02


def train(steps: int, start: int, critic: PrefixCritic, optimizer: torch.optim.Optimizer, sampler: Sampler) -> None:
    for step in range(start, start + steps):
        batch = sampler.batch(step)
        targets_BH, usable_BH = batch_targets(batch, torch.full((len(batch), 3), 0.5), DISCOUNT)
        loss = critic.loss(critic(batch.features_BGD[:, 0], batch.actions_BHA), targets_BH, usable_BH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_run_resumes_bit_for_bit() -> None:
    """Fifty steps, or twenty and thirty with everything rebuilt between."""
    replay = random_walks(40, slip=0.2, clock=12, seed=0)

    def parts(seed: int) -> tuple[PrefixCritic, torch.optim.Optimizer, Sampler]:
        torch.manual_seed(seed)
        critic = PrefixCritic(1, 1, 3, width=16, layers=1, heads=2)
        sampler = Sampler(replay, batch_size=16, horizon=3, version="env", discount=DISCOUNT, seed=5)
        return critic, torch.optim.Adam(critic.parameters()), sampler

    whole = parts(0)
    train(50, 0, *whole)
    first = parts(0)
    train(20, 0, *first)
    again = parts(1)
    again[0].load_state_dict(deepcopy(first[0].state_dict()))
    again[1].load_state_dict(deepcopy(first[1].state_dict()))
    train(30, 20, *again)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters(), strict=True))


@pytest.mark.gpu
def test_a_device_gives_the_same_values() -> None:
    critic, (features_BD, actions_BHA) = prefix(), inputs(64)
    here = critic(features_BD, actions_BHA)
    there = critic.to("cuda")(features_BD.cuda(), actions_BHA.cuda())
    torch.testing.assert_close(there.cpu(), here, atol=1e-4, rtol=1e-4)
