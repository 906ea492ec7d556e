"""The one-step case against torchrl's losses, on one batch with the same weights.

Where the definitions agree the numbers must; where they do not, the difference is named. IQL there sums the critics'
losses where ours is their mean, and weighs the negative log-density where ours weighs the actor's imitation loss; its
TD3+BC imitates by squared error where ours does so by absolute error, and follows the first critic where ours follows
the mean. One critic each, so that sums and means are the same.
"""

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal
from torchrl.objectives import IQLLoss, TD3BCLoss, ValueEstimators

from tests.vla.rl.point import demonstrations
from vla.rl.algorithms.iql import IQL
from vla.rl.algorithms.td3_bc import TD3BC
from vla.rl.extraction import imitation
from vla.rl.interfaces import ChunkBatch
from vla.rl.problem import Problem

PROBLEM = Problem(features=2, horizon=1, binary=(False, False), discount=0.9, low=-1e9, high=1e9)
SIZES = {"actor_width": 16, "actor_layers": 2, "critic": "flat", "critic_width": 16, "critic_layers": 2, "ensemble": 1}


def one_step() -> tuple[ChunkBatch, TensorDict]:
    """The same transitions for both."""
    long = demonstrations(32, 0)
    terminated_B = long.rewards_BH[:, 0] > 0
    assert terminated_B.any() and not terminated_B.all()
    batch = replace(
        long,
        features_BGD=long.features_BGD[:, :2],
        actions_BHA=long.actions_BHA[:, :1],
        valid_BH=long.valid_BH[:, :1],
        rows_BH=long.rows_BH[:, :1],
        rewards_BH=long.rewards_BH[:, :1],
        terminated_B=terminated_B,
    )
    ended = terminated_B[:, None]
    after = {"observation": batch.features_BGD[:, 1], "reward": batch.rewards_BH, "done": ended, "terminated": ended}
    now = {"observation": batch.features_BGD[:, 0], "action": batch.actions_BHA[:, 0], "next": after}
    return batch, TensorDict(now, batch_size=[32])


class OneStepCritic(nn.Module):
    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        rows = self.critic(observation.reshape(-1, 2), action.reshape(-1, 1, 2))
        return rows[0, :, -1:].reshape(*observation.shape[:-1], 1)


class OneStepActor(nn.Module):
    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, observation: Tensor) -> Tensor:
        return self.actor.mean(observation.reshape(-1, 2))[:, 0].reshape(*observation.shape)


class OneStepValue(nn.Module):
    def __init__(self, value: nn.Module) -> None:
        super().__init__()
        self.value = value

    def forward(self, observation: Tensor) -> Tensor:
        return self.value(observation)[..., None]


def as_torchrl(critic: nn.Module) -> TensorDictModule:
    return TensorDictModule(OneStepCritic(critic), ["observation", "action"], ["state_action_value"])


def load_critics(theirs: TD3BCLoss, critic: nn.Module) -> None:
    """torchrl draws new weights for its ensembles, even of one: both its critics take ours."""
    weights = {f"module.critic.{name}": tensor for name, tensor in critic.named_parameters()}
    with torch.no_grad():
        for params in (theirs.qvalue_network_params, theirs.target_qvalue_network_params):
            flat = params.flatten_keys(".")
            assert set(flat.keys()) == set(weights)
            for name, tensor in weights.items():
                flat[name].data.copy_(tensor[None])


@pytest.mark.parametrize("expectile", [0.5, 0.8])
def test_iqls_value_and_critic_losses(expectile: float) -> None:
    torch.manual_seed(0)
    ours = IQL(problem=PROBLEM, **SIZES, value_width=16, value_layers=1, expectile=expectile)
    batch, data = one_step()
    gaussian = nn.Sequential(nn.Linear(2, 4), NormalParamExtractor())
    policy = ProbabilisticActor(
        TensorDictModule(gaussian, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    value = TensorDictModule(OneStepValue(ours.value), ["observation"], ["state_value"])
    theirs = IQLLoss(
        policy,
        as_torchrl(ours.critic),
        value,
        num_qvalue_nets=1,
        loss_function="l2",
        expectile=expectile,
        deactivate_vmap=True,
    )
    theirs.make_value_estimator(ValueEstimators.TD0, gamma=PROBLEM.discount)
    value_loss = theirs.value_loss(data.clone())[0].item()
    critic_loss = theirs.qvalue_loss(data.clone())[0].item()
    metrics = ours.update(batch)
    assert metrics["value_loss"] == pytest.approx(value_loss, rel=1e-5)
    assert metrics["critic_loss"] == pytest.approx(critic_loss, rel=1e-5)


def test_td3_bcs_critic_and_actor_losses() -> None:
    torch.manual_seed(0)
    ours = TD3BC(problem=PROBLEM, **SIZES, smoothing=0.0, q_weight=2.5)
    batch, data = one_step()
    theirs = TD3BCLoss(
        TensorDictModule(OneStepActor(ours.actor), ["observation"], ["action"]),
        as_torchrl(ours.critic),
        num_qvalue_nets=1,
        policy_noise=0.0,
        noise_clip=0.5,
        alpha=2.5,
        loss_function="l2",
        bounds=(-1.0, 1.0),
        deactivate_vmap=True,
    )
    theirs.make_value_estimator(ValueEstimators.TD0, gamma=PROBLEM.discount)
    load_critics(theirs, ours.critic)
    critic_loss = theirs.qvalue_loss(data.clone())[0].item()
    actor_loss, found = theirs.actor_loss(data.clone())
    our_loss, metrics = ours.actor_loss(batch)
    value_terms = our_loss - imitation(ours.actor, batch), actor_loss - found["bc_loss"]
    torch.testing.assert_close(*value_terms)
    errors = ours.actor.mean(batch.features_BGD[:, 0]) - batch.actions_BHA
    assert metrics["imitation_loss"].item() == pytest.approx(errors.abs().mean().item(), rel=1e-5)
    assert found["bc_loss"].item() == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert ours.update(batch)["critic_loss"] == pytest.approx(critic_loss, rel=1e-5)
