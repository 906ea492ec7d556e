"""Who drives: one controller with a heartbeat, any number of observers. A lease that is not renewed is gone.

The token is random, so it cannot be guessed; the generation only grows, so what an old controller still sends is told
from what the present one sends.
"""

import secrets
from dataclasses import dataclass

from real_robot.core.faults import RefusedError

HEARTBEAT_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to drive. `generation` counts leases from 1."""

    client: str
    token: str
    generation: int


class Leases:
    """One controller at a time. All times are `Clock.now` [s]."""

    def __init__(self, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._heartbeat_s = heartbeat_s
        self._lease: Lease | None = None
        self._beat_s = 0.0
        self._generation = 0
        self.observers: set[str] = set()

    @property
    def holder(self) -> Lease | None:
        return self._lease

    def acquire(self, client: str, now_s: float) -> Lease:
        """Takes the lease. Raises RefusedError while somebody else holds one that is alive."""
        if self._lease is not None and not self.expired(now_s):
            raise RefusedError(
                f"'{self._lease.client}' drives the arm; observers may watch, the lease must be released"
            )
        self._generation += 1
        self._lease = Lease(client=client, token=secrets.token_hex(16), generation=self._generation)
        self._beat_s = now_s
        return self._lease

    def heartbeat(self, token: str, now_s: float) -> None:
        """Renews the lease. Raises RefusedError for a token that is not the present one, or that is too late."""
        self.check(token, now_s)
        self._beat_s = now_s

    def check(self, token: str, now_s: float) -> Lease:
        """The lease behind a token. Raises RefusedError."""
        if self._lease is None or not secrets.compare_digest(token.encode(), self._lease.token.encode()):
            raise RefusedError("the token is not that of the present controller: acquire the lease first")
        if self.expired(now_s):
            raise RefusedError(f"the lease ran out: no heartbeat for {now_s - self._beat_s:.2f} s")
        return self._lease

    def expired(self, now_s: float) -> bool:
        """True when there is a lease and its heartbeat is missing."""
        return self._lease is not None and now_s - self._beat_s > self._heartbeat_s

    def release(self, token: str | None = None) -> None:
        """Gives the lease back; without a token: the daemon saw its connection close."""
        if token is not None and (self._lease is None or not secrets.compare_digest(token, self._lease.token)):
            raise RefusedError("the token is not that of the present controller")
        self._lease = None
