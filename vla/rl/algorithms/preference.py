"""Preferences between chunks from one state (DPO): the better of two attempts is chosen, the worse is rejected.

With a Laplace law whose b does not move, the logit of a pair is beta / b times how much closer to the chosen chunk and
farther from the rejected one the mean has moved, in absolute error. The reference's log-probabilities are those stored
when the chunks were drawn, so no second model is kept; each round has the last one's policy as its reference.

Source: Rafailov et al. 2023 (DPO), arXiv 2305.18290; stored log-probabilities: Putta et al. 2024 (Agent Q),
arXiv 2408.07199. What differs: pairs come from a snapshot, so both chunks answer the same observation exactly, and what
followed them was the same policy (`play_group(branch=True)`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.objectives.pair import PairKind, pair_loss, pair_margin
from agents.objectives.reduce import sequence_sum
from vla.rl.algorithms.policy_gradient import density_actor
from vla.rl.learner import ActorLearner, adam, minimise
from vla.rl.on_policy import Attempts, DensityActor
from vla.rl.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """chosen_P, rejected_P: (P,) int64, rows of `Attempts` whose observation is the same."""

    chosen_P: Tensor
    rejected_P: Tensor


class Preference(ActorLearner[DensityActor]):
    """An actor with a density."""

    def __init__(
        self,
        *,
        problem: Problem,
        actor: str = "laplace",
        actor_width: int = 256,
        actor_layers: int = 3,
        actor_rate: float = 3e-4,
        beta: float = 0.1,
        kind: PairKind = "logistic",
        epochs: int = 4,
    ) -> None:
        """As PolicyGradient; `beta` and `kind` as in `agents.objectives.pair`."""
        super().__init__()
        self.actor = density_actor(actor, problem, width=actor_width, layers=actor_layers)
        self.actor_optimizer = adam(self.actor, actor_rate)
        self.beta, self.epochs = beta, epochs
        self.kind: PairKind = kind

    def learn_from(self, attempts: Attempts) -> dict[str, float]:
        """`epochs` steps on the pairs of one round; groups that hold none change nothing."""
        pairs = pairs_of(attempts)
        if not len(pairs.chosen_P):
            return {"pairs": 0.0}
        for _ in range(self.epochs):
            minimise(self.actor_optimizer, pair_loss(self.margins(attempts, pairs), self.beta, self.kind).mean())
        self.steps += 1
        with torch.no_grad():
            margins_P = self.margins(attempts, pairs)
        return {"pairs": float(len(margins_P)), "pair_accuracy": float((margins_P > 0).float().mean())}

    def margins(self, attempts: Attempts, pairs: Pairs) -> Tensor:
        """(P,) [nat], differentiable; steps that were not played do not count."""
        now_BH = self.actor.log_prob_BH(attempts.features_BD, attempts.chunks_BHA)
        now_B = sequence_sum(now_BH, attempts.played_BH)
        reference_B = sequence_sum(attempts.logp_BH, attempts.played_BH)
        chosen_P, rejected_P = pairs.chosen_P, pairs.rejected_P
        return pair_margin(now_B[chosen_P], now_B[rejected_P], reference_B[chosen_P], reference_B[rejected_P])


def pairs_of(attempts: Attempts) -> Pairs:
    """First chunks of attempts from one start: the best against the worst, the second best against the second worst...

    Only where the returns differ.
    """
    first_E = torch.nonzero(attempts.turn_B == 0)[:, 0]  # attempts stand in order
    chosen: list[Tensor] = []
    rejected: list[Tensor] = []
    for group in attempts.group_E.unique():
        members = torch.nonzero(attempts.group_E == group)[:, 0]
        order = members[attempts.return_E[members].argsort(descending=True, stable=True)]
        half = len(order) // 2
        better, worse = order[:half], order.flip(0)[:half]
        differ = attempts.return_E[better] > attempts.return_E[worse]
        chosen.append(first_E[better[differ]])
        rejected.append(first_E[worse[differ]])
    return Pairs(chosen_P=torch.cat(chosen), rejected_P=torch.cat(rejected))
