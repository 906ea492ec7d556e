"""Success shown more often to a critic, as the reward upsampling of RoboFuME does it: copies of the last frame.

Special: this changes the problem. Each copy pays 1 again, so a success is worth 1 + g + ... + g^copies and reaching it
early is worth relatively less; `attainable` is the new bound of values. `sampling.success_weights` shows success more
often and changes nothing. Source: Yang et al. 2023, arXiv 2310.15145.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vla.rl.gather import Recording


def duplicated(recording: Recording, copies: int) -> Recording:
    """A success with `copies` more steps in its last state, the last action again and again; a failure as it is."""
    if not recording.success or copies == 0:
        return recording

    def longer(values_T: NDArray) -> NDArray:
        return np.concatenate([values_T, np.repeat(values_T[-1:], copies, axis=0)])

    return replace(
        recording,
        features_TD=longer(recording.features_TD),
        actions_TA=longer(recording.actions_TA),
        plan_TPA=longer(recording.plan_TPA),
        planned_T=longer(recording.planned_T),
        open_loop_T=np.concatenate([recording.open_loop_T, np.ones(copies, np.int64)]),
        success_T=longer(recording.success_T),
        clock_limit=recording.clock_limit + copies,
    )


def attainable(discount: float, copies: int) -> float:
    """The highest return where a success is followed by `copies` copies."""
    return float(np.sum(discount ** np.arange(copies + 1)))
