"""A moving target as short chunks, so that whoever teleoperates plays by the same rules as a policy.

What is special: a chunk reaches 0.3 s ahead, along the target's speed at first and then standing still. A target that
stays away (a pulled cable, a hung process) is a soft stop by itself, before any watchdog has noticed. Period and lead
were chosen with a target that swings at 0.5 Hz: the command follows within 10 ms and is no rougher than the target
itself; a period of 50 ms doubles its acceleration.
"""

import numpy as np

from real_robot.core.types import ArmSpec, Array, Chunk

PERIOD_S = 0.02
STEP_S, STEPS = 0.02, 15
LEAD_S = 0.06  # so far the target's speed is believed


class Stream:
    """Chunks of one session. `send` at every tick; it answers when one is due.

    Args:
        spec: of the arm that follows.
        session: as it is activated at the daemon.
    """

    def __init__(self, spec: ArmSpec, session: str) -> None:
        self._spec, self.session = spec, session
        self._seq = 0
        self._last_s = -np.inf
        self._target_J: Array | None = None

    def reset(self) -> None:
        """The next target is the first one: it comes from nowhere, so it has no speed."""
        self._last_s, self._target_J = -np.inf, None

    def send(self, target_J: Array, now_s: float) -> Chunk | None:
        """The target (J,) at `now_s`."""
        passed_s = now_s - self._last_s
        if passed_s < PERIOD_S - 1e-6:
            return None
        spec = self._spec
        dq_J = np.zeros_like(target_J) if self._target_J is None else (target_J - self._target_J) / passed_s
        dq_J = np.clip(dq_J, -spec.velocity_J, spec.velocity_J)
        self._last_s = now_s
        self._target_J = target_J if np.isfinite(target_J).all() else None  # garbage is refused, and then forgotten
        self._seq += 1
        ahead_H1 = np.minimum(STEP_S * np.arange(1, STEPS + 1), LEAD_S)[:, None]
        # not further past a limit than the target is; whether that is too far, the door of the controller says
        low_J, high_J = np.minimum(target_J, spec.low_J), np.maximum(target_J, spec.high_J)
        q_HJ = np.clip(target_J + ahead_H1 * dq_J, low_J, high_J)
        return Chunk(
            session=self.session,
            seq=self._seq,
            t_obs_s=now_s,
            dt_s=STEP_S,
            q_HN=q_HJ[:, spec.arm_N],
            gripper_H=None if spec.gripper_index is None else q_HJ[:, spec.gripper_index],
        )
