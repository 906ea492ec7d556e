"""Stopping early with a known error rate: evidence that stays valid however often somebody looks.

Special: one martingale serves all: the likelihood of the outcomes averaged over a Beta(1/2, 1/2) prior of the success
rate, divided by their likelihood at the rate to be refuted. If that rate is the true one, the ratio ever exceeds
1/alpha with a probability of at most alpha (Ville 1939; H. Robbins, Annals of Mathematical Statistics 41, 1970).
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaln, xlog1py, xlogy

from vla.core.errors import GrasplineError
from vla.rollout.runner import EpisodePlan

_PRIOR = 0.5  # both parameters of the Beta; Jeffreys' choice, good at rates near 0 and 1
_BLOCK = 20  # rows handed to the runner between two looks; what a decision wastes, never what it is


def log_evidence(successes: Any, episodes: Any, rate: float) -> Any:
    """Log of the evidence against `rate`; refuted at level alpha once it reaches log(1/alpha). Broadcasts."""
    failures = np.subtract(episodes, successes)
    averaged = betaln(successes + _PRIOR, failures + _PRIOR) - betaln(_PRIOR, _PRIOR)
    return averaged - xlogy(successes, rate) - xlog1py(failures, -rate)


def anytime_p(successes: int, episodes: int, rate: float) -> float:
    """A p-value against `rate` that may be looked at after every episode, and acted upon."""
    return float(min(1.0, np.exp(-log_evidence(successes, episodes, rate))))


def anytime_interval(successes: int, episodes: int, alpha: float) -> tuple[float, float]:
    """The success rates not refuted: at all times together, they hold the true one with probability 1 - alpha.

    Wider than an interval for a number of episodes that was fixed beforehand; that is the price of looking.
    """
    if not 0 <= successes <= episodes or episodes < 1:
        raise ValueError(f"{successes} successes of {episodes} episodes")
    return _lowest(successes, episodes, alpha), 1 - _lowest(episodes - successes, episodes, alpha)


def _lowest(successes: int, episodes: int, alpha: float) -> float:
    """Bisection: the evidence falls from infinity at rate 0 to less than 1 at the observed rate."""
    if successes == 0:
        return 0.0
    refuted, kept = 0.0, successes / episodes
    while (middle := (refuted + kept) / 2) not in (refuted, kept) and kept - refuted > 1e-12:
        if log_evidence(successes, episodes, middle) >= -math.log(alpha):
            refuted = middle
        else:
            kept = middle
    return kept


@dataclass(frozen=True, kw_only=True)
class StopWhen:
    """Stop an evaluation as soon as the success rate is surely above or surely below `target`.

    The decision is wrong with a probability of at most `alpha`. It looks at the rows in an order of its own and only
    once all earlier rows have finished: successes end sooner than failures, so the order in which episodes finish would
    flatter the policy, and would depend on the machine.
    """

    target: float
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for name, value in (("target", self.target), ("alpha", self.alpha)):
            if not 0 < value < 1:
                raise GrasplineError(f"stop_when.{name} is {value}, expected a number between 0 and 1, both excluded")

    def blocks(self, plan: Sequence[EpisodePlan]) -> list[list[EpisodePlan]]:
        """The plan shuffled, cut into what is played between two looks. A row's place depends on the rows alone."""
        order = sorted(
            plan, key=lambda row: hashlib.sha256(f"{row.task} {row.init_state} {row.seed}".encode()).digest()
        )
        return [order[first : first + _BLOCK] for first in range(0, len(order), _BLOCK)]

    def decided_after(self, outcomes: Iterable[bool]) -> int | None:
        """The number of rows, in that order, after which the decision falls; None if it has not fallen."""
        outcomes_N = np.fromiter(outcomes, int)
        evidence_N = log_evidence(np.cumsum(outcomes_N), np.arange(1, len(outcomes_N) + 1), self.target)
        decided_N = np.flatnonzero(evidence_N >= -math.log(self.alpha))
        return int(decided_N[0]) + 1 if len(decided_N) else None

    def interval(self, successes: int, episodes: int) -> tuple[float, float]:
        """`anytime_interval` at this level: valid although the number of episodes depends on what they showed."""
        return anytime_interval(successes, episodes, self.alpha)

    def verdict(self, successes: int, episodes: int, planned: int) -> dict[str, Any]:
        """What results.json says about it: `decision` is above, below or None."""
        decision = None
        if log_evidence(successes, episodes, self.target) >= -math.log(self.alpha):
            decision = "above" if successes > self.target * episodes else "below"
        return {"target": self.target, "alpha": self.alpha, "decision": decision, "planned": planned}
