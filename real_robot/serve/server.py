"""A cell of arms behind a WebSocket: one controller, any number of observers, and a stop that anybody may press.

What is special: nothing that a client sends can stop the server or move an arm past the rules of the daemon. Malformed
bytes are answered with a code and end the connection; tracebacks stay in the log. A lease belongs to its connection
and dies with it, its token never leaves this process. An e-stop is passed on in the event loop itself; all other calls
wait in threads of their own, so it never queues behind them.

Loopback alone needs no token; see `auth.require_safe_host`. With a token, a local client that shows none may stop the
arms and nothing else. Browsers are refused: they have the dashboard.
"""

import asyncio
import contextlib
import http
import logging
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from real_robot.cameras.frames import Camera
from real_robot.core.faults import RefusedError
from real_robot.core.leases import Lease
from real_robot.core.types import ArmSpec, Chunk
from real_robot.serve import auth
from real_robot.serve.cell import Cell, cause, shown
from real_robot.serve.messages import BadMessageError, decode_request, encode
from vla.core.errors import GrasplineError, unknown_name

MAX_WORDS = 500  # characters of an answer's detail
POLICY_VIOLATION, TRY_AGAIN_LATER = 1008, 1013
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may ask for.

    max_message_bytes  of a request: a chunk is a few kilobytes, pictures go the other way
    idle_s             a client that says nothing for so long is disconnected
    deadline_s         of the cell's answer
    """

    max_message_bytes: int = 2**20
    max_clients: int = 16
    idle_s: float = 10.0
    deadline_s: float = 1.0


@dataclass(kw_only=True)
class _Client:
    """One connection. `stop_only`: it came from this machine without the token."""

    name: str
    stop_only: bool
    lease: Lease | None = None


class RobotServer:
    """Serves a cell while the `async with` block runs.

    Args:
        cell: the daemon.
        specs: of its arms, by name.
        cameras: by name.
        host: address to listen on.
        port: 0 takes any free one; see `url`.
        token: what clients show (`Authorization: Bearer ...`); None admits everybody who can reach the address.
        tls: `auth.server_tls`.
        insecure_lan: listen beyond loopback without token or TLS.
        limits: see the class.

    Raises:
        GrasplineError: a host beyond loopback without token and TLS; on entering, an address already in use.
    """

    def __init__(
        self,
        cell: Cell,
        specs: Mapping[str, ArmSpec],
        *,
        cameras: Mapping[str, Camera] | None = None,
        host: str = "127.0.0.1",
        port: int = 8100,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        insecure_lan: bool = False,
        limits: Limits | None = None,
    ) -> None:
        auth.require_safe_host(host, token=token, tls=tls, insecure_lan=insecure_lan)
        self._cell, self._specs, self._cameras = cell, specs, cameras or {}
        self._host, self._port, self._token, self._tls = host, port, token, tls
        self._limits = limits or Limits()
        self._clients = 0

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'wss' if self._tls else 'ws'}://{host}:{self._port}"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._threads = stack.enter_context(ThreadPoolExecutor(8, "robot-server"))
            try:
                server = await stack.enter_async_context(
                    serve(
                        self._talk,
                        self._host,
                        self._port,
                        ssl=self._tls,
                        origins=[None],  # browsers send an origin, programs do not
                        process_request=self._admit,
                        compression=None,
                        max_size=self._limits.max_message_bytes,
                        max_queue=2,
                        open_timeout=5.0,
                        server_header=None,
                    )
                )
            except OSError as error:
                raise GrasplineError(
                    f"cannot listen on {self._host}:{self._port}: {error.strerror or error}"
                ) from error
            self._port = server.sockets[0].getsockname()[1]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before a WebSocket opens: strangers are refused, local ones without the token may only stop."""
        local = auth.is_loopback(str(connection.remote_address[0]))
        if self._shows_token(request) or (local and "Authorization" not in request.headers):
            return None
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer ...\n")

    def _shows_token(self, request: Request) -> bool:
        scheme, _, token = " ".join(request.headers.get_all("Authorization")).partition(" ")
        return self._token is None or (scheme == "Bearer" and auth.same_token(token, self._token))

    async def _talk(self, connection: ServerConnection) -> None:
        """One client, one request at a time, until it leaves, is silent for too long or sends garbage."""
        if self._clients >= self._limits.max_clients:
            await connection.close(TRY_AGAIN_LATER, f"{self._clients} clients already")
            return
        self._clients += 1
        address = ":".join(map(str, connection.remote_address[:2]))
        assert connection.request is not None
        client = _Client(name=address, stop_only=not self._shows_token(connection.request))
        try:
            while True:
                data = await asyncio.wait_for(connection.recv(), self._limits.idle_s)
                answer, over = await self._answer(client, data)
                await asyncio.wait_for(connection.send(encode(answer)), self._limits.idle_s)
                if over:
                    await connection.close(POLICY_VIOLATION, "bad message")
                    return
        except TimeoutError:
            await connection.close(POLICY_VIOLATION, f"silent for {self._limits.idle_s} s")
        except ConnectionClosed:
            pass
        finally:
            self._clients -= 1
            if client.lease is not None:
                with contextlib.suppress(RefusedError):  # it had run out, somebody else drives
                    self._cell.release(client.lease.token)

    async def _answer(self, client: _Client, data: bytes | str) -> tuple[dict[str, Any], bool]:
        """The answer to a request, and whether the connection has to end."""
        try:
            request = decode_request(data)
            if request["type"] == "estop":
                self._cell.estop(f"client {client.name}")
                return {"type": "estop", "now_s": self._cell.clock.now()}, False
            if client.stop_only:
                return _refusal("unauthorised", "without the token a local client may only send 'estop'"), False
            call = asyncio.get_running_loop().run_in_executor(self._threads, self._call, client, request)
            return {"type": request["type"], **await asyncio.wait_for(call, self._limits.deadline_s)}, False
        except BadMessageError as error:
            return _refusal("bad_message", str(error)), True
        except RefusedError as error:
            return _refusal("refused", str(error)), False
        except GrasplineError as error:
            return _refusal("bad_request", str(error)), False
        except TimeoutError:
            log.error("no answer within %s s to %s", self._limits.deadline_s, client.name)
            return _refusal("deadline", "the robot did not answer in time"), False

    def _call(self, client: _Client, request: dict[str, Any]) -> dict[str, Any]:
        """In a thread: what a request does."""
        match request["type"]:
            case "clock":
                return {"now_s": self._cell.clock.now()}
            case "state":
                return {**shown(self._cell, self._specs), "cause": cause(self._cell)}
            case "frame":
                return self._frame(request["camera"])
            case "lease":
                client.lease = self._cell.lease(request["client"][:80])
                return {"generation": client.lease.generation}
        return self._drive(client, request)

    def _drive(self, client: _Client, request: dict[str, Any]) -> dict[str, Any]:
        """What only the holder of the lease may do."""
        if client.lease is None:
            raise RefusedError(f"'{request['type']}' is the controller's: acquire the lease first")
        token = client.lease.token
        self._cell.heartbeat(token)  # raises for a lease that ran out or went to somebody else
        match request["type"]:
            case "heartbeat":
                pass
            case "release":
                self._cell.release(token)
                client.lease = None
            case "activate":
                self._cell.activate(token, request["session"], arm=request["arm"], align=request["align"])
            case "pause":
                self._cell.pause(request["reason"][:MAX_WORDS])
            case "reset":
                self._reset(request["cause"])
            case "chunk":
                return self._submit(_chunk(request), token, request["arm"])
        return {}

    def _reset(self, acknowledged: str) -> None:
        present = cause(self._cell)
        if acknowledged != present:
            raise RefusedError(f"a reset names the cause that it acknowledges, now: {present or 'none'}")
        self._cell.reset()

    def _submit(self, chunk: Chunk, token: str, arm: str | None) -> dict[str, Any]:
        admitted = self._cell.submit(chunk, token, arm=arm)
        return {
            "accepted": admitted.chunk is not None,
            "refusal": str(admitted.refusal or ""),
            "detail": admitted.detail[:MAX_WORDS],
            "clamped": int(admitted.clamped),
        }

    def _frame(self, name: str) -> dict[str, Any]:
        if name not in self._cameras:
            raise unknown_name("camera", name[:80], self._cameras)
        frame = self._cameras[name].latest()
        if frame is None:
            raise RefusedError(f"camera '{name}' has no frame yet")
        return {"seq": frame.seq, "time_s": frame.time_s, "image": frame.image}


def _chunk(request: dict[str, Any]) -> Chunk:
    q_HN, gripper_H = request["q_HN"], request["gripper_H"]
    if q_HN.ndim != 2 or not np.issubdtype(q_HN.dtype, np.floating):
        raise GrasplineError(f"q_HN is {q_HN.dtype} of shape {q_HN.shape}, expected floats (H, N)")
    if gripper_H is not None and (gripper_H.shape != q_HN.shape[:1] or not np.issubdtype(gripper_H.dtype, np.floating)):
        raise GrasplineError(f"gripper_H is {gripper_H.dtype} of shape {gripper_H.shape}, expected floats (H,)")
    until_s = request["valid_until_s"]
    return Chunk(
        session=request["session"],
        seq=request["seq"],
        t_obs_s=float(request["t_obs_s"]),
        dt_s=float(request["dt_s"]),
        q_HN=q_HN,
        gripper_H=gripper_H,
        valid_until_s=np.inf if until_s is None else float(until_s),
    )


def _refusal(code: str, detail: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "detail": detail[:MAX_WORDS]}
