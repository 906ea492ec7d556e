"""A policy on another machine, as a Policy: whatever evaluates or drives a robot can use a served one by its URL.

Speaks to our server (which says what it serves) and to any server of openpi's protocol (which does not, so `spec` must
be given). Special: an answer is believed only after its shape and its numbers were checked, a lost connection is
opened again once, and a server that comes back with another policy is refused.
"""

import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from vla.core.errors import CorruptFileError, GrasplineError, SpecMismatchError
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation
from vla.core.wire import MAX_BYTES, decode_chunk
from vla.rollout import native, openpi
from vla.rollout.native import Description
from vla.rollout.openpi import Fields


class RemotePolicy:
    """Asks a server for chunks, one observation after the other, over one connection. A context manager.

    Attributes:
        spec, horizon, cameras: as every Policy has them.
        native: the server is ours; otherwise it speaks openpi's messages.

    Args:
        url: ws://host:port or wss://host:port.
        spec: the embodiment. Our server tells its own, which must then be the same; openpi's does not.
        cameras: those that are sent to openpi's server; the embodiment's when None. Ours tells which it wants.
        horizon: actions of a chunk that are used; None finds out with one request, of zeros.
        fields: names in openpi's requests; `Fields.default` when None.
        token: shown as openpi's client does it (`Authorization: Api-Key ...`), which our server understands.
        ca: certificates to trust with wss (PEM file); the system's when None.
        timeout_s: for connecting, and for each answer.

    Raises:
        GrasplineError: cannot connect, or something needed was not given.
        SpecMismatchError: the server's embodiment is not `spec`.
    """

    def __init__(
        self,
        url: str,
        *,
        spec: Embodiment | None = None,
        cameras: Sequence[str] | None = None,
        horizon: int | None = None,
        fields: Fields | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        if not url.startswith(("ws://", "wss://")):
            raise GrasplineError(f"url '{url}': expected ws://host:port or wss://host:port")
        self.url, self._token, self._timeout_s = url, token, timeout_s
        self._tls = _trusting(ca) if url.startswith("wss://") else None
        self._connection, described = self._connect()
        self._described = described
        self.native = described is not None
        if described is not None:
            if spec is not None:
                described.spec.check_same(spec, here="the served policy", there="this side")
            self.spec, self.cameras = described.spec, described.cameras
            self._fields = Fields(images={})
            self.horizon = self._shorter(horizon, described.horizon)
        elif spec is None:
            self.close()
            raise GrasplineError(f"{url}: the server does not tell its embodiment (it is not graspline's): give spec")
        else:
            self.spec, self.cameras = spec, tuple(spec.camera_names if cameras is None else cameras)
            self._fields = fields or Fields.default(spec)
            self.horizon = horizon or len(self._actions(spec.zeros("find out the horizon"), 0))

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation. The seed reaches the policy if the server is ours; openpi's draws as it likes.

        Raises:
            SpecMismatchError: an observation or an answer does not fit the embodiment.
            NonFiniteError: the state or an answer holds NaN or infinity.
            CorruptFileError: an answer is malformed.
            GrasplineError: the server refused, gave no answer in time, or cannot be reached.
        """
        if len(observations) != len(seeds):
            raise ValueError(f"seeds: {len(seeds)} for {len(observations)} observations, expected one each")
        for observation in observations:
            self.spec.validate(observation, self.cameras)
        return [self._chunk(observation, seed) for observation, seed in zip(observations, seeds)]

    def close(self) -> None:
        """Hangs up. Asking again connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _shorter(self, wanted: int | None, served: int) -> int:
        if wanted is not None and not 1 <= wanted <= served:
            raise GrasplineError(f"horizon={wanted}: {self.url} serves chunks of {served} actions")
        return wanted or served

    def _chunk(self, observation: Observation, seed: int) -> ActionChunk:
        actions_hA = self._actions(observation, seed)
        if len(actions_hA) < self.horizon:
            raise SpecMismatchError(f"{self.url}: a chunk of {len(actions_hA)} actions, expected {self.horizon}")
        return ActionChunk(actions_HA=actions_hA[: self.horizon], start_s=observation.time_s, dt_s=self.spec.dt_s)

    def _actions(self, observation: Observation, seed: int) -> Float:
        """The server's actions (h, A), however many it sends."""
        if not self.native:
            request = openpi.encode_request(observation, self.cameras, self._fields)
            return openpi.decode_answer(self._ask(request), self.spec.action_dim)
        seen = replace(observation, images={camera: observation.images[camera] for camera in self.cameras})
        actions_hA = decode_chunk(self._ask(native.encode_request(seen, seed))).actions_HA
        if actions_hA.shape[1] != self.spec.action_dim:
            raise SpecMismatchError(f"actions have shape {actions_hA.shape}, expected (h, {self.spec.action_dim})")
        return actions_hA

    def _ask(self, request: bytes) -> bytes:
        """The answer to a request. A connection found dead is opened again once and the request repeated."""
        try:
            answer = self._exchange(request)
        except ConnectionClosed:
            self._connection = None
            try:
                answer = self._exchange(request)
            except ConnectionClosed as error:
                self._connection = None
                raise GrasplineError(f"{self.url}: the server closed the connection twice: {error}") from error
        if isinstance(answer, str):
            raise GrasplineError(f"{self.url}: the server said: {self._words(answer)}")
        return answer

    def _exchange(self, request: bytes) -> str | bytes:
        if self._connection is None:
            self._connection, described = self._connect()
            if described != self._described:
                self.close()
                raise SpecMismatchError(f"{self.url}: the server came back with another policy")
        try:
            self._connection.send(request)
            return self._connection.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            self.close()  # an answer that still comes would be taken for the next one's
            raise GrasplineError(f"{self.url}: no answer within {self._timeout_s:g} s") from error

    def _connect(self) -> tuple[ClientConnection, Description | None]:
        """A connection, and what the server says of itself if it is ours."""
        try:
            connection = connect(
                self.url,
                ssl=self._tls,
                compression=None,
                max_size=MAX_BYTES,
                open_timeout=self._timeout_s,
                close_timeout=1,
                proxy=None,
                additional_headers={"Authorization": f"Api-Key {self._token}"} if self._token else None,
            )
            greeting = connection.recv(timeout=self._timeout_s)
        except InvalidStatus as error:
            body = error.response.body.decode("utf-8", "replace").strip()
            raise GrasplineError(f"{self.url}: refused with {error.response.status_code}: {body}") from error
        except (OSError, WebSocketException) as error:
            raise GrasplineError(f"{self.url}: cannot connect: {str(error) or type(error).__name__}") from error
        try:
            if isinstance(greeting, str):
                raise CorruptFileError(f"it greets with text: {_last_line(greeting)}")
            return connection, native.read_description(openpi.unpack(greeting))
        except CorruptFileError as error:
            connection.close()
            raise GrasplineError(f"{self.url}: neither graspline nor openpi: {error}") from error

    def _words(self, text: str) -> str:
        """One line of an error: ours has a code and a message, openpi's is a traceback."""
        if not self.native:
            return _last_line(text)
        refusal = native.decode_refusal(text)
        return f"{refusal.code}: {refusal}"


def _trusting(ca: str | Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise GrasplineError(f"ca={ca}: {error}") from error


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:500]
