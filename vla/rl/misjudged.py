"""What a judge that errs would have made of attempts: for asking how good a reward classifier has to be.

Special: a false alarm comes at any step of a failed attempt, as one of a judge of frames does, and ends it there, for
the robot would have stopped; a miss leaves an attempt running to its recorded end without a reward. Demonstrations are
known to be what they are.
"""

from dataclasses import replace

import numpy as np

from vla.rl.gather import Recording


def misjudged(recording: Recording, *, false_positive: float, false_negative: float, seed: int) -> Recording:
    """One attempt as the judge reports it, or the same one.

    Args:
        recording: an attempt; a demonstration is returned as it is.
        false_positive: chance that a failed attempt is called a success.
        false_negative: chance that a success is not noticed.
        seed: with the row, decides about this attempt.

    Raises:
        ValueError: a chance outside [0, 1].
    """
    for name, chance in (("false_positive", false_positive), ("false_negative", false_negative)):
        if not 0 <= chance <= 1:
            raise ValueError(f"{name} is {chance}, expected a number in [0, 1]")
    row = recording.row
    rng = np.random.default_rng([seed, row.init_state, row.seed, *row.task.encode()])
    chance = false_negative if recording.success else false_positive
    if recording.demo or rng.random() >= chance:
        return recording
    return _missed(recording) if recording.success else _alarmed(recording, int(rng.integers(len(recording))))


def _missed(recording: Recording) -> Recording:
    nothing_T = np.zeros_like(recording.success_T)
    return replace(
        recording,
        success_T=nothing_T,
        success=False,
        terminated=False,
        truncated=True,
        clock_limit=len(recording),  # whoever watched gave up there
    )


def _alarmed(recording: Recording, step: int) -> Recording:
    length = step + 1
    alarm_T = np.zeros(length, np.float32)
    alarm_T[-1] = 1.0
    return replace(
        recording,
        features_TD=recording.features_TD[: length + 1],
        actions_TA=recording.actions_TA[:length],
        plan_TPA=recording.plan_TPA[:length],
        planned_T=recording.planned_T[:length],
        open_loop_T=recording.open_loop_T[:length],
        success_T=alarm_T,
        success=True,
        terminated=True,
        truncated=False,
    )
