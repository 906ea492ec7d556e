"""The operator's page in a real browser: stops by pointer and space bar, reset, and how fast a stop is under films."""

import base64
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.conformance.bench import stored_calibration
from real_robot.core.arms import so101_spec
from real_robot.core.clock import RealClock
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon
from real_robot.dash.app import Dashboard
from real_robot.dash.timing import Timing
from real_robot.drivers.build import so101 as so101_arm
from real_robot.loop import run_loop
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
PRESSES = 220


class Browser:
    """The few words of the DevTools protocol that a test needs."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            "--window-size=1280,900",
        ]
        self._process = subprocess.Popen(
            [CHROMIUM, *options, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.errors: list[str] = []
        port_file = folder / "DevToolsActivePort"
        wait_for(lambda: port_file.exists() and len(port_file.read_text().split()) == 2, 20.0)
        port = port_file.read_text().split()[0]
        pages = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list").read())
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self._socket = connect(address, max_size=2**25, compression=None)
        self._number = 0
        self.call("Page.enable")
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(60.0))
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"])[:300])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, what: str) -> None:
        x, y = self.run(f"(() => {{ const r = document.querySelector('{what}').getBoundingClientRect();"
                        " return [r.x + r.width / 2, r.y + r.height / 2]; })()")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def space(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=" ", code="Space", text=" " if kind == "keyDown" else "")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)


def wait_for(happened: Any, within_s: float = 8.0) -> None:
    until_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cell() -> Iterator[Daemon]:
    clock = RealClock()
    twin = so101(clock=clock.now)
    link = VirtualLink(twin, sleep_until=clock.sleep_until)
    calibration = stored_calibration(twin, so101_spec(normal_speed=True))
    arm = so101_arm(calibration=calibration, open_port=link.open, clock=clock, normal_speed=True)
    daemon = Daemon({"arm": arm}, clock=clock)
    daemon.connect()
    running = threading.Event()
    running.set()
    loop = threading.Thread(target=run_loop, args=(daemon.tick, clock, daemon.dt_s, running.is_set, daemon.lateness))
    loop.start()
    daemon.enable()
    yield daemon
    running.clear()
    loop.join()


@pytest.fixture(scope="module")
def dash(cell: Daemon) -> Iterator[Dashboard]:
    cameras = {}
    for hue, name in enumerate(("front", "wrist")):
        spec = CameraSpec(name=name, serial=name, height=480, width=640, rate_hz=30.0)
        cameras[name] = TwinCamera(spec, pattern(480, 640, hue=hue), clock=time.monotonic, noise=0.0)
        cameras[name].start()

    specs = {"arm": cell.sides["arm"].arm.spec}
    with Dashboard(cell, specs, cameras=cameras, metrics=Timing(cell), port=0) as dashboard:
        yield dashboard


@pytest.fixture(scope="module")
def page(dash: Dashboard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    browser.call("Page.navigate", url=dash.url)
    try:
        wait_for(lambda: browser.run("!!document.querySelector('#arm-arm table tr:nth-child(7)')"), 20.0)
        yield browser
    finally:
        browser.close()


def state(cell: Daemon) -> State:
    return cell.state()["arm"].state


def reset(cell: Daemon, page: Browser) -> None:
    """As an operator: the tick, then the button."""
    wait_for(lambda: page.run("!document.querySelector('#fault').hidden"))
    assert page.run("document.querySelector('#reset').disabled")
    page.click("#seen")
    page.click("#reset")
    wait_for(lambda: state(cell) not in (State.ESTOP, State.FAULT))
    wait_for(lambda: page.run("document.querySelector('#fault').hidden"))


def test_a_click_stops_once_and_reset_needs_a_second_action(cell: Daemon, page: Browser) -> None:
    page.click("#estop")
    wait_for(lambda: state(cell) == State.ESTOP)
    time.sleep(0.3)  # both ways have come in: were they counted twice, the torque would be off
    reading = cell.state()["arm"].reading
    assert reading is not None and reading.torque_on_J.all()
    reset(cell, page)
    assert state(cell) == State.HOLD


def test_the_space_bar_stops_and_does_not_press_the_focused_button(cell: Daemon, page: Browser) -> None:
    time.sleep(0.6)
    page.space()
    wait_for(lambda: state(cell) == State.ESTOP)
    wait_for(lambda: page.run("!document.querySelector('#fault').hidden"))
    page.click("#seen")
    page.run("document.querySelector('#reset').focus()")
    page.run("pressedAt = performance.now()")  # as if pressed just now: this press stops nothing further
    page.space()
    time.sleep(0.3)
    assert state(cell) == State.ESTOP
    page.click("#reset")
    wait_for(lambda: state(cell) == State.HOLD)


def test_films_play_and_nothing_was_blocked(page: Browser, tmp_path: Path) -> None:
    wait_for(lambda: page.run("[...document.images].every(image => image.naturalWidth === 640)"))
    page.picture(tmp_path / "dash.png")
    assert not page.errors, page.errors


def test_a_stop_is_received_within_30_ms_while_films_play(
    cell: Daemon, page: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By HTTP alone, from the press in the page to the cell, on one wall clock; the answer's way back is printed."""
    arrived_ms: list[float] = []
    stop = cell.estop
    monkeypatch.setattr(cell, "estop", lambda source: (arrived_ms.append(1e3 * time.time()), stop(source)))
    script = f"""(async () => {{ const all = []; live = null;
        for (let i = 0; i < {PRESSES + 20}; i++) {{
            pressedAt = -1e9;
            const at = performance.timeOrigin + performance.now();
            all.push([at, await press()]);
            await new Promise(done => setTimeout(done, 15)); }}
        return all; }})()"""
    pressed_ms, took_ms = np.array(page.run(script), float)[20:].T
    there_ms = np.array(arrived_ms)[20:] - pressed_ms
    for name, times_ms in (("to the cell", there_ms), ("and back", took_ms)):
        p50, p99 = np.quantile(times_ms, [0.5, 0.99])
        print(f"{PRESSES} presses {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {times_ms.max():.1f} ms")
    assert len(there_ms) == PRESSES and there_ms.min() > 0.0
    assert np.quantile(there_ms, 0.99) < 30.0
