"""The driver of the UR5e through the unmodified `ur-rtde`, against a controller of our own on the real sockets."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from real_robot.core.arms_ur import ur5e_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.core.types import JointCommand, StopKind
from real_robot.daemon import Daemon
from real_robot.drivers.errors import BusError, EnableError
from real_robot.drivers.ur import LOOKAHEAD_S, UrArm, ur5e
from real_robot.errors import LinkLost
from vla.core.errors import MissingAssetError

ROOT = Path(__file__).resolve().parents[3]


def installed(test):
    """Runs where the vendor's package is, and in real time: on a machine with a core to spare."""
    there = importlib.util.find_spec("rtde_control") is not None
    return pytest.mark.slow(pytest.mark.skipif(not there, reason="needs ur-rtde")(test))


class Peer:
    def __init__(self, number: int) -> None:
        self.host = f"127.0.0.{number}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "real_robot.twin.ur_controller", self.host],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready\n"

    def say(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture
def peer() -> Iterator[Peer]:
    Peer.count = getattr(Peer, "count", 40) + 1
    peer = Peer(Peer.count)
    yield peer
    peer.end()


@pytest.fixture
def arm(peer: Peer) -> Iterator[UrArm]:
    arm = ur5e(host=peer.host, normal_speed=True)
    arm.connect()
    yield arm
    arm.disconnect()


def follow(arm: UrArm, path: Callable[[float], np.ndarray], seconds: float) -> float:
    """Commands q(t) at the arm's rate; returns its usual distance from what was commanded."""
    clock, apart = RealClock(), []
    began_s = due_s = clock.now()
    while due_s < began_s + seconds:
        q_J = path(due_s - began_s)
        arm.write(JointCommand(time_s=due_s, q_J=q_J, dq_J=np.zeros(6)))
        apart.append(float(np.abs(arm.read().q_J - q_J).max()))
        due_s += arm.spec.dt_s
        clock.sleep_until(due_s)
    return float(np.median(apart))


def test_without_the_package_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingAssetError, match="pip install ur-rtde"):
        ur5e(host="127.0.0.1").connect()


def test_the_levers_bound_the_flange() -> None:
    """Denavit and Hartenberg's table, 400 postures."""
    rows = [
        (0.1625, 0, np.pi / 2),
        (0, -0.425, 0),
        (0, -0.3922, 0),
        (0.1333, 0, np.pi / 2),
        (0.0997, 0, -np.pi / 2),
        (0.0996, 0, 0),
    ]
    said, most = np.array([joint.lever_m for joint in ur5e_spec().joints]), np.zeros(6)
    for q in np.random.default_rng(0).uniform(-np.pi, np.pi, (400, 6)):
        frame, axes = np.eye(4), []
        for (d, a, alpha), angle in zip(rows, q):
            axes.append((frame[:3, 2], frame[:3, 3]))
            c, s, ca, sa = np.cos(angle), np.sin(angle), np.cos(alpha), np.sin(alpha)
            frame = frame @ [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        most = np.maximum(most, [np.linalg.norm(np.cross(axis, frame[:3, 3] - place)) for axis, place in axes])
    assert (most <= said + 1e-3).all()
    assert (most >= 0.85 * said).all()


@installed
def test_connect_reads_and_uploads_nothing(peer: Peer, arm: UrArm) -> None:
    state = arm.read()
    np.testing.assert_allclose(state.q_J, [0.0, -1.57, 1.57, -1.57, -1.57, 0.0])
    assert state.torque_on_J.all() and not state.age_J.any() and not arm.faults()
    assert peer.say("state")["uploads"] == 0


@installed
def test_the_uploaded_program_says_the_numbers_of_its_commands(peer: Peer, arm: UrArm) -> None:
    """Those of ur-rtde 1.6, read by the controller from the text."""
    arm.enable()
    assert peer.say("state")["commands"] == {"servoj": 11, "servo_stop": 16, "watchdog": 35, "stop": 255}


@installed
def test_it_follows_a_wave(arm: UrArm) -> None:
    """servoj's look-ahead is a lag: speed times 50 ms, and a tick or two."""
    arm.enable()
    start_J = arm.read().q_J
    usual = follow(arm, lambda t: start_J + 0.15 * (1 - np.cos(3.0 * t)), 2.1)
    speed = 0.45 * math.sqrt(0.5)  # the median of |sin|
    assert 0.9 * speed * LOOKAHEAD_S < usual < speed * (LOOKAHEAD_S + 0.04)
    assert not arm.faults()


@installed
def test_silence_trips_the_controllers_own_watchdog(peer: Peer, arm: UrArm) -> None:
    arm.enable()
    start_J = arm.read().q_J
    follow(arm, lambda t: start_J + 0.5 * t, 0.4)
    assert peer.say("state")["runtime"] == 2
    eventually(lambda: peer.say("state")["runtime"] == 1)
    eventually(lambda: not any(peer.say("state")["qd_J"]))
    arm.write(JointCommand(time_s=0.0, q_J=start_J, dq_J=np.zeros(6)))
    assert [finding.code for finding in arm.faults()] == [FaultCode.DEVICE]


@installed
def test_a_protective_stop_latches_until_reset(peer: Peer) -> None:
    """Row 59: nothing unlocks by itself; the reset unlocks, uploads again, and moves nothing."""
    arm = ur5e(host=peer.host)
    daemon = Daemon({"arm": arm}, clock=RealClock())
    daemon.connect()
    daemon.enable()
    side = daemon.sides["arm"]
    run(daemon, 0.3)
    assert side.state == State.HOLD
    peer.say("protective_stop")
    run(daemon, 0.3)
    latched = side.controller.supervisor.latched
    assert side.state == State.FAULT and latched is not None
    assert latched.first.code == FaultCode.DEVICE and "protective stop" in latched.first.detail
    run(daemon, 0.5)
    before = peer.say("state")
    assert side.state == State.FAULT and before["uploads"] == 1
    daemon.reset()
    run(daemon, 0.3)
    after = peer.say("state")
    assert side.state == State.HOLD and after["uploads"] == 2
    np.testing.assert_allclose(after["q_J"], before["q_J"], atol=1e-3)
    daemon.shutdown("test")
    assert peer.say("state")["runtime"] == 1


@installed
def test_an_emergency_stop_is_not_unlocked(peer: Peer, arm: UrArm) -> None:
    arm.enable()
    peer.say("emergency_stop")
    time.sleep(0.1)
    with pytest.raises(BusError, match="emergency stop"):
        arm.clear()
    arm.stop(StopKind.RELEASE)
    with pytest.raises(EnableError, match="not ready: emergency stop"):
        arm.enable()


@installed
def test_a_mute_controller_ages(peer: Peer, arm: UrArm) -> None:
    arm.read()
    peer.say("mute")
    time.sleep(0.15)
    arm.read()
    time.sleep(0.1)
    assert (arm.read().age_J > 0.05).all()


@installed
def test_a_lost_controller_is_a_lost_link(peer: Peer, arm: UrArm) -> None:
    arm.enable()
    peer.end()
    with pytest.raises(LinkLost):
        follow(arm, lambda t: np.array([0.0, -1.57, 1.57, -1.57, -1.57, 0.0]), 2.0)
    with pytest.raises(LinkLost):
        ur5e(host=peer.host).connect()


def eventually(happened: Callable[[], bool], within_s: float = 10.0) -> None:
    """The peer lives in real time, and on a busy machine that takes its time."""
    end_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def run(daemon: Daemon, seconds: float) -> None:
    end_s = daemon.clock.now() + seconds
    while daemon.clock.now() < end_s:
        due_s = daemon.clock.now() + daemon.dt_s
        daemon.tick()
        daemon.clock.sleep_until(due_s)
