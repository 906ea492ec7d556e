"""Is a critic still to be believed? Mean values beside the returns that were measured, and an alarm.

Values that bootstrap from themselves can leave the range that returns can have long before a policy looks broken, and a
critic that prefers the policy's chunks far above anything measured is extrapolating. Both stop a run here, with the
numbers kept. A good calibration does not mean that candidates are ranked well: that is ranking.py's question.
Letters as in interfaces.py; K values.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vla.core.errors import GrasplineError
from vla.rl.interfaces import ChunkBatch, Critic

_TOLERANCE = 0.05  # of the range: a critic that is right on average strays this far on a small batch
_HIGHEST_GAP = 0.5  # of the range, between the policy's chunks and measured returns


class DivergenceError(GrasplineError, ArithmeticError):
    """A critic's values cannot be true; `evidence` holds the numbers."""

    def __init__(self, message: str, evidence: Mapping[str, float]) -> None:
        super().__init__(message)
        self.evidence = dict(evidence)


@torch.no_grad()
def critic_metrics(critic: Critic, batch: ChunkBatch, policy_BHA: Tensor) -> dict[str, float]:
    """Mean values of whole chunks, over critics and rows.

    Args:
        critic: any.
        batch: recorded chunks.
        policy_BHA: the policy's chunks for the same observations.

    Returns:
        q/data, q/policy; q/spread, the mean standard deviation over the ensemble; and, over rows with a known return
        alone (NaN without any), return, q/bias (values of data minus returns), q/calibration, q/policy_gap (values of
        the policy's chunks minus returns).
    """
    features_BD = batch.features_BGD[:, 0]
    data_EB = critic.value(critic(features_BD, batch.actions_BHA))[:, :, -1]
    policy_EB = critic.value(critic(features_BD, policy_BHA))[:, :, -1]
    data_B, policy_B = data_EB.mean(dim=0), policy_EB.mean(dim=0)
    known_B = ~batch.return_mc_B.isnan()
    return_K = batch.return_mc_B[known_B]
    return {
        "q/data": float(data_B.mean()),
        "q/policy": float(policy_B.mean()),
        "q/spread": float(data_EB.std(dim=0, correction=0).mean()),
        "return": float(return_K.mean()),
        "q/bias": float((data_B[known_B] - return_K).mean()),
        "q/calibration": calibration_error(data_B[known_B], return_K),
        "q/policy_gap": float((policy_B[known_B] - return_K).mean()),
    }


def calibration_error(values_K: Tensor, returns_K: Tensor, bins: int = 10) -> float:
    """Mean over equally filled bins of |mean value - mean return|, sorted by value; NaN without values.

    Noise of single returns averages out within a bin, so a critic that gives each state its expected return scores
    near zero, whatever the returns' spread.
    """
    if len(values_K) == 0:
        return math.nan
    order = values_K.argsort()
    errors = [
        len(part) * float((values_K[part].mean() - returns_K[part].mean()).abs())
        for part in order.tensor_split(min(bins, len(order)))
    ]
    return sum(errors) / len(values_K)


def check_divergence(metrics: Mapping[str, float], *, low: float, high: float) -> None:
    """Raises DivergenceError where the metrics of `critic_metrics` cannot be those of a sound critic.

    Args:
        metrics: as returned there. A NaN in what is measured against returns passes: it means none is known.
        low: the lowest return that can be attained.
        high: the highest.
    """
    extent = high - low
    for name in ("q/data", "q/policy"):
        value = metrics[name]
        if not low - _TOLERANCE * extent <= value <= high + _TOLERANCE * extent:
            raise DivergenceError(
                f"{name} is {value:.4g}, but returns lie in {low:.4g}..{high:.4g}: lower the critic's learning rate or "
                "the discount, clip the targets to this range, or predict a histogram (HLGauss)",
                metrics,
            )
    if metrics["q/policy_gap"] > _HIGHEST_GAP * extent:
        raise DivergenceError(
            f"the policy's chunks are valued {metrics['q/policy_gap']:.4g} above the measured returns, more than "
            f"{_HIGHEST_GAP:.0%} of their range: add conservatism, imitation, or attempts that failed",
            metrics,
        )
