"""Reward-ranked fine-tuning (RAFT): of several attempts at one start imitate the best, then draw again.

The loss is `agents.objectives.nll`, whose weights keep the best attempt of each group and drop the others. Failures are
never imitated, nor are groups in which all ended alike.

Source: Dong et al. 2023, arXiv 2304.06767. What differs: the best per start ("local"), by discounted return, so the
quickest success; the likelihood is of the whole law, so its width narrows as the policy agrees with itself.
"""

import torch
from torch import Tensor

from agents.advantages import group_advantages
from agents.objectives.nll import nll
from vla.rl.algorithms.policy_gradient import density_actor
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.on_policy import Attempts, DensityActor
from vla.rl.problem import Problem


class RAFT(ActorLearner[DensityActor]):
    """An actor with a density."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "laplace",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        epochs: int = 4,
    ) -> None:
        """As PolicyGradient."""
        super().__init__()
        self.actor = density_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.epochs = epochs

    def learn_from(self, attempts: Attempts) -> dict[str, float]:
        """`epochs` steps on the best attempts of one round."""
        weights_B = best_of_group(attempts)[attempts.attempt_B].float()
        kept = (weights_B[:, None] * attempts.played_BH).sum()
        loss = attempts.logp_BH.new_zeros(())
        done_BHA = attempts.chunks_BHA.clamp(-1, 1)  # what the world did; the mean cannot go beyond it anyway
        for _ in range(self.epochs):
            logp_BH = self.actor.log_prob_BH(attempts.features_BD, done_BHA)
            loss = nll(logp_BH, attempts.played_BH, weights_B, total=kept)
            minimise(self.actor_optimizer, loss)
        self.steps += 1
        return {"imitation_loss": float(loss.detach()), "kept_share": float(weights_B.mean())}


def best_of_group(attempts: Attempts) -> Tensor:
    """(E,) bool: the first of the highest return in each group, where it succeeded and others did worse."""
    informative_E = group_advantages(attempts.return_E, attempts.group_E).informative_B
    best_E = torch.zeros(len(attempts), dtype=torch.bool)
    for group in attempts.group_E.unique():
        members = torch.nonzero(attempts.group_E == group)[:, 0]
        best_E[members[attempts.return_E[members].argmax()]] = True
    return best_E & informative_E & attempts.success_E
