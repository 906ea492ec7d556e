"""The policy's side of a chunk's life: when to look, what to tell the policy of what is committed, what to send.

    due? -> ask (picture, committed steps, delay) -> the policy -> answer -> a timed chunk for the robot's timeline

What is special: one `Playing` of a few settings covers what the field does: waiting and overlapping inference, chunks
played by the picture's time or from their arrival, cross-fades, ACT's ensemble (Zhao et al. 2023), and the two ways of
real-time chunking: conditioning on the committed steps (arXiv 2512.05964) and guiding a flow towards them at run time
(arXiv 2506.07339, equations 2 to 5). Which one to use under which latency: docs/latency.md.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from real_robot.core.latency import LatencyWindow
from real_robot.core.types import Array, Chunk
from vla.core.errors import NonFiniteError, SpecMismatchError


@dataclass(frozen=True, kw_only=True)
class Playing:
    """How chunks are asked for and played.

    execute         steps between two pictures
    wait            the next picture is taken when `execute` steps are played, and the arm idles until the answer;
                    else the rest of the chunk is played meanwhile
    timed           step i is due i + 1 steps after the picture, and what is overdue is skipped; else step 0 is due on
                    arrival, however old its picture is
    fade            steps over which a new chunk takes over from the old one; 0: at once
    ensemble_decay  plays the average of all chunks that speak of a step, the i-th oldest with weight exp(-decay i)
    """

    execute: int
    wait: bool = False
    timed: bool = True
    fade: int = 0
    ensemble_decay: float | None = None

    def __post_init__(self) -> None:
        if self.execute < 1 or self.fade < 0:
            raise ValueError(f"execute is {self.execute}, fade {self.fade}: expected at least 1 and 0")
        if self.ensemble_decay is not None and (self.fade or not self.timed):
            raise ValueError("ensemble_decay averages by time: it needs timed=True and fade=0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ask:
    """What a policy may know besides the observation.

    t_obs_s      when the picture was taken, on the daemon's clock
    committed_KA steps that are due 1, 2, ... K steps after the picture and will be played unless replaced
    delay        how many of them will be over before the answer can be played, by the 95th percentile
    """

    t_obs_s: float
    committed_KA: Array
    delay: int


class Scheduler:
    """Schedules one arm's chunks; one question under way at a time. All times are the daemon's clock [s].

    Args:
        playing: see the class.
        horizon: steps of the policy's chunks.
        dt_s: time between steps.
        session: as it was activated at the daemon.
        gripper: which action drives the gripper; None: all drive the arm.
    """

    def __init__(
        self, playing: Playing, *, horizon: int, dt_s: float, session: str, gripper: int | None = None
    ) -> None:
        if playing.execute > horizon:
            raise ValueError(f"execute is {playing.execute}, but the chunks hold only {horizon} steps")
        self._playing, self._horizon, self._dt_s = playing, horizon, dt_s
        self._session, self._gripper = session, gripper
        self.latency = LatencyWindow()
        self._asked_s: float | None = None  # of the question under way
        self._next_s = -math.inf
        self._seq = 0
        self._start_s = 0.0  # the plan's step i is due at start + (i + 1) dt
        self._plan_HA: Array | None = None
        self._answers: deque[tuple[float, Array]] = deque(maxlen=horizon)  # for the ensemble, oldest first

    def due(self, now_s: float) -> bool:
        """Whether it is time for a new picture."""
        return self._asked_s is None and now_s >= self._next_s - 1e-9

    def ask(self, t_obs_s: float) -> Ask:
        """Opens a question about a picture taken at `t_obs_s`."""
        self._asked_s = t_obs_s
        self._next_s = t_obs_s + self._playing.execute * self._dt_s
        most = max(0, self._horizon - self._playing.execute)
        delay = min(self.latency.delay_steps(self._dt_s), most) if len(self.latency) else 0
        return Ask(t_obs_s=t_obs_s, committed_KA=self._committed(t_obs_s), delay=delay)

    def failed(self) -> None:
        """There is no answer: the question may be asked again at once."""
        self._asked_s, self._next_s = None, -math.inf

    def answer(self, actions_HA: Array, now_s: float) -> Chunk:
        """What to send, now that the answer is here."""
        if self._asked_s is None:
            raise ValueError("an answer to no question: call ask first")
        actions_HA = np.array(actions_HA, np.float64)
        if actions_HA.ndim != 2 or len(actions_HA) != self._horizon:
            raise SpecMismatchError(f"actions have shape {actions_HA.shape}, expected ({self._horizon}, A)")
        if not np.isfinite(actions_HA).all():
            raise NonFiniteError("the policy's actions are not finite")
        t_obs_s, self._asked_s = self._asked_s, None
        self.latency.add(max(0.0, now_s - t_obs_s))
        start_s = t_obs_s if self._playing.timed else now_s
        actions_HA = self._merged(actions_HA, start_s, now_s)
        if self._playing.wait:  # the arm stands at the last step that it is meant to play
            actions_HA = actions_HA[: self._playing.execute]
            self._next_s = start_s + len(actions_HA) * self._dt_s
        self._start_s, self._plan_HA = start_s, actions_HA
        self._seq += 1
        return self._chunk(actions_HA, start_s)

    def _committed(self, t_obs_s: float) -> Array:
        if self._plan_HA is None:
            return np.zeros((0, 0))
        return self._plan_HA[max(0, round((t_obs_s - self._start_s) / self._dt_s)) :]

    def _merged(self, new_HA: Array, start_s: float, now_s: float) -> Array:
        """The new chunk with what the old ones still say about its steps."""
        if self._playing.ensemble_decay is not None:
            self._answers.append((start_s, new_HA))
            return ensemble(list(self._answers), self._dt_s, self._playing.ensemble_decay)
        if not self._playing.fade or self._plan_HA is None:
            return new_HA
        late = max(0, math.floor((now_s - start_s) / self._dt_s + 1e-9))
        return crossfade(self._committed(start_s), new_HA, late, self._playing.fade)

    def _chunk(self, actions_HA: Array, start_s: float) -> Chunk:
        columns = [i for i in range(actions_HA.shape[1]) if i != self._gripper]
        return Chunk(
            session=self._session,
            seq=self._seq,
            t_obs_s=start_s,
            dt_s=self._dt_s,
            q_HN=actions_HA[:, columns],
            gripper_H=None if self._gripper is None else actions_HA[:, self._gripper],
        )


def crossfade(old_KA: Array, new_HA: Array, late: int, steps: int) -> Array:
    """The old plan up to step `late`, then over `steps` steps linearly to the new one, as far as the old one goes."""
    overlap = min(len(old_KA), len(new_HA))
    if not overlap:
        return new_HA
    share_K1 = np.clip((np.arange(overlap) - late + 1.0) / (steps + 1.0), 0.0, 1.0)[:, None]
    mixed_HA = new_HA.copy()
    mixed_HA[:overlap] = (1.0 - share_K1) * old_KA[:overlap] + share_K1 * new_HA[:overlap]
    return mixed_HA


def ensemble(answers: list[tuple[float, Array]], dt_s: float, decay: float) -> Array:
    """The average of all chunks (t_obs, actions), oldest first, at the steps of the newest one.

    The i-th oldest of those that speak of a step weighs exp(-decay i): ACT's algorithm 2, by time instead of index.
    """
    newest_s, newest_HA = answers[-1]
    total_HA, weight_H1 = np.zeros_like(newest_HA), np.zeros((len(newest_HA), 1))
    rank_H1 = np.zeros((len(newest_HA), 1))  # 0 for the oldest chunk that speaks of the step
    for t_obs_s, actions_HA in answers:
        shift = round((newest_s - t_obs_s) / dt_s)
        known = len(actions_HA) - shift
        if known <= 0:
            continue
        w_K1 = np.exp(-decay * rank_H1[:known])
        total_HA[:known] += w_K1 * actions_HA[shift:]
        weight_H1[:known] += w_K1
        rank_H1[:known] += 1.0
    return total_HA / weight_H1


def rtc_weights(horizon: int, delay: int, execute: int) -> Array:
    """(H,) how firmly each step of a new chunk is held to the previous one (arXiv 2506.07339, equation 5).

    1 for the `delay` steps that are over when the chunk arrives, falling to 0 where the previous chunk ends, `execute`
    steps before the new one's end.
    """
    if not 0 <= delay <= horizon - execute:
        raise ValueError(f"delay is {delay}, expected 0 to horizon - execute = {horizon - execute}")
    i_H = np.arange(horizon, dtype=np.float64)
    c_H = np.clip((horizon - execute - i_H) / (horizon - execute - delay + 1.0), 0.0, 1.0)
    w_H = c_H * np.expm1(c_H) / (math.e - 1.0)
    return np.where(i_H < delay, 1.0, w_H)


def rtc_velocity(
    velocity_HA: Array,
    noisy_HA: Array,
    previous_HA: Array,
    weights_H: Array,
    *,
    t: float,
    beta: float,
    vjp: Callable[[Array], Array],
) -> Array:
    """A flow head's velocity, pulled towards the previous chunk (arXiv 2506.07339, equations 2 to 4).

    Flow time t runs from noise (0) to actions (1): x_t = (1 - t) noise + t actions.

    Args:
        velocity_HA: the head's v(x_t, t).
        noisy_HA: x_t.
        previous_HA: the previous chunk's steps, in this chunk's places; those of weight 0 do not matter.
        weights_H: `rtc_weights`.
        t: flow time in [0, 1).
        beta: bound of the guidance; 5 in the paper. It keeps few integration steps stable.
        vjp: u -> J^T u, J the Jacobian of the clean estimate A1 = x_t + (1 - t) v with respect to x_t.
    """
    clean_HA = noisy_HA + (1.0 - t) * velocity_HA
    squares = t * t + (1.0 - t) ** 2  # (1 - t) / (t r^2) with r^2 = (1 - t)^2 / squares
    strength = min(beta, squares / (t * (1.0 - t))) if 0.0 < t < 1.0 else beta
    return velocity_HA + strength * vjp(weights_H[:, None] * (previous_HA - clean_HA))
