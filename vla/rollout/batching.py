"""Requests of many clients -> batches -> one thread that computes; and how long that took.

Whatever waits is computed together, at most `max_batch` at once. A request that cannot begin, or is not expected to
end, before its deadline is refused with words and costs no computing: a robot prefers "late" to an old chunk. One that
has begun is always answered.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Self

import numpy as np

from vla.core.errors import GrasplineError, NonFiniteError, SpecMismatchError
from vla.core.protocols import Policy
from vla.core.types import ActionChunk, Observation
from vla.rollout.native import RefusalError

REMEMBERED = 1000  # requests that the percentiles are of
FORGET = 0.9  # of the expected time of computing, for each request refused because of it: one slow batch is forgotten


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A chunk, how long its request waited and how long its batch computed [s]."""

    chunk: ActionChunk
    queue_s: float
    compute_s: float


@dataclass(kw_only=True)
class Metrics:
    """Counts since the start, and the times of the last REMEMBERED answers."""

    counts: Counter[str] = field(default_factory=Counter)
    batch_sizes: Counter[int] = field(default_factory=Counter)
    times_s: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `latency_ms` holds the 50th, 90th and 99th percentile of queue, compute and total."""
        latency_ms = {}
        for name, column_s in zip(("queue", "compute", "total"), zip(*self.times_s), strict=False):
            values = np.percentile(np.array(column_s) * 1e3, (50, 90, 99)).round(3).tolist()
            latency_ms[name] = dict(zip(("p50", "p90", "p99"), values))
        codes = ("bad_request", "busy", "late", "policy_error", "stopping")
        refused = {code: self.counts[code] for code in codes}
        return {
            "requests": self.counts["requests"],
            "answered": self.counts["answered"],
            "errors": refused["bad_request"] + refused["policy_error"],
            "shed": refused["busy"] + refused["late"] + refused["stopping"],
            "refused": refused,
            "batch_sizes": {str(size): count for size, count in sorted(self.batch_sizes.items())},
            "latency_ms": latency_ms,
        }


@dataclass(eq=False, kw_only=True)
class _Request:
    observation: Observation
    seed: int
    arrived_s: float
    answer: asyncio.Future[Answer]


class Batcher:
    """Asks a policy in batches, for coroutines that ask for one chunk each. An async context manager.

    Args:
        policy: asked in one thread, so it need not be safe for several.
        metrics: batch sizes are counted there.
        max_batch: requests computed together.
        max_queue: requests that may wait.
        max_wait_s: how long an incomplete batch waits for company.
        deadline_s: how old a request may be when its chunk is expected.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        metrics: Metrics,
        max_batch: int,
        max_queue: int,
        max_wait_s: float,
        deadline_s: float,
    ) -> None:
        if min(max_batch, max_queue) < 1 or max_wait_s < 0 or deadline_s <= 0:
            raise ValueError(f"{max_batch=}, {max_queue=}, {max_wait_s=}, {deadline_s=}")
        self._policy, self._metrics = policy, metrics
        self._max_batch, self._max_queue = max_batch, max_queue
        self._max_wait_s, self._deadline_s = max_wait_s, deadline_s
        self._waiting: deque[_Request] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._expected_s = 0.0
        self._computing = False
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Computes what waits already, refuses what comes, then stops."""
        self._stopping = True
        while self._waiting or self._computing:
            await asyncio.sleep(0.005)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown(wait=False)

    async def ask(self, observation: Observation, seed: int) -> Answer:
        """The chunk for one observation.

        Raises:
            RefusalError: busy, late or stopping; or the policy failed on this observation.
        """
        if self._stopping:
            raise RefusalError("stopping", "the server is stopping")
        if len(self._waiting) >= self._max_queue:
            raise RefusalError("busy", f"{len(self._waiting)} requests are waiting already (max_queue)")
        loop = asyncio.get_running_loop()
        request = _Request(observation=observation, seed=seed, arrived_s=monotonic(), answer=loop.create_future())
        self._waiting.append(request)
        self._arrived.set()
        expiry = loop.call_later(self._deadline_s, self._expire, request)
        try:
            return await request.answer
        finally:
            expiry.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._company()
            batch = self._take()
            if not batch:
                continue
            self._computing = True
            began_s = monotonic()
            self._metrics.batch_sizes[len(batch)] += 1
            outcomes = await loop.run_in_executor(self._thread, self._compute, batch)
            self._expected_s = compute_s = monotonic() - began_s
            self._computing = False
            for request, outcome in zip(batch, outcomes, strict=True):
                if request.answer.done():  # its client's task was cancelled
                    continue
                if isinstance(outcome, RefusalError):
                    request.answer.set_exception(outcome)
                else:
                    queue_s = began_s - request.arrived_s
                    request.answer.set_result(Answer(chunk=outcome, queue_s=queue_s, compute_s=compute_s))

    async def _company(self) -> None:
        """Returns when a request waits and the batch is full or the oldest has waited long enough for others."""
        while len(self._waiting) < self._max_batch:
            left_s = self._waiting[0].arrived_s + self._max_wait_s - monotonic() if self._waiting else None
            if left_s is not None and left_s <= 0:
                return
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()

    def _take(self) -> list[_Request]:
        """The next batch; refuses on the way what would come late."""
        batch: list[_Request] = []
        while self._waiting and len(batch) < self._max_batch:
            request = self._waiting.popleft()
            if request.answer.done():
                continue
            if monotonic() + self._expected_s > request.arrived_s + self._deadline_s:
                self._refuse_late(request)
                self._expected_s *= FORGET
            else:
                batch.append(request)
        return batch

    def _expire(self, request: _Request) -> None:
        if request in self._waiting and not request.answer.done():
            self._waiting.remove(request)
            self._refuse_late(request)

    def _refuse_late(self, request: _Request) -> None:
        waited_ms, deadline_ms = (monotonic() - request.arrived_s) * 1e3, self._deadline_s * 1e3
        expected_ms = self._expected_s * 1e3
        words = f"waited {waited_ms:.0f} ms, computing takes about {expected_ms:.0f} ms, deadline_ms is {deadline_ms:g}"
        request.answer.set_exception(RefusalError("late", words))

    def _compute(self, batch: Sequence[_Request]) -> list[ActionChunk | RefusalError]:
        """In the thread: one outcome per request. When a batch fails, each is tried alone, so that one spoils none."""
        try:
            return list(_checked(self._policy, batch))
        except Exception as error:  # noqa: BLE001  whatever a policy raises is its client's answer, not the server's end
            if len(batch) > 1:
                return [outcome for request in batch for outcome in self._compute([request])]
            told = str(error) if isinstance(error, GrasplineError) else f"{type(error).__name__}: {error}"
            return [RefusalError("policy_error", told)]


def _checked(policy: Policy, batch: Sequence[_Request]) -> list[ActionChunk]:
    chunks = policy.act([request.observation for request in batch], [request.seed for request in batch])
    shape = (policy.horizon, policy.spec.action_dim)
    if len(chunks) != len(batch):
        raise SpecMismatchError(f"the policy answered {len(batch)} observations with {len(chunks)} chunks")
    for chunk in chunks:
        actions_HA = chunk.actions_HA
        if actions_HA.shape != shape or actions_HA.dtype != np.float32:
            raise SpecMismatchError(
                f"the policy's chunk is {actions_HA.shape} {actions_HA.dtype}, expected {shape} float32"
            )
        if not np.isfinite(actions_HA).all():
            raise NonFiniteError("the policy's actions are not finite")
    return chunks
