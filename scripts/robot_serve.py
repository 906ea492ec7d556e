"""Verbs of `scripts.robot` for a cell that stands by itself: serve, park.

`serve` owns the arm until it is told to end: a WebSocket for controllers and observers, and the operator's page. It
listens on this machine alone unless there is a token and TLS; both are made where `token_file=` and `tls=` point.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from real_robot.cameras.eyes import Eyes
from real_robot.daemon import Daemon, Report
from real_robot.dash.app import Dashboard
from real_robot.dash.timing import Timing
from real_robot.loop import run_loop
from real_robot.serve import auth
from real_robot.serve.server import RobotServer
from real_robot.transports import port_owner
from scripts.robot_cell import ARM, TWIN, cell, confirmation, connected, port_of
from vla.core.errors import GrasplineError

PARKED_RAD = 0.1
STARTED_S = 10.0
CERTIFICATE, KEY = "certificate.pem", "key.pem"


def serve(config: DictConfig) -> None:
    """Serves the arm and the operator's page until SIGINT or SIGTERM; then stops, parks and switches off."""
    for name in ("websockets", "uvicorn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a stranger's broken handshake is not our error
    shared: dict[str, Any] = {
        "host": str(config.host),
        "token": token_of(config.token_file),
        "insecure_lan": bool(config.insecure_lan),
    }
    certificate, key = certificate_of(config.tls, str(config.host))
    tls = auth.server_tls(certificate, key) if certificate is not None and key is not None else None
    auth.require_safe_host(**shared, tls=tls)  # before an arm is touched
    with cell(config) as one, connected(one) as daemon:
        specs, shared["cameras"] = {ARM: daemon.sides[ARM].arm.spec}, one.cameras
        server = RobotServer(daemon, specs, port=config.serve_port, tls=tls, **shared)
        page = Dashboard(
            daemon,
            specs,
            port=config.dash_port,
            metrics=Timing(daemon),
            certificate=certificate,
            key=key,
            hosts=frozenset({socket.gethostname(), *config.hosts}),
            **shared,
        )
        eyes = Eyes(one.cameras, start_s=daemon.clock.now())

        def seen(report: Report) -> None:
            for finding in eyes.look(report.now_s):
                daemon.fail(finding)

        with page, serving(server):
            print(f"serving {specs[ARM].name} on {server.url}, the operator's page on {page.url}", flush=True)
            if watched(daemon, confirmation(config)("the torque comes on")):
                daemon.enable()
                daemon.subscribe(seen)
                print("torque on, holding; Ctrl-C stops, parks and switches off", flush=True)
                daemon.run()


def park(config: DictConfig) -> None:
    """Asks the process that owns the arm to park and end; without one, takes the arm, parks it and lets go."""
    owner = None if config.port == TWIN else port_owner(port_of(config.port))
    if owner is not None:
        os.kill(owner, signal.SIGTERM)
        print(f"process {owner} was asked to stop, park and end")
        return
    with cell(config) as one:
        spec = one.build().spec
        if spec.park is None:
            raise GrasplineError(f"{spec.name} has no park posture: lower it by hand, then `estop` twice")
        with connected(one) as daemon:
            side = daemon.sides[ARM]
            if not watched(daemon, confirmation(config)("the torque comes on and the arm moves to its park posture")):
                return
            daemon.enable()  # leaving parks
        reading = side.reading
        assert reading is not None, "a connected arm has been read"
        away_J = np.abs(reading.q_J - np.array(spec.park))
        if away_J.max() > PARKED_RAD:
            name = spec.names[int(np.argmax(away_J))]
            raise GrasplineError(f"not parked: {away_J.max():.2f} rad away at {name}; the torque is off")
        print("parked, torque off")


def watched(daemon: Daemon, waiting: Callable[[], bool]) -> bool:
    """Ticks while the operator takes time; False when the process was asked to end meanwhile."""
    run_loop(daemon.tick, daemon.clock, daemon.dt_s, lambda: waiting() and not daemon.ending, daemon.lateness)
    return not daemon.ending


@contextlib.contextmanager
def serving(server: RobotServer) -> Iterator[None]:
    """The server in a thread with an event loop of its own. Raises what its start raised."""
    loop, over, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    wrong: list[GrasplineError] = []

    async def main() -> None:
        try:
            async with server:
                started.set()
                await over.wait()
        except GrasplineError as error:
            wrong.append(error)
            started.set()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), name="robot-server")
    thread.start()
    try:
        started.wait(STARTED_S)
        if wrong:
            raise wrong[0]
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def token_of(path: str | None) -> str | None:
    """The token in a file; a file that is not there is made."""
    if path is None:
        return None
    if not Path(path).exists():
        auth.make_token(Path(path))
        print(f"a new token is in {path}: clients show it (Authorization: Bearer ...), the page asks for it")
    return auth.read_token(Path(path))


def certificate_of(folder: str | None, host: str) -> tuple[Path | None, Path | None]:
    """Certificate and key in a folder, made if they are not there; prints the fingerprint that clients pin."""
    if folder is None:
        return None, None
    certificate, key = Path(folder) / CERTIFICATE, Path(folder) / KEY
    if not certificate.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        auth.make_certificate(certificate, key, hosts=(socket.gethostname(), "localhost", host))
    fingerprint = auth.fingerprint(ssl.PEM_cert_to_DER_cert(certificate.read_text()))
    print(f"certificate {certificate}, SHA-256 {fingerprint}: clients pin it")
    return certificate, key


VERBS = {"serve": serve, "park": park}
