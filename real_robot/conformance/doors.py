"""Real sockets on a bench: the robot server, the operator's page, and who comes to them.

What is special: the bench's time is virtual and stands still while a client waits for its answer. Sockets, threads and
TLS are real, and yet a run is the same every time.
"""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from real_robot.conformance.bench import EVERY, Bench, expect
from real_robot.daemon import Daemon
from real_robot.dash.app import Dashboard
from real_robot.serve.client import RobotClient
from real_robot.serve.server import RobotServer

BEAT_EVERY = 10  # ticks; a lease lives for 30
PATIENCE_S = 10.0


@contextmanager
def served(daemon: Daemon, **options: Any) -> Iterator[RobotServer]:
    """The daemon behind a socket, in a thread with its own event loop."""
    server = RobotServer(daemon, {name: side.arm.spec for name, side in daemon.sides.items()}, port=0, **options)
    loop, ready, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="server")
    thread.start()
    try:
        expect(ready.wait(PATIENCE_S), "the server did not start")
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE_S)
        loop.close()


@contextmanager
def dashboard(daemon: Daemon, **options: Any) -> Iterator[Dashboard]:
    """The daemon's page."""
    specs = {name: side.arm.spec for name, side in daemon.sides.items()}
    with Dashboard(daemon, specs, port=0, **options) as dash:
        yield dash


class RemotePolicy:
    """Drives a bench through a connection: lease, heartbeats, chunks. The bench itself holds no token."""

    def __init__(self, bench: Bench, client: RobotClient) -> None:
        self.bench, self.client, self._tick = bench, client, 0
        client.sync(1)
        self.generation = int(client.ask("lease", client="policy")["generation"])
        client.ask("activate", session=bench.session, align=False)
        bench.begin()

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.bench.daemon.dt_s)):
            if self._tick % EVERY == 0 and self.bench.playing:
                answer = self.client.submit(self.bench.chunk())
                expect(bool(answer["accepted"]), f"a good chunk was refused: {answer}")
            elif self._tick % BEAT_EVERY == 0:
                self.client.ask("heartbeat")
            self.bench.tick()
            self._tick += 1


class Tab:
    """A browser's tab without a browser: cookie, CSRF token, Origin."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url, self.cookie, self.csrf = url, "", ""
        if token is not None:
            self.ask("POST", "/login", {"token": token})
        _, body = self.ask("GET", "/session")
        if body.get("again"):
            _, body = self.ask("GET", "/session")
        self.csrf = str(body.get("csrf", ""))

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Status and answer of a request."""
        headers = {"Origin": self.url, "X-CSRF-Token": self.csrf, "Cookie": self.cookie}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=PATIENCE_S)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.cookie = (answer.headers.get("Set-Cookie") or self.cookie).split(";")[0]
            text = answer.read().decode()
        return answer.status or 0, json.loads(text) if text.startswith("{") else {}

    def live(self) -> ClientConnection:
        """The page's WebSocket, its first message sent."""
        socket = connect(
            self.url.replace("http", "ws") + "/live",
            origin=Origin(self.url),
            additional_headers={"Cookie": self.cookie},
            proxy=None,
        )
        socket.send(json.dumps({"csrf": self.csrf}))
        return socket
