"""The operator's dashboard: e-stop by HTTP and WebSocket, state of the arms, deadman, reset; films on a second port.

    GET / page        POST /login   POST /estop   POST /reset   GET /session   WS /live   (films: dash/video.py)

What is special: the e-stop is one append to the cell's queue inside the event loop. Everything that may wait (the
state, a reset, a pause) runs in threads, and films have a server of their own. One press may come by both ways: it
carries an id and counts once, since a second press lets the torque go. From this machine a stop needs no login.
"""

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from real_robot.cameras.frames import Camera
from real_robot.core.types import ArmSpec
from real_robot.dash.sessions import COOKIE, Sessions
from real_robot.dash.video import video_app
from real_robot.serve import auth
from real_robot.serve.cell import Cell, cause, shown
from vla.core.errors import GrasplineError

STATE_S = 0.1  # between two states on the page
DEADMAN_S = 0.4  # beats come every 200 ms; with the stop itself the arm rests within 500 ms
MAX_BODY = 4096
MAX_MESSAGE = 4096
STARTED_S = 10.0


class Dashboard:
    """Serves the page in threads of its own while the `with` block runs.

    Args:
        cell: the daemon.
        specs: of its arms, by name.
        cameras: by name.
        metrics: numbers for the page by their label, e.g. {"starved [ms]": 0.0}; called in a thread ten times a second.
        host: address to listen on.
        port: of the page; 0 takes any free one, see `url`. Films are on a port that the system chooses.
        token: for the login; None lets everybody in who can reach the address.
        certificate, key: PEM files; None serves in the clear.
        insecure_lan: listen beyond loopback without token or TLS.
        hosts: further names of this machine in the address bar.

    Raises:
        GrasplineError: a host beyond loopback without token and TLS, or an address in use.
    """

    def __init__(
        self,
        cell: Cell,
        specs: Mapping[str, ArmSpec],
        *,
        cameras: Mapping[str, Camera] | None = None,
        metrics: Callable[[], Mapping[str, float]] = dict,
        host: str = "127.0.0.1",
        port: int = 8200,
        token: str | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        insecure_lan: bool = False,
        hosts: frozenset[str] = frozenset(),
    ) -> None:
        tls = auth.server_tls(certificate, key) if certificate is not None and key is not None else None
        auth.require_safe_host(host, token=token, tls=tls, insecure_lan=insecure_lan)
        self._cell, self._specs, self._cameras, self._metrics = cell, specs, cameras or {}, metrics
        self._host, self._port, self._tls = host, port, tls
        self._files = (certificate, key)
        self._sessions = Sessions(token, frozenset({host, "localhost", "127.0.0.1", "::1"}) | hosts)
        self._presses: deque[str] = deque(maxlen=256)
        self._page = resources.files("real_robot.dash").joinpath("page.html").read_text("utf-8")
        self._servers: list[uvicorn.Server] = []
        self._threads: list[threading.Thread] = []
        self._video_port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def __enter__(self) -> Self:
        video = video_app(self._cameras, lambda r: self._sessions.at_home(r) and self._sessions.csrf(r) is not None)
        self._video_port = self._serve(video, 0)
        self._port = self._serve(self._app(), self._port)
        until_s = time.monotonic() + STARTED_S
        while not all(server.started for server in self._servers) and time.monotonic() < until_s:
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.should_exit = True
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _serve(self, app: ASGIApp, port: int) -> int:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, port))
        except OSError as error:
            listener.close()
            raise GrasplineError(f"cannot listen on {self._host}:{port}: {error.strerror}") from error
        certificate, key = self._files
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            lifespan="off",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="dashboard", daemon=True)
        thread.start()
        self._servers.append(server)
        self._threads.append(thread)
        return int(listener.getsockname()[1])

    def _app(self) -> Starlette:
        routes = [
            Route("/", self._guarded(self._index)),
            Route("/session", self._guarded(self._session)),
            Route("/login", self._guarded(self._login), methods=["POST"]),
            Route("/estop", self._guarded(self._estop), methods=["POST"]),
            Route("/reset", self._guarded(self._reset), methods=["POST"]),
            WebSocketRoute("/live", self._live),
        ]
        return Starlette(routes=routes)

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """What holds for every request: our name, our origin."""

        async def guarded(request: Request) -> Response:
            if not self._sessions.at_home(request):
                return PlainTextResponse("this name is not one of this dashboard's\n", 403)
            if not self._sessions.from_here(request):
                return PlainTextResponse("sent by another site's page\n", 403)
            return await handler(request)

        return guarded

    async def _index(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        films = f"{request.url.scheme}://{request.url.hostname}:{self._video_port}"
        rules = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src {films} data:; "
        rules += "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        headers = {
            "Content-Security-Policy": rules,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(self._page.replace("@nonce@", nonce), headers=headers)

    async def _session(self, request: Request) -> Response:
        """What a page needs after its start. Without a token every page gets a session."""
        if self._sessions.csrf(request) is None and not self._sessions.open:
            return JSONResponse({"error": "log in"}, 401)
        if self._sessions.csrf(request) is not None:
            return JSONResponse(self._welcome(self._sessions.csrf(request)))
        return self._opened("")

    async def _login(self, request: Request) -> Response:
        body = await _body(request)
        return self._opened(str(body.get("token", "")))

    def _opened(self, token: str) -> Response:
        session = self._sessions.login(token)
        if session is None:
            return JSONResponse({"error": "wrong token"}, 401)
        response = JSONResponse({"ok": True, "again": True})
        response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=self._tls is not None)
        return response

    def _welcome(self, csrf: str | None) -> dict[str, Any]:
        return {"csrf": csrf, "cameras": sorted(self._cameras), "video_port": self._video_port}

    async def _estop(self, request: Request) -> Response:
        local = request.client is not None and auth.is_loopback(request.client.host)
        if not (local or self._changes(request)):
            return JSONResponse({"error": "log in"}, 401)
        self._press(request.query_params.get("press", ""), request)
        return JSONResponse({"now_s": self._cell.clock.now()})

    def _press(self, press: str, connection: HTTPConnection) -> None:
        """Stops; a press that came the other way already counts once."""
        if press and press in self._presses:
            return
        self._presses.append(press[:64])
        self._cell.estop(f"dashboard at {connection.client.host if connection.client else 'unknown'}")

    async def _reset(self, request: Request) -> Response:
        if not self._changes(request):
            return JSONResponse({"error": "log in"}, 401)
        acknowledged = str((await _body(request)).get("cause", ""))
        try:
            await asyncio.to_thread(self._reset_now, acknowledged)
        except GrasplineError as error:
            return JSONResponse({"error": str(error)}, 409)
        return JSONResponse({"ok": True})

    def _reset_now(self, acknowledged: str) -> None:
        present = cause(self._cell)
        if acknowledged != present:
            raise GrasplineError(f"the cause has changed, look again: {present or 'none'}")
        self._cell.reset()

    def _changes(self, request: Request) -> bool:
        """The request may change something: it carries its session's CSRF token."""
        return self._sessions.shows_csrf(request, request.headers.get("x-csrf-token", ""))

    async def _live(self, websocket: WebSocket) -> None:
        """State out, presses and beats in. The first message shows the CSRF token."""
        if not (self._sessions.at_home(websocket) and self._sessions.from_here(websocket, needed=True)):
            await websocket.close(1008)
            return
        await websocket.accept()
        try:
            first = _parsed(await asyncio.wait_for(websocket.receive_text(), 5.0))
        except (TimeoutError, WebSocketDisconnect, KeyError):
            return
        if not self._sessions.shows_csrf(websocket, str(first.get("csrf", ""))):
            await websocket.close(1008)
            return
        sending = asyncio.create_task(self._send_states(websocket))
        try:
            await self._listen(websocket)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending

    async def _send_states(self, websocket: WebSocket) -> None:
        while True:
            await websocket.send_text(await asyncio.to_thread(self._state))
            await asyncio.sleep(STATE_S)

    def _state(self) -> str:
        state = {**shown(self._cell, self._specs), "cause": cause(self._cell), "metrics": dict(self._metrics())}
        return json.dumps(state)

    async def _listen(self, websocket: WebSocket) -> None:
        """Reads until the page is gone. With the deadman on, silence pauses the arms."""
        deadman = False
        while True:
            try:
                text = await asyncio.wait_for(websocket.receive_text(), DEADMAN_S if deadman else None)
            except TimeoutError:
                deadman = False
                await asyncio.to_thread(self._cell.pause, f"deadman: no beat for {1e3 * DEADMAN_S:.0f} ms")
                continue
            except (WebSocketDisconnect, KeyError):  # KeyError: a binary frame
                if deadman:
                    await asyncio.to_thread(self._cell.pause, "deadman: the page that held it is gone")
                return
            message = _parsed(text)
            if "estop" in message:
                self._press(str(message["estop"]), websocket)
                await websocket.send_text(json.dumps({"stopped": str(message["estop"])[:64]}))
            deadman = bool(message.get("deadman", deadman))


async def _body(request: Request) -> dict[str, Any]:
    """A small JSON body; empty for anything else."""
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        return {}
    return _parsed((await request.body())[:MAX_BODY].decode("utf-8", "replace"))


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
