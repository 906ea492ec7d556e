"""The dashboard's doors over real sockets: login, forged requests, presses, reset, deadman, films."""

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon
from real_robot.dash.app import Dashboard
from real_robot.dash.timing import Timing
from vla.core.errors import GrasplineError


@pytest.fixture
def start(cell: Daemon) -> Iterator[Callable[..., Dashboard]]:
    with contextlib.ExitStack() as stack:

        def begin(**options: Any) -> Dashboard:
            spec = CameraSpec(name="front", serial="f", height=48, width=64, rate_hz=30.0)
            camera = TwinCamera(spec, pattern(48, 64), clock=time.monotonic)
            camera.start()
            specs = {"arm": cell.sides["arm"].arm.spec}
            dashboard = Dashboard(cell, specs, cameras={"front": camera}, metrics=Timing(cell), port=0, **options)
            return stack.enter_context(dashboard)

        yield begin


class Page:
    """A browser's tab without a browser: cookie, CSRF token, Origin."""

    def __init__(self, dash: Dashboard, token: str | None = None) -> None:
        self.dash, self.cookie, self.csrf = dash, "", ""
        if token is not None:
            self.ask("POST", "/login", {"token": token})
        status, body = self.ask("GET", "/session")
        if body.get("again"):
            status, body = self.ask("GET", "/session")
        self.session = body if status == 200 else {}
        self.csrf = self.session.get("csrf", "")

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        sent = {"Origin": self.dash.url, "X-CSRF-Token": self.csrf, "Cookie": self.cookie}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.dash.url + path, data, sent, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            answer = error
        self.cookie = (answer.headers.get("Set-Cookie") or self.cookie).split(";")[0]
        text = answer.read().decode()
        return answer.status, json.loads(text) if text.startswith("{") else {"text": text}

    def live(self, *, csrf: str | None = None, origin: str | None = None) -> ClientConnection:
        socket = connect(
            self.dash.url.replace("http", "ws") + "/live",
            origin=origin or self.dash.url,  # type: ignore[arg-type]
            additional_headers={"Cookie": self.cookie},
            proxy=None,
        )
        socket.send(json.dumps({"csrf": self.csrf if csrf is None else csrf}))
        return socket


def wait_for(happened: Callable[[], bool], within_s: float = 5.0) -> None:
    until_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.005)


def state(cell: Daemon) -> State:
    return cell.state()["arm"].state


def torque(cell: Daemon) -> bool:
    reading = cell.state()["arm"].reading
    return reading is not None and bool(reading.torque_on_J.all())


def test_a_token_is_asked_for_and_a_wrong_one_is_refused(start: Callable[..., Dashboard]) -> None:
    dash = start(token="right")
    assert Page(dash).session == {} and Page(dash, "wrong").session == {}
    assert Page(dash, "right").session["cameras"] == ["front"]


def test_a_cookie_is_out_of_reach_of_scripts_and_other_sites(start: Callable[..., Dashboard]) -> None:
    answer = urllib.request.urlopen(start().url + "/session", timeout=5)
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie


def test_the_page_runs_only_its_own_script(start: Callable[..., Dashboard]) -> None:
    answer = urllib.request.urlopen(start().url + "/", timeout=5)
    rules, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    nonce = rules.split("nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">' in text and "@nonce@" not in text and "default-src 'none'" in rules


def test_forged_requests_are_refused(cell: Daemon, start: Callable[..., Dashboard]) -> None:
    page = Page(start())
    cell.estop("test")
    wait_for(lambda: state(cell) == State.ESTOP)
    cause = {"cause": "arm: " + cell.state()["arm"].latched}
    assert page.ask("POST", "/reset", cause, Origin="http://evil.example")[0] == 403
    assert page.ask("POST", "/reset", cause, Host="rebound.example")[0] == 403
    assert page.ask("POST", "/reset", cause, X_CSRF_Token="x")[0] == 401
    assert page.ask("POST", "/reset", cause, Cookie="graspline_session=x")[0] == 401
    assert page.ask("POST", "/reset", {"cause": "something else"})[0] == 409
    assert page.ask("GET", "/session", Host="rebound.example")[0] == 403
    assert state(cell) == State.ESTOP
    assert page.ask("POST", "/reset", cause)[0] == 200
    assert state(cell) == State.HOLD


def test_live_needs_origin_and_csrf(start: Callable[..., Dashboard]) -> None:
    page = Page(start())
    with pytest.raises(InvalidStatus):
        page.live(origin="http://evil.example")
    with page.live(csrf="x") as socket, pytest.raises(ConnectionClosed):
        socket.recv(5.0)
    with page.live() as socket:
        shown = json.loads(socket.recv(5.0))
    assert [joint["name"] for joint in shown["arms"]["arm"]["joints"]][-1] == "gripper"
    assert set(shown["metrics"]) == {"tick lateness p99 [ms]", "arm: chunk latency p95 [ms]", "arm: starved [ms]"}


def test_a_press_counts_once_however_it_comes_and_two_presses_are_two(
    cell: Daemon, start: Callable[..., Dashboard]
) -> None:
    page = Page(start())
    with page.live() as socket:
        socket.send(json.dumps({"estop": "a"}))
        page.ask("POST", "/estop?press=a")
        wait_for(lambda: state(cell) == State.ESTOP)
        time.sleep(0.1)
        assert torque(cell)
        page.ask("POST", "/estop?press=b")  # the second press lets the torque go
        wait_for(lambda: not torque(cell))


def test_from_this_machine_a_stop_needs_no_login(cell: Daemon, start: Callable[..., Dashboard]) -> None:
    dash = start(token="right")
    request = urllib.request.Request(dash.url + "/estop", method="POST")
    assert urllib.request.urlopen(request, timeout=5).status == 200
    wait_for(lambda: state(cell) == State.ESTOP)


def test_the_deadman_pauses_within_half_a_second_of_the_last_beat(
    cell: Daemon, start: Callable[..., Dashboard]
) -> None:
    page = Page(start())
    for closed in (False, True):
        token = cell.lease("policy").token
        cell.activate(token, "s", align=True)
        with page.live() as socket:
            for _ in range(4):
                socket.send(json.dumps({"deadman": True}))
                time.sleep(0.15)
            cell.heartbeat(token)
            if "overrun" in cell.state()["arm"].paused:
                pytest.skip("this machine is too busy for 100 ticks a second")
            assert not cell.state()["arm"].paused
            last_s = time.monotonic()
            if not closed:
                wait_for(lambda: "deadman" in cell.state()["arm"].paused)
                assert time.monotonic() - last_s < 0.5
        if closed:
            wait_for(lambda: "deadman" in cell.state()["arm"].paused)
            assert time.monotonic() - last_s < 0.5
        cell.release(token)


def test_films_are_on_another_port_and_need_the_session(start: Callable[..., Dashboard]) -> None:
    dash = start(token="right")
    page = Page(dash, "right")
    port = page.session["video_port"]
    assert port != int(dash.url.rsplit(":", 1)[1])
    for cookie, path, status in (("", "front", 401), (page.cookie, "none", 404), (page.cookie, "front", 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", f"/video/{path}", headers={"Cookie": cookie})
        answer = connection.getresponse()
        assert answer.status == status
        if status == 200:
            assert b"\xff\xd8\xff" in answer.read(2000)  # a JPEG begins
        connection.close()


def test_garbage_does_not_end_the_page(cell: Daemon, start: Callable[..., Dashboard]) -> None:
    page = Page(start())
    for text in ("[]", "{", '{"deadman": {}}', "[" * 3000, "x" * 10_000):
        with page.live() as socket, contextlib.suppress(ConnectionClosed):
            socket.send(text)
            socket.recv(5.0)
    with page.live() as socket, contextlib.suppress(ConnectionClosed):
        socket.send(b"\x00")
    assert page.ask("POST", "/login", "not a map")[0] == 200  # no token is asked for here
    assert page.ask("GET", "/session")[0] == 200


def test_beyond_loopback_needs_token_and_tls(cell: Daemon, tmp_path: Path) -> None:
    with pytest.raises(GrasplineError, match="there is no TLS"):
        Dashboard(cell, {}, host="0.0.0.0", token="right")
