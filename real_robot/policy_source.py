"""A policy as a `Source`: looks, asks without making the loop wait, sends timed chunks.

What is special: a policy has the rules of a leader arm or a script (lease, admission, filter, recording) and no path of
its own. It never computes inside the loop: on a real clock it does in a thread, and should live in another process
altogether (`vla.rollout.remote` asks one); on a virtual clock it answers at once and is heard `latency_s` later.
"""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from real_robot.cameras.eyes import Eyes
from real_robot.cameras.frames import Frame
from real_robot.core.types import ArmState, Chunk, Clock
from real_robot.playing import Scheduler
from real_robot.preflight import observation_of
from vla.core.errors import GrasplineError, NonFiniteError
from vla.core.protocols import Policy
from vla.core.types import ActionChunk, Float, Observation

READINGS = 100  # kept, of which the one nearest to a picture is shown with it


class Asker:
    """Asks a policy without making the loop wait; one question at a time. A context manager.

    Args:
        policy: see the module.
        latency_s: None: computed in a thread. Else computed at once, and there so much later on the clock.
    """

    def __init__(self, policy: Policy, latency_s: float | None = None) -> None:
        self._policy, self._latency_s = policy, latency_s
        self._future: Future[list[ActionChunk]] | None = None
        self._ready_s = 0.0
        self._wanted = True
        self._thread = ThreadPoolExecutor(1, "policy")
        if latency_s is None:
            self._thread.submit(int).result()  # started here, so it does not inherit the loop's priority

    @property
    def busy(self) -> bool:
        return self._future is not None

    def ask(self, observation: Observation, seed: int, now_s: float) -> None:
        self._wanted, self._ready_s = True, now_s + (self._latency_s or 0.0)
        if self._latency_s is None:
            self._future = self._thread.submit(self._policy.act, [observation], [seed])
            return
        self._future = Future()
        try:
            self._future.set_result(self._policy.act([observation], [seed]))
        except GrasplineError as error:
            self._future.set_exception(error)

    def forget(self) -> None:
        """The answer under way is of no use any more; until it is here nothing else can be asked."""
        self._wanted = False

    def poll(self, now_s: float) -> Float | None:
        """The actions (H, A), once they are there. Raises what the policy raised."""
        if self._future is None or not self._future.done() or now_s < self._ready_s:
            return None
        future, self._future = self._future, None
        return future.result()[0].actions_HA if self._wanted else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)  # a policy that hangs must not hold the arm's shutdown


class PolicySource:
    """A policy as a `teleop.drive.Teleop`: `next` gives a chunk when an answer has come.

    An answer with NaN is dropped and asked for again: the arm plays its tail and, if it goes on, starves and pauses.
    Anything else the policy raises is `trouble`, which pauses the arm at once.
    """

    def __init__(
        self, asker: Asker, scheduler: Scheduler, eyes: Eyes, clock: Clock, *, session: str, task: str, seed: int
    ) -> None:
        self.session, self.trouble = session, ""
        self.scheduler, self._asker, self._eyes, self._clock = scheduler, asker, eyes, clock
        self._task, self._seeds = task, np.random.default_rng(seed)
        self._readings: deque[ArmState] = deque(maxlen=READINGS)
        self._since_s = self._seen_s = -np.inf
        self.non_finite = 0

    def next(self, state: ArmState) -> Chunk | None:
        now_s = self._clock.now()
        self._readings.append(state)
        chunk = self._answer(now_s)
        if self._eyes.frames is not None and not self._asker.busy:
            self._ask(self._eyes.frames, now_s)
        return chunk

    def on_event(self, event: str) -> None:
        """Whatever is under way was asked before: only pictures from now on count."""
        if self._asker.busy:
            self._asker.forget()
        self.scheduler.failed()
        self._since_s = self._clock.now() if event == "active" else np.inf

    def _ask(self, frames: Mapping[str, Frame], now_s: float) -> None:
        """If there is a picture that is due: one taken after the last steps that were to be played before it."""
        newest_s = max([frame.time_s for frame in frames.values()], default=self._readings[-1].time_s)
        if newest_s < self._since_s or newest_s <= self._seen_s or not self.scheduler.due(newest_s):
            return
        self._seen_s = newest_s
        self.scheduler.ask(newest_s)
        reading = min(self._readings, key=lambda each: abs(each.time_s - newest_s))
        observation = observation_of(reading, frames, self._task, newest_s)
        self._asker.ask(observation, int(self._seeds.integers(2**31)), now_s)

    def _answer(self, now_s: float) -> Chunk | None:
        try:
            actions_HA = self._asker.poll(now_s)
            return None if actions_HA is None else self.scheduler.answer(actions_HA.astype(np.float64), now_s)
        except NonFiniteError:
            self.non_finite += 1
            self.scheduler.failed()
        except GrasplineError as error:
            self.trouble = str(error)
        return None
