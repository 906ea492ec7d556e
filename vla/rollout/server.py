"""A policy behind a WebSocket: our own messages (native.py) and openpi's (openpi.py) on one port, many clients.

The two are told apart by a message's first bytes. Special: nothing a client sends can stop the server. A request that
is malformed, does not fit the embodiment or comes too late is answered with a text frame that says why, and the
connection stays open (openpi's client raises RuntimeError with that text and may ask again). Only a message above
`max_message_bytes` closes its connection, with code 1009. `GET /healthz` answers OK, `GET /metrics` JSON.

Loopback by default. Any other host needs a token (`Authorization: Bearer ...`, or `Api-Key ...` as openpi's client
sends it) unless `insecure`. Browsers are refused: a page on the web must not reach a robot through its visitor.
"""

import hmac
import http
import ipaddress
import json
import ssl
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch.nn import functional
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vla.core.errors import GrasplineError, MissingAssetError, unknown_name
from vla.core.protocols import Policy
from vla.core.spec import Camera
from vla.core.types import Image, Observation
from vla.core.wire import encode_chunk
from vla.rollout import native, openpi
from vla.rollout.batching import Answer, Batcher, Metrics
from vla.rollout.native import RefusalError
from vla.rollout.openpi import Fields

MAX_INSTRUCTION = 4096  # characters
MAX_WORDS = 500  # characters of a refusal, which may quote the request
TRY_AGAIN_LATER = 1013


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may ask for. See configs/serve.yaml for the words, `Batcher` for the last four."""

    max_message_bytes: int = 8 * 2**20
    max_clients: int = 32
    max_batch: int = 16
    max_queue: int = 64
    max_wait_s: float = 0.002
    deadline_s: float = 1.0


class PolicyServer:
    """Serves a policy while the `async with` block runs.

    Args:
        policy: what is served.
        host: address to listen on.
        port: 0 takes any free one; see `url`.
        limits: see the class.
        fields: names in openpi's requests; `Fields.default` when None.
        resize: scale pictures of another size to the embodiment's, if their proportions are the same.
        token: what clients must show; None admits everybody.
        tls: certificate and key (`load_tls`); None serves in the clear.
        insecure: listen beyond loopback without a token.

    Raises:
        GrasplineError: a host beyond loopback without a token; on entering, an address that cannot be listened on.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        limits: Limits | None = None,
        fields: Fields | None = None,
        resize: bool = False,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
    ) -> None:
        if token is None and not insecure and not _is_loopback(host):
            raise GrasplineError(
                f"host={host} can be reached from other machines: give clients a token, or say insecure=true"
            )
        self._policy, self._host, self._port = policy, host, port
        self._limits = limits or Limits()
        self._fields = fields or Fields.default(policy.spec)
        self._cameras = {camera.name: camera for camera in policy.spec.cameras}
        self._resize, self._token, self._tls = resize, token, tls
        self._greeting = openpi.pack({**native.describe(policy), "fields": self._fields.to_dict()})
        self._clients = 0
        self.metrics = Metrics()

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'wss' if self._tls else 'ws'}://{host}:{self._port}"

    async def __aenter__(self) -> Self:
        limits = self._limits
        async with AsyncExitStack() as stack:
            self._batcher = Batcher(
                self._policy,
                metrics=self.metrics,
                max_batch=limits.max_batch,
                max_queue=limits.max_queue,
                max_wait_s=limits.max_wait_s,
                deadline_s=limits.deadline_s,
            )
            server = await stack.enter_async_context(await self._listen())
            await stack.enter_async_context(self._batcher)  # left first: what was asked is answered, then all close
            self._port = server.sockets[0].getsockname()[1]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _listen(self) -> Server:
        try:
            return await serve(
                self._talk,
                self._host,
                self._port,
                ssl=self._tls,
                origins=[None],  # browsers send an origin, robots do not
                process_request=self._admit,
                compression=None,
                max_size=self._limits.max_message_bytes,
                max_queue=2,
                server_header=None,
            )
        except OSError as error:
            raise GrasplineError(f"cannot listen on {self._host}:{self._port}: {error.strerror or error}") from error

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Before a WebSocket opens: answers plain HTTP, refuses strangers. None lets the client in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not self._shows_token(request):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer ...\n")
        if path == "/metrics":
            content = {"clients": self._clients, **self.metrics.to_dict()}
            response = connection.respond(http.HTTPStatus.OK, json.dumps(content) + "\n")
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
            return response
        return None

    def _shows_token(self, request: Request) -> bool:
        if self._token is None:
            return True
        scheme, _, shown = " ".join(request.headers.get_all("Authorization")).partition(" ")
        right = hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self._token.encode())
        return right and scheme in ("Bearer", "Api-Key")

    async def _talk(self, connection: ServerConnection) -> None:
        """One client, from greeting to goodbye: one request at a time."""
        if self._clients >= self._limits.max_clients:
            await connection.close(TRY_AGAIN_LATER, f"busy: {self._clients} clients already (max_clients)")
            return
        self._clients += 1
        try:
            await connection.send(self._greeting)
            async for message in connection:
                await connection.send(await self._answer(message))
        except ConnectionClosed:
            pass  # gone without a goodbye, or while we answered
        finally:
            self._clients -= 1

    async def _answer(self, message: str | bytes) -> str | bytes:
        """The chunk for a request, or the words that explain why there is none."""
        began_s = time.monotonic()
        ours = message[:2] == native.OURS
        self.metrics.counts["requests"] += 1
        try:
            observation, seed = self._read(message)
            answer = await self._batcher.ask(observation, seed)
        except RefusalError as refusal:
            self.metrics.counts[refusal.code] += 1
            return native.encode_refusal(refusal) if ours else f"{refusal.code}: {refusal}"
        self.metrics.counts["answered"] += 1
        self.metrics.times_s.append((answer.queue_s, answer.compute_s, time.monotonic() - began_s))
        return encode_chunk(answer.chunk) if ours else openpi.encode_answer(answer.chunk, _timing_ms(answer))

    def _read(self, message: str | bytes) -> tuple[Observation, int]:
        """The observation and seed of a request, checked against the embodiment. Raises RefusalError."""
        try:
            if isinstance(message, str):
                raise GrasplineError("message: text, expected bytes")
            if message[:2] == native.OURS:
                observation, seed = native.decode_request(message)
            else:
                observation, seed = openpi.decode_request(message, self._policy.cameras, self._fields)
            for name in observation.images.keys() - self._cameras.keys():
                raise unknown_name("camera", name, self._cameras)
            if len(observation.instruction) > MAX_INSTRUCTION:
                raise GrasplineError(f"an instruction of more than {MAX_INSTRUCTION} characters")
            if self._resize:
                observation = _scaled(observation, self._cameras)
            self._policy.spec.validate(observation, self._policy.cameras)
        except GrasplineError as error:
            raise RefusalError("bad_request", str(error)[:MAX_WORDS]) from error
        return observation, seed


def load_tls(certificate: str | Path, key: str | Path) -> ssl.SSLContext:
    """The context for a server that has this certificate chain and key (PEM files).

    Raises:
        MissingAssetError: a file is not there.
        GrasplineError: not a certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise GrasplineError(f"cert={certificate}, key={key}: {error.reason or error}") from error
    except OSError as error:
        raise MissingAssetError(f"cert={certificate}, key={key}: {error.strerror}") from error
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _timing_ms(answer: Answer) -> dict[str, float]:
    return {"infer_ms": answer.compute_s * 1e3, "queue_ms": answer.queue_s * 1e3}


def _scaled(observation: Observation, cameras: Mapping[str, Camera]) -> Observation:
    """The observation with pictures of the cameras' sizes. Raises GrasplineError when that would distort one."""
    images = {name: _resized(name, image, cameras[name]) for name, image in observation.images.items()}
    return replace(observation, images=images)


def _resized(name: str, image: Image, camera: Camera) -> Image:
    height, width, _ = image.shape
    if (height, width) == (camera.height, camera.width):
        return image
    if height * camera.width != width * camera.height:
        raise GrasplineError(
            f"image '{name}' is {height}x{width}: not the proportions of {camera.height}x{camera.width}"
        )
    pixels_1CHW = torch.from_numpy(np.moveaxis(image, 2, 0)[None].astype(np.float32))
    size = (camera.height, camera.width)
    scaled_1CHW = functional.interpolate(pixels_1CHW, size, mode="bilinear", antialias=True)
    scaled_CHW = scaled_1CHW[0].round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(np.moveaxis(scaled_CHW, 0, 2))
