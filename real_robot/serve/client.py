"""The other end of `RobotServer`: requests and answers, the daemon's clock, a pinned certificate.

What is special: the token is sent only after the server's certificate was found to be the pinned one, and never in the
clear to another machine. The clock's offset comes from the exchange with the shortest round trip of the last twenty.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from real_robot.core.faults import RefusedError
from real_robot.core.types import Chunk
from real_robot.serve import auth
from real_robot.serve.messages import MAX_BYTES, decode, encode
from vla.core.errors import GrasplineError


class ClockOffset:
    """The daemon's clock minus ours [s], from times of questions and answers."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=20)  # round trip, offset

    def add(self, sent_s: float, theirs_s: float, received_s: float) -> None:
        self._seen.append((received_s - sent_s, theirs_s - 0.5 * (sent_s + received_s)))

    @property
    def offset_s(self) -> float:
        """Wrong by half of the shortest round trip at most."""
        if not self._seen:
            raise GrasplineError("the daemon's clock is not known yet: call sync first")
        return min(self._seen)[1]


class RobotClient:
    """A connection to a `RobotServer`; use it in one thread, in a `with` block.

    Args:
        url: ws:// on this machine, wss:// elsewhere.
        token: as the server's.
        pin: SHA-256 of the server's certificate, for wss://.
        deadline_s: for each answer.
        clock: ours, monotonic [s].

    Raises:
        GrasplineError: nobody answers, the token or the certificate is wrong, or the token would go in the clear.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        pin: str | None = None,
        deadline_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        secure = parts.scheme == "wss"
        if parts.scheme not in ("ws", "wss") or not host or port is None:
            raise GrasplineError(f"url {url!r}: expected ws://host:port or wss://host:port")
        if secure and pin is None:
            raise GrasplineError("wss:// needs `pin`, the SHA-256 of the server's certificate")
        if not secure and not auth.is_loopback(host):
            raise GrasplineError(f"{url} would send the token and the arm's motion in the clear: use wss://")
        self._deadline_s, self._clock, self.offset = deadline_s, clock, ClockOffset()
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            pipe = socket.create_connection((host, port), deadline_s)
            if secure and pin is not None:
                pipe = auth.client_tls().wrap_socket(pipe)
                auth.check_pin(pipe.getpeercert(binary_form=True), pin)
            address = f"ws://{parts.netloc}"  # TLS is done: websockets must not wrap the socket again
            self._connection = connect(
                address,
                sock=pipe,
                additional_headers=headers,
                compression=None,
                max_size=MAX_BYTES,
                open_timeout=deadline_s,
                user_agent_header=None,
            )
        except (OSError, InvalidHandshake, EOFError) as error:
            raise GrasplineError(f"no connection to {url}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """One request and its answer. Raises RefusedError with the server's code, GrasplineError when it is gone."""
        try:
            self._connection.send(encode({"type": kind, **fields}))
            data = self._connection.recv(self._deadline_s)
        except (ConnectionClosed, TimeoutError) as error:
            raise GrasplineError(f"no answer to '{kind}': {error}") from error
        answer = decode(data if isinstance(data, bytes) else b"")
        if answer.get("type") == "error":
            raise RefusedError(f"{answer.get('code')}: {answer.get('detail')}")
        return answer

    def sync(self, times: int = 5) -> float:
        """Asks for the daemon's time; returns the offset to add to ours [s]."""
        for _ in range(times):
            sent_s = self._clock()
            theirs_s = float(self.ask("clock")["now_s"])
            self.offset.add(sent_s, theirs_s, self._clock())
        return self.offset.offset_s

    def submit(self, chunk: Chunk, *, arm: str | None = None) -> dict[str, Any]:
        """Sends a chunk whose times are on our clock; `sync` first."""
        offset_s = self.offset.offset_s
        until_s = None if chunk.valid_until_s == float("inf") else chunk.valid_until_s + offset_s
        return self.ask(
            "chunk",
            session=chunk.session,
            seq=chunk.seq,
            t_obs_s=chunk.t_obs_s + offset_s,
            dt_s=chunk.dt_s,
            q_HN=chunk.q_HN,
            gripper_H=chunk.gripper_H,
            valid_until_s=until_s,
            arm=arm,
        )
