"""Every algorithm: exact values of the chain through its own update, a task on which it must beat cloning, resuming."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import vla.rl.backup
from tests.vla.rl.chains import DISCOUNT, all_chunks, rows_of
from tests.vla.rl.point import PROBLEM, demonstrations, experience, features_of, mean_steps
from tests.vla.rl.small import SMALL
from vla.core.errors import CorruptFileError
from vla.rl.backup import chunk_values
from vla.rl.interfaces import ChunkBatch
from vla.rl.problem import Problem

CHAIN_VALUES = torch.tensor([0.59049, 0.6561, 0.729, 0.81, 0.9, 1.0])
DISCOUNTED_ONCE = torch.tensor([0.729, 0.81, 0.81, 0.9, 0.9, 1.0])  # of the bug, at horizon 2
# Free of imitation and conservatism: what is tested is the backup and that the policy finds the best chunk.
ON_THE_CHAIN = {
    "awac": {"inverse_temperature": 30.0},
    "cal_ql": {"alpha": 0.0, "bc_weight": 0.0, "temperature": 1e-3},
    "co_rft": {"alpha": 0.0, "bc_weight": 0.0},
    "iql": {"expectile": 0.98},
    "q_chunking": {"caution": 0.0, "backup_candidates": 16},
    "q_chunking_distilled": {"distil_weight": 0.03},
    "rlpd": {"temperature": 1e-3},
    "td3_bc": {"bc_weight": 0.0},
}
ON_THE_POINT = {
    "advantage_conditioned": {},
    "awac": {},
    "awr": {},
    "cal_ql": {},
    "co_rft": {"bc_weight": 0.3},
    "filtered_bc": {"share": 0.3},
    "iql": {},
    "q_chunking": {},
    "q_chunking_distilled": {"distil_weight": 1.0},
    "td3_bc": {"bc_weight": 0.2},
}


def chain(horizon: int) -> tuple[Problem, ChunkBatch]:
    """The deterministic chain with every chunk from every state; states as one-hot features, actions binary."""
    batch, _ = all_chunks(horizon)
    onehot_BGD = functional.one_hot(batch.features_BGD[..., 0].long(), 7).float()
    problem = Problem(features=7, horizon=horizon, binary=(True,), discount=DISCOUNT, low=0.0, high=1.0)
    return problem, replace(batch, features_BGD=onehot_BGD)


def trained(name: str, problem: Problem, batches, **settings):
    torch.manual_seed(0)
    algorithm = SMALL[name](problem=problem, **settings)
    for batch in batches:
        metrics = algorithm.update(batch)
        assert all(torch.tensor(value).isfinite() for value in metrics.values()), metrics
    return algorithm


def values_of_states(algorithm, batch: ChunkBatch) -> torch.Tensor:
    values_B = chunk_values(algorithm.critic, batch.features_BGD[:, 0], batch.actions_BHA).mean(0)
    return values_B.detach().view(6, -1).amax(1)


@pytest.mark.parametrize("name", ON_THE_CHAIN)
def test_values_of_the_chain_are_exact(name: str) -> None:
    problem, batch = chain(2)
    algorithm = trained(name, problem, [batch] * 250, **ON_THE_CHAIN[name])
    torch.testing.assert_close(values_of_states(algorithm, batch), CHAIN_VALUES, atol=0.03, rtol=0)
    # IQL regresses on all the data; the others must have found the way.
    played = algorithm.choose(functional.one_hot(torch.arange(6), 7).float(), torch.Generator().manual_seed(0))
    assert name == "iql" or (played[:5] == 1).all()


def test_values_of_the_chain_at_horizon_3() -> None:
    problem, batch = chain(3)
    algorithm = trained("co_rft", problem, [batch] * 250, **ON_THE_CHAIN["co_rft"])
    torch.testing.assert_close(values_of_states(algorithm, batch), CHAIN_VALUES, atol=0.05, rtol=0)


def test_a_bootstrap_discounted_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug gives its own numbers, and not those that the test above expects."""

    def discounted_once(batch, following_BH, discount, *, prefix_bootstrap):
        targets_BH, usable_BH = right(batch, 0 * following_BH, discount, prefix_bootstrap=prefix_bootstrap)
        return targets_BH + discount * following_BH * ~batch.terminated_B[:, None], usable_BH

    right = vla.rl.backup.batch_targets
    monkeypatch.setattr(vla.rl.backup, "batch_targets", discounted_once)
    problem, batch = chain(2)
    algorithm = trained("td3_bc", problem, [batch] * 250, bc_weight=0.0)
    found = values_of_states(algorithm, batch)
    torch.testing.assert_close(found, DISCOUNTED_ONCE, atol=0.03, rtol=0)
    assert (found - CHAIN_VALUES).abs().max() > 0.1


@pytest.fixture(scope="module")
def demos() -> list[ChunkBatch]:
    return [demonstrations(64, seed) for seed in range(60)]


@pytest.fixture(scope="module")
def cloning_steps(demos: list[ChunkBatch]) -> float:
    steps = mean_steps(trained("bc", PROBLEM, (demos * 4)[:200]))
    assert 7 < steps < 10, "cloning plays the median speed of 0.6; the fastest way takes 5.5 steps"
    return steps


@pytest.mark.parametrize("name", ON_THE_POINT)
def test_it_is_quicker_than_cloning(name: str, demos: list[ChunkBatch], cloning_steps: float) -> None:
    algorithm = trained(name, PROBLEM, (demos * 4)[:200], **ON_THE_POINT[name])
    assert mean_steps(algorithm) < 0.95 * cloning_steps


def test_all_positive_is_cloning(demos: list[ChunkBatch], cloning_steps: float) -> None:
    """Where demonstrations are all there is and count as positive, conditioning has nothing to say."""
    told = [replace(batch, demo_B=torch.ones_like(batch.demo_B)) for batch in demos]
    assert mean_steps(trained("advantage_conditioned", PROBLEM, (told * 4)[:200])) > 0.95 * cloning_steps


def test_rlpd_learns_the_fastest_way_from_random_chunks() -> None:
    """No demonstrator: chunks of one random number, played from everywhere. 5.5 steps are the best there is."""

    def random_chunks(step: int) -> ChunkBatch:
        generator = torch.Generator().manual_seed(step)

        def choose(features_BD: torch.Tensor) -> torch.Tensor:
            moves_B1A = torch.rand(len(features_BD), 1, 2, generator=generator) * 2 - 1
            return torch.where(torch.tensor([False, True]), moves_B1A.sign(), moves_B1A).expand(-1, 3, -1)

        return experience(choose, 64, step)

    settings = {"temperature": 1e-3, "ensemble": 2, "actor_rate": 1e-3}
    algorithm = trained("rlpd", PROBLEM, [random_chunks(step) for step in range(100)] * 3, **settings)
    assert mean_steps(algorithm) < 6.5


@pytest.mark.parametrize("floor", [True, False])
def test_values_of_the_policy_stay_above_the_demonstrators(floor: bool, demos: list[ChunkBatch]) -> None:
    """Under strong conservatism the policy's chunks are worth at least the return with the floor, less without."""
    settings = {"alpha": 1.0, "bc_weight": 5.0, "perturbed": 0}
    algorithm = trained("co_rft", PROBLEM, (demos * 2)[:120], floor=floor, **settings)
    batch = demonstrations(256, 99)
    features_BD = batch.features_BGD[:, 0]
    played_BHA = algorithm.choose(features_BD, torch.Generator().manual_seed(0))
    margin = (chunk_values(algorithm.critic, features_BD, played_BHA).mean(0) - batch.return_mc_B).mean()
    assert (margin > 0) == floor, margin


@pytest.mark.parametrize("floor", [True, False])
def test_cal_qls_term_pushes_nothing_that_is_below_the_return(floor: bool) -> None:
    """Beyond 20 dimensions every other chunk has the floor: under it the term sees the data's values alone."""
    problem = Problem(features=2, horizon=11, binary=(False, True), discount=0.9, low=0.0, high=1.0)
    torch.manual_seed(0)
    algorithm = SMALL["cal_ql"](problem=problem, floor=floor)
    short = demonstrations(16, 0)
    batch = replace(
        short,
        features_BGD=short.features_BGD[:, :1].expand(-1, 12, -1),
        actions_BHA=short.actions_BHA[:, :1].expand(-1, 11, -1),
        valid_BH=torch.ones(16, 11, dtype=torch.bool),
        return_mc_B=torch.full((16,), 1e6),
    )
    values_EBP = torch.zeros(2, 16, 1)
    usable_BP = torch.ones(16, 1, dtype=torch.bool)
    gap = algorithm.conservative(batch, values_EBP, usable_BP, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(gap, list(algorithm.critic.parameters()))
    assert all((gradient == 0).all() for gradient in gradients) == floor


@pytest.mark.parametrize("name", SMALL)
def test_resuming_is_exact_over_fifty_steps(name: str, demos: list[ChunkBatch]) -> None:
    """State in, same future out: weights, moments, thresholds and every draw."""
    first = trained(name, PROBLEM, demos[:3])
    state = deepcopy(first.state_dict())
    torch.manual_seed(99)
    second = SMALL[name](problem=PROBLEM)
    second.load_state_dict(state)
    small = [rows_of(batch, torch.arange(8)) for batch in demos[:10]]
    for step in range(50):
        torch.rand(step % 3)  # others draw between the steps, as they please
        ours = first.update(small[step % 10])
        torch.rand(1)
        assert second.update(small[step % 10]) == ours
    generators = (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    there = features_of(torch.linspace(-1, 1, 5))
    assert torch.equal(first.choose(there, generators[0]), second.choose(there, generators[1]))


@pytest.mark.parametrize("name", SMALL)
def test_chunks_are_played_within_limits_and_rows_apart(name: str) -> None:
    torch.manual_seed(0)
    algorithm = SMALL[name](problem=PROBLEM)
    there = features_of(torch.linspace(-1, 1, 5))
    chunks_BHA = algorithm.choose(there, torch.Generator().manual_seed(1))
    assert chunks_BHA.shape == (5, 3, 2) and not chunks_BHA.requires_grad
    assert chunks_BHA.abs().max() <= 1.05 and set(chunks_BHA[..., 1].unique().tolist()) <= {-1.0, 1.0}
    alone_BHA = algorithm.choose(there[:1], torch.Generator().manual_seed(1))
    torch.testing.assert_close(alone_BHA, chunks_BHA[:1], atol=1e-5, rtol=0)


def test_states_of_others_are_refused() -> None:
    td3_bc, iql = SMALL["td3_bc"](problem=PROBLEM), SMALL["iql"](problem=PROBLEM)
    with pytest.raises(CorruptFileError, match="target_actor"):
        td3_bc.load_state_dict(iql.state_dict())


def test_wsrl_starts_from_cal_ql(demos: list[ChunkBatch]) -> None:
    offline = trained("cal_ql", PROBLEM, demos[:5], ensemble=4)
    online = SMALL["wsrl"](problem=PROBLEM)
    online.warm_start(offline.state_dict())
    there, generator = features_of(torch.linspace(-1, 1, 5)), torch.Generator()
    assert torch.equal(online.choose(there, generator), offline.choose(there, generator))
    values = [chunk_values(each.critic, there, online.choose(there, generator)) for each in (online, offline)]
    assert torch.equal(*values)
    online.update(demos[0])
    with pytest.raises(CorruptFileError, match="'critic' is of another size"):
        SMALL["wsrl"](problem=PROBLEM, ensemble=2).warm_start(offline.state_dict())
    with pytest.raises(CorruptFileError, match="no 'critic'"):
        online.warm_start({"actor": offline.state_dict()["actor"]})


def test_a_residual_actor_under_co_rft_starts_as_its_base() -> None:
    problem = Problem(features=8, horizon=3, binary=(False, True), discount=0.9, low=0.0, high=1.0, base_chunk=2)
    algorithm = SMALL["co_rft"](problem=problem, actor="residual")
    base_BHA = demonstrations(6, 0).actions_BHA
    seen_BD = torch.cat([torch.zeros(6, 2), base_BHA.flatten(1)], dim=1)
    assert torch.equal(algorithm.choose(seen_BD, torch.Generator()), base_BHA)
    with pytest.raises(ValueError, match="residual"):
        SMALL["co_rft"](problem=problem, actor="flow")
