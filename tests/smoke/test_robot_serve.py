"""`serve` and `park` as a user runs them: a process on the twin, clients, the page, and how it ends."""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.types import Chunk
from real_robot.serve.client import RobotClient
from scripts.entry import compose
from scripts.robot_serve import certificate_of, park, serve, token_of
from vla.core.errors import GrasplineError

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """A running `serve`; `said` is what it printed until it held."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said = process, ""
        assert process.stdout is not None
        for line in process.stdout:
            self.said += line
            if line.startswith("torque on"):
                return
        raise AssertionError(f"it ended: {self.said}")

    @property
    def url(self) -> str:
        return next(word for word in self.said.split() if word.startswith(("ws://", "wss://"))).rstrip(",")

    @property
    def page(self) -> str:
        return next(word for word in self.said.split() if word.startswith("http"))


@contextlib.contextmanager
def served(*overrides: str) -> Iterator[Served]:
    command = [sys.executable, "-W", "ignore", "-m", "scripts.robot", "serve", "port=twin", "confirm=false"]
    command += ["serve_port=0", "dash_port=0", "scene=none", *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield Served(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30.0)


@pytest.mark.slow
def test_a_client_drives_the_page_shows_it_and_sigterm_parks(tmp_path) -> None:
    """With a token and TLS, both made by the verb."""
    token, tls = tmp_path / "token", tmp_path / "tls"
    camera = "cameras={front:{serial:pattern,height:48,width:64}}"
    with served(f"token_file={token}", f"tls={tls}", camera) as cell:
        assert token.stat().st_mode & 0o777 == 0o600 and (tls / "key.pem").stat().st_mode & 0o777 == 0o600
        pin = cell.said.split("SHA-256 ")[1].split(":")[0]
        with pytest.raises(GrasplineError):
            RobotClient(cell.url, token="0" * 64, pin=pin)
        with RobotClient(cell.url, token=token.read_text().strip(), pin=pin) as client:
            client.sync()
            assert client.ask("state")["arms"]["arm"]["state"] == "hold"
            assert client.ask("frame", camera="front")["image"].shape == (48, 64, 3)
            client.ask("lease", client="test")
            client.ask("activate", session="s", align=False)
            q_HN = np.linspace(0.0, 0.2, 40)[:, None] * np.ones(5)
            chunk = Chunk(session="s", seq=1, t_obs_s=time.monotonic(), dt_s=0.02, q_HN=q_HN)
            assert client.submit(chunk)["accepted"]
            end_s = time.monotonic() + 1.5
            while time.monotonic() < end_s:
                client.ask("heartbeat")
                time.sleep(0.1)
            joints = client.ask("state")["arms"]["arm"]["joints"]
            assert joints[0]["q"] == pytest.approx(0.2, abs=0.03)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with urllib.request.urlopen(cell.page, context=context, timeout=10.0) as answer:
            assert answer.status == 200 and b"<html" in answer.read()
        cell.process.send_signal(signal.SIGTERM)
        assert cell.process.wait(30.0) == 0


@pytest.mark.slow
def test_the_page_stops_the_arm_and_a_stranger_does_not_drive(tmp_path) -> None:
    with served() as cell:
        request = urllib.request.Request(f"{cell.page}/estop?press=1", method="POST")
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            assert "now_s" in json.loads(answer.read())
        with RobotClient(cell.url) as client:
            until_s = time.monotonic() + 5.0
            while client.ask("state")["arms"]["arm"]["state"] != "estop":
                assert time.monotonic() < until_s
                time.sleep(0.02)
            with pytest.raises(GrasplineError, match="acquire the lease"):
                client.ask("pause", reason="test")
        os.kill(cell.process.pid, signal.SIGINT)
        assert cell.process.wait(30.0) == 0


def test_beyond_this_machine_needs_token_and_tls() -> None:
    config = compose("robot", ["port=/dev/none", "confirm=false", "host=0.0.0.0"])
    with pytest.raises(GrasplineError, match="no token and no TLS"):
        serve(config)


def test_token_and_certificate_are_made_once(tmp_path, capsys) -> None:
    path = tmp_path / "token"
    first = token_of(str(path))
    assert first is not None and len(first) == 64 and token_of(str(path)) == first and token_of(None) is None
    made = certificate_of(str(tmp_path / "tls"), "127.0.0.1")
    again = certificate_of(str(tmp_path / "tls"), "127.0.0.1")
    said = [line for line in capsys.readouterr().out.splitlines() if "SHA-256" in line]
    assert made == again and said[0] == said[1] and certificate_of(None, "") == (None, None)


@pytest.mark.slow
def test_park_moves_to_the_posture_and_lets_go(capsys) -> None:
    park(compose("robot", ["port=twin", "confirm=false", "start=[0.1,-1.2,1.2,0.8,0,0]", "scene=none"]))
    assert capsys.readouterr().out.endswith("parked, torque off\n")


def test_park_refuses_an_arm_without_a_posture(tmp_path) -> None:
    with pytest.raises(GrasplineError, match="koch has no park posture"):
        park(compose("robot", ["robot=koch", "port=twin", "confirm=false"]))
    with pytest.raises(GrasplineError, match="port="):
        park(compose("robot", []))
