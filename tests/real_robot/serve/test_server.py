"""The server before a live twin: leases, chunks, stops, tokens, TLS, and clients that mean harm."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.core.types import Chunk
from real_robot.daemon import Daemon
from real_robot.serve import auth
from real_robot.serve.client import ClockOffset, RobotClient
from real_robot.serve.messages import encode
from real_robot.serve.server import Limits, RobotServer
from vla.core.errors import GrasplineError

type Serve = Callable[..., RobotServer]


@pytest.fixture
def serve(cell: Daemon) -> Iterator[Serve]:
    """Starts servers in threads with event loops of their own."""
    with contextlib.ExitStack() as stack:
        spec = CameraSpec(name="front", serial="f", height=48, width=64, rate_hz=30.0)
        camera = TwinCamera(spec, pattern(48, 64), clock=time.monotonic)
        camera.start()

        def start(**options: Any) -> RobotServer:
            server = RobotServer(
                cell, {"arm": cell.sides["arm"].arm.spec}, cameras={"front": camera}, port=0, **options
            )
            ready, loop = threading.Event(), asyncio.new_event_loop()
            over = asyncio.Event()

            async def main() -> None:
                async with server:
                    ready.set()
                    await over.wait()

            thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
            thread.start()
            stack.callback(thread.join, 10.0)
            stack.callback(loop.call_soon_threadsafe, over.set)
            assert ready.wait(10.0)
            return server

        yield start


def wait_for(happened: Callable[[], bool], within_s: float = 5.0) -> None:
    until_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < until_s, "did not happen in time"
        time.sleep(0.005)


def state(cell: Daemon) -> State:
    return cell.state()["arm"].state


def chunk(seq: int, q_N: np.ndarray, *, now_s: float | None = None) -> Chunk:
    q_HN = np.tile(q_N.astype(np.float32), (40, 1))
    return Chunk(session="s", seq=seq, t_obs_s=time.monotonic() if now_s is None else now_s, dt_s=0.05, q_HN=q_HN)


def test_a_controller_drives_and_an_observer_watches(cell: Daemon, serve: Serve) -> None:
    url = serve().url
    with RobotClient(url) as driver, RobotClient(url) as observer:
        assert abs(driver.sync()) < 0.05
        assert driver.ask("lease", client="policy")["generation"] == 1
        driver.ask("activate", session="s", align=True)
        goal_N = np.array([0.04, -0.04, 0.03, 0.0, 0.02])
        assert driver.submit(chunk(1, goal_N)) | {"detail": ""} == {
            "type": "chunk",
            "accepted": True,
            "refusal": "",
            "detail": "",
            "clamped": 0,
        }
        for kind, fields in (("lease", {"client": "x"}), ("heartbeat", {}), ("pause", {"reason": "x"})):
            with pytest.raises(RefusedError, match="refused"):
                observer.ask(kind, **fields)
        arm = observer.ask("state")["arms"]["arm"]
        assert len(arm["joints"]) == 6 and arm["joints"][0]["low"] < 0 < arm["joints"][0]["high"]
        assert observer.ask("frame", camera="front")["image"].shape == (48, 64, 3)
        if "overrun" in cell.state()["arm"].paused:
            pytest.skip("this machine is too busy for 100 ticks a second")
        wait_for(lambda: abs(observer.ask("state")["arms"]["arm"]["joints"][0]["q"] - 0.04) < 0.01)
    wait_for(lambda: cell.leases.holder is None)  # the connection closed, and the lease with it


def test_a_refused_chunk_keeps_the_connection(cell: Daemon, serve: Serve) -> None:
    with RobotClient(serve().url) as driver:
        driver.sync()
        driver.ask("lease", client="policy")
        driver.ask("activate", session="s", align=False)
        answer = driver.submit(chunk(1, np.full(5, np.nan)))
        assert not answer["accepted"] and answer["refusal"] == "non_finite"
        with pytest.raises(RefusedError, match="bad_request"):
            driver.ask("chunk", session="s", seq=2, t_obs_s=0.0, dt_s=0.1, q_HN=np.zeros(3))
        driver.ask("heartbeat")


def test_anybody_may_stop_and_a_reset_names_the_cause(cell: Daemon, serve: Serve) -> None:
    url = serve().url
    with RobotClient(url) as observer, RobotClient(url) as driver:
        driver.ask("lease", client="policy")
        observer.ask("estop")
        wait_for(lambda: state(cell) == State.ESTOP)
        with pytest.raises(RefusedError):
            observer.ask("reset", cause=observer.ask("state")["cause"])
        with pytest.raises(RefusedError, match="names the cause"):
            driver.ask("reset", cause="")
        assert state(cell) == State.ESTOP
        driver.ask("reset", cause=driver.ask("state")["cause"])
        wait_for(lambda: state(cell) == State.HOLD)


def test_a_local_client_without_the_token_may_only_stop(cell: Daemon, serve: Serve) -> None:
    url = serve(token="right").url
    with RobotClient(url, token="right") as driver:
        driver.ask("lease", client="policy")
        with pytest.raises(GrasplineError, match="401"):
            RobotClient(url, token="wrong")
        with RobotClient(url) as stranger:
            for kind in ("state", "heartbeat"):
                with pytest.raises(RefusedError, match="unauthorised"):
                    stranger.ask(kind)
            stranger.ask("estop")
        wait_for(lambda: state(cell) == State.ESTOP)
        driver.ask("heartbeat")  # its lease was not touched


def test_browsers_are_refused(serve: Serve) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(serve().url, origin="http://evil.example", proxy=None)  # type: ignore[arg-type]


def test_tls_is_pinned_and_not_downgraded(serve: Serve, tmp_path: Path) -> None:
    pin = auth.make_certificate(tmp_path / "c", tmp_path / "k", hosts=("127.0.0.1",))
    url = serve(token="right", tls=auth.server_tls(tmp_path / "c", tmp_path / "k")).url
    assert url.startswith("wss://")
    with RobotClient(url, token="right", pin=pin) as client:
        client.ask("state")
    with pytest.raises(GrasplineError, match="not the pinned"):
        RobotClient(url, token="right", pin="0" * 64)
    with pytest.raises(GrasplineError, match="needs `pin`"):
        RobotClient(url, token="right")
    with pytest.raises(GrasplineError, match="no connection"):
        RobotClient(url.replace("wss", "ws"), token="right")
    with pytest.raises(GrasplineError, match="in the clear"):
        RobotClient("ws://192.168.1.9:8100", token="right")


def test_a_silent_client_and_one_too_many_are_sent_away(serve: Serve) -> None:
    url = serve(limits=Limits(idle_s=0.3, max_clients=1)).url
    with connect(url, proxy=None) as silent:
        with connect(url, proxy=None) as second, pytest.raises(ConnectionClosed, match="1013"):
            second.recv(5.0)
        with pytest.raises(ConnectionClosed, match="1008"):
            silent.recv(5.0)


def test_a_cell_that_hangs_is_reported_and_a_stop_still_goes_through(cell: Daemon, serve: Serve) -> None:
    url = serve(limits=Limits(deadline_s=0.2)).url
    with RobotClient(url) as client, RobotClient(url) as other:
        client.ask("lease", client="policy")
        with cell._lock:  # what a driver that hangs in a read would hold
            with pytest.raises(RefusedError, match="deadline"):
                client.ask("heartbeat")
            began_s = time.monotonic()
            other.ask("estop")
            assert time.monotonic() - began_s < 0.15
        wait_for(lambda: state(cell) == State.ESTOP)


def test_hostile_clients_do_not_touch_the_motion(cell: Daemon, serve: Serve) -> None:
    url = serve().url
    rng = np.random.default_rng(0)
    whole = encode({"type": "chunk", "session": "s", "seq": 9, "t_obs_s": 0.0, "dt_s": 0.1, "q_HN": np.ones((9, 5))})
    hostile = [b"", b"\xdd\xff\xff\xff\xff", b"\x91" * 4000, msgpack.packb({"type": "eval"}), "text", b"\x00" * 2**21]
    hostile += [rng.bytes(int(rng.integers(1, 200))) for _ in range(40)]
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        hostile.append(bytes(damaged))
    with RobotClient(url) as driver:
        driver.sync()
        driver.ask("lease", client="policy")
        driver.ask("activate", session="s", align=True)
        for number, data in enumerate(hostile):
            with connect(url, proxy=None) as attacker, contextlib.suppress(ConnectionClosed):
                attacker.send(data)
                attacker.recv(5.0)
            if number % 5 == 0:
                driver.submit(chunk(number + 1, np.array([0.04, 0.0, 0.0, 0.0, 0.0])))
        driver.ask("heartbeat")
        arm = cell.state()["arm"]
        assert not arm.latched and cell.leases.holder is not None and cell.leases.holder.generation == 1
        if "overrun" in arm.paused:
            pytest.skip("this machine is too busy for 100 ticks a second")
        assert arm.state in (State.ACTIVE, State.STARVED)
        assert arm.reading is not None and abs(arm.reading.q_J[0] - 0.04) < 0.01
        assert np.abs(arm.reading.q_J[1:5]).max() < 0.01


def test_the_offset_of_the_shortest_round_trip_counts() -> None:
    offset = ClockOffset()
    with pytest.raises(GrasplineError, match="sync"):
        _ = offset.offset_s
    offset.add(0.0, 105.0, 2.0)  # a slow answer: 104
    offset.add(10.0, 110.06, 10.02)
    assert offset.offset_s == pytest.approx(100.05)
