"""Policy gradients on chunks: GRPO, RLOO and PPO with the objective and the advantages that text uses, unchanged.

A chunk is a sequence whose tokens are its H actions. Its ratio is exp of the mean over the horizon of the actions'
log-ratios, each summed over axes: the ratio of the whole chunk's density leaves any clip after one step, because
densities of continuous actions multiply. No KL term by default; the reference would be the actor as it drew.

    GRPO, advantage="group"          Shao et al. 2024, arXiv 2402.03300; on chunks SimpleVLA-RL, arXiv 2509.09674
    RLOO, advantage="leave_one_out"  Ahmadian et al. 2024, arXiv 2402.14740; on chunks RIPT-VLA, arXiv 2505.17016
    PPO,  advantage="gae"            Schulman et al. 2017; a chunk is one step, so its discount is discount ** H

It learns from its own fresh attempts (vla/rl/on_policy.py), hence `learn_from` and no `learn`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from agents.advantages import group_advantages, leave_one_out_advantages, turn_advantages
from agents.objectives.policy_gradient import clip_fraction, importance_ratio, policy_gradient
from vla.core.errors import unknown_name
from vla.rl.actors.laplace import LaplaceActor
from vla.rl.actors.tokens import TokenActor
from vla.rl.actors.trunk import mlp
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.on_policy import Attempts, DensityActor, by_attempt, of_chunks
from vla.rl.presets import make_actor
from vla.rl.problem import Problem

type Advantage = Literal["group", "leave_one_out", "gae"]


class PolicyGradient(ActorLearner[DensityActor]):
    """An actor with a density, and where advantages are generalised ones, a value of the observation."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "laplace",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        advantage: Advantage = "group",
        epochs: int = 4,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        value_rate: float = 1e-3,
        smoothing: float = 0.95,
    ) -> None:
        """Builds the networks.

        Args:
            problem: sizes and discount.
            actor: laplace or tokens, of `actor_width` and `actor_layers`.
            actor_width: see above.
            actor_layers: see above.
            actor_rate: learning rate.
            advantage: see the module.
            epochs: steps on the attempts of one round, each on all of them.
            clip_low: the ratio is clipped from 1 - clip_low.
            clip_high: to 1 + clip_high; higher, so that rare chunks can become likely (DAPO).
            value_rate: of the value, for "gae".
            smoothing: lambda, for "gae".
        """
        super().__init__()
        if advantage not in get_args(Advantage.__value__):
            raise unknown_name("advantage", advantage, get_args(Advantage.__value__))
        self.actor = density_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.discount, self.chunk_discount = problem.discount, problem.discount**problem.horizon
        self.advantage, self.epochs, self.smoothing = advantage, epochs, smoothing
        self.clip_low, self.clip_high = clip_low, clip_high
        if advantage == "gae":
            self.value = mlp(problem.features, 1, width=actor_width, layers=actor_layers)
            self.value_optimizer = adam(self.value, value_rate)

    def learn_from(self, attempts: Attempts) -> dict[str, float]:
        """`epochs` steps on one round of attempts that this actor has just made."""
        advantages_B, targets_B = self._advantages(attempts)
        for _ in range(self.epochs):
            minimise(self.actor_optimizer, self.loss(attempts, advantages_B))
            if targets_B is not None:
                values_B = self.value(attempts.features_BD)[:, 0]
                minimise(self.value_optimizer, functional.mse_loss(values_B, targets_B))
        self.steps += 1
        with torch.no_grad():
            logp_BH = self.actor.log_prob_BH(attempts.features_BD, attempts.chunks_BHA)
        mask_BH = attempts.played_BH
        ratio_BH = importance_ratio(logp_BH, attempts.logp_BH, mask_BH, "sequence_mean")
        clipped = clip_fraction(ratio_BH, advantages_B, mask_BH, self.clip_low, self.clip_high)
        return {"ratio_max": float(ratio_BH.max()), "clipped_share": clipped}

    def loss(self, attempts: Attempts, advantages_B: Tensor) -> Tensor:
        return policy_gradient(
            self.actor.log_prob_BH(attempts.features_BD, attempts.chunks_BHA),
            advantages_B,
            attempts.played_BH,
            logp_old_BN=attempts.logp_BH,
            ratio="sequence_mean",
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            how="sequence",
        )

    def _advantages(self, attempts: Attempts) -> tuple[Tensor, Tensor | None]:
        """(B,) advantages, and what the value is to learn."""
        if self.advantage == "group":
            return of_chunks(attempts, group_advantages(attempts.return_E, attempts.group_E)), None
        if self.advantage == "leave_one_out":
            return of_chunks(attempts, leave_one_out_advantages(attempts.return_E, attempts.group_E)), None
        advantages_B, targets_B = self._generalised(attempts)
        return (advantages_B - advantages_B.mean()) / (advantages_B.std() + 1e-8), targets_B

    @torch.no_grad()
    def _generalised(self, attempts: Attempts) -> tuple[Tensor, Tensor]:
        """GAE over chunks; nothing follows the end of an attempt, for who runs out of time gets nothing."""
        values_B = self.value(attempts.features_BD)[:, 0]
        advantages_EK = turn_advantages(
            by_attempt(attempts, chunk_rewards(attempts, self.discount)),
            by_attempt(attempts, values_B),
            by_attempt(attempts, torch.ones_like(values_B)).bool(),
            discount=self.chunk_discount,
            smoothing=self.smoothing,
        )
        advantages_B = advantages_EK[attempts.attempt_B, attempts.turn_B]
        return advantages_B, advantages_B + values_B


def chunk_rewards(attempts: Attempts, discount: float) -> Tensor:
    """(B,) the reward 1 of success, discounted to the beginning of the chunk in which it came; else 0."""
    turns_E = attempts.attempt_B.bincount(minlength=len(attempts))
    last_B = attempts.turn_B == turns_E[attempts.attempt_B] - 1
    won_B = last_B & attempts.success_E[attempts.attempt_B]
    return torch.where(won_B, discount ** (attempts.played_BH.sum(1) - 1).float(), 0.0)


def density_actor(name: str, problem: Problem, *, width: int, layers: int) -> DensityActor:
    """An actor whose chunks have an exact density. Raises UnknownNameError for one without."""
    if name not in ("laplace", "tokens"):
        raise unknown_name("actor with a density", name, ("laplace", "tokens"))
    actor = make_actor(name, problem, width=width, layers=layers)
    assert isinstance(actor, LaplaceActor | TokenActor)
    return actor
