"""The driver of the FR3 against `franky-sim`, which speaks libfranka's protocol over TCP and UDP."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from real_robot.core.arms_franka import fr3_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.core.types import JointCommand, StopKind
from real_robot.daemon import Daemon
from real_robot.drivers.errors import EnableError
from real_robot.drivers.franka import FrankaArm, fr3
from real_robot.errors import LinkLost
from vla.core.errors import MissingAssetError

PEER = Path(__file__).with_name("franka_peer.py")


def installed(test):
    """Runs where franky and its simulator are, and in real time: on a machine with a core to spare."""
    there = all(importlib.util.find_spec(name) is not None for name in ("franky", "franky_sim"))
    return pytest.mark.slow(pytest.mark.skipif(not there, reason="needs franky-control and franky-sim")(test))


class Peer:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self.host = self._process.stdout.readline().strip()

    def say(self, word: str) -> None:
        assert self._process.stdout is not None and self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.kill()


@pytest.fixture
def arm(peer: Peer) -> Iterator[FrankaArm]:
    arm = fr3(host=peer.host, realtime=False, normal_speed=True)
    arm.connect()
    yield arm
    arm.disconnect()


def follow(arm: FrankaArm, path, seconds: float) -> float:
    """Commands q(t), dq(t) at the arm's rate; returns its usual distance from what was commanded."""
    clock, apart = RealClock(), []
    began_s = due_s = clock.now()
    while due_s < began_s + seconds:
        q_J, dq_J = path(due_s - began_s)
        arm.write(JointCommand(time_s=due_s, q_J=q_J, dq_J=dq_J))
        apart.append(float(np.abs(arm.read().q_J - q_J).max()))
        due_s += arm.spec.dt_s
        clock.sleep_until(due_s)
    return float(np.median(apart))


def test_without_the_package_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingAssetError, match="pip install franky-control"):
        fr3(host="127.0.0.1").connect()


def test_the_levers_bound_the_hands_tool_point() -> None:
    """Denavit and Hartenberg's table (Craig's), a tool point 107 + 103.4 mm along the last axis, 400 postures."""
    rows = [
        (0.0, 0.0, 0.333),
        (0.0, -np.pi / 2, 0.0),
        (0.0, np.pi / 2, 0.316),
        (0.0825, np.pi / 2, 0.0),
        (-0.0825, -np.pi / 2, 0.384),
        (0.0, np.pi / 2, 0.0),
        (0.088, np.pi / 2, 0.0),
    ]
    joints = fr3_spec().joints
    said, most = np.array([joint.lever_m for joint in joints]), np.zeros(7)
    low, high = np.array([joint.low for joint in joints]), np.array([joint.high for joint in joints])
    for q in np.random.default_rng(0).uniform(low, high, (400, 7)):
        frame, axes = np.eye(4), []
        for (a, alpha, d), angle in zip(rows, q):
            c, s, ca, sa = np.cos(angle), np.sin(angle), np.cos(alpha), np.sin(alpha)
            step = [[c, -s, 0, a], [s * ca, c * ca, -sa, -d * sa], [s * sa, c * sa, ca, d * ca], [0, 0, 0, 1]]
            frame = frame @ step
            axes.append((frame[:3, 2], frame[:3, 3]))
        tool = frame[:3, 3] + 0.2104 * frame[:3, 2]
        most = np.maximum(most, [np.linalg.norm(np.cross(axis, tool - place)) for axis, place in axes])
    assert (most <= said + 1e-3).all()
    assert (most >= 0.85 * said).all()


@installed
def test_connect_leaves_it_where_it_is(arm: FrankaArm) -> None:
    first = arm.read()
    time.sleep(0.3)
    second = arm.read()
    np.testing.assert_allclose(second.q_J, first.q_J, atol=1e-3)
    assert second.torque_on_J.all() and not second.age_J.any() and not arm.faults()
    assert (first.q_J > arm.spec.low_J).all() and (first.q_J < arm.spec.high_J).all()


@installed
def test_it_follows_a_wave_and_rests_at_its_end(arm: FrankaArm) -> None:
    """Aimed at the command alone (dq left out) it brakes before each one and lags by v^2 / 2a more."""
    arm.enable()
    start_J = arm.read().q_J
    reach_J = 0.3 * np.array([1.0, -0.6, 0.8, 0.5, -0.9, 0.7, 1.0])

    def wave(t: float):
        return start_J + 0.5 * (1 - np.cos(2.5 * t)) * reach_J, 1.25 * np.sin(2.5 * t) * reach_J

    aimed = follow(arm, wave, 2 * np.pi / 2.5)
    eventually(lambda: float(np.abs(arm.read().q_J - start_J).max()) < 0.01)
    blunt = follow(arm, lambda t: (wave(t)[0], np.zeros(7)), 2 * np.pi / 2.5)
    assert aimed < 0.06
    # the median of sin^2 is a half, of |sin| its root
    assert blunt - aimed == pytest.approx(0.5 * 0.375**2 / (4.0 * arm.spec.acceleration_J[0]), rel=0.7)
    assert not arm.faults()


@installed
def test_silence_ends_at_rest_inside_the_limits(arm: FrankaArm) -> None:
    arm.enable()
    start_J = arm.read().q_J
    follow(arm, lambda t: (start_J + 0.4 * t, np.full(7, 0.4)), 0.5)
    eventually(lambda: float(np.abs(arm.read().q_J - start_J - 0.2).max()) < 0.06)
    eventually(lambda: float(np.abs(arm.read().dq_J).max()) < 0.02)


@installed
def test_a_reflex_latches_until_reset(peer: Peer) -> None:
    """Row 59: the controller's own stop becomes our fault; nothing recovers by itself."""
    arm = fr3(host=peer.host, realtime=False)
    daemon = Daemon({"arm": arm}, clock=RealClock())
    daemon.connect()
    daemon.enable()
    side = daemon.sides["arm"]
    run(daemon, 0.3)
    assert side.state == State.HOLD
    peer.say("reflex")
    run(daemon, 0.3)
    latched = side.controller.supervisor.latched
    assert side.state == State.FAULT and latched is not None and latched.first.code == FaultCode.DEVICE
    run(daemon, 0.5)
    assert side.state == State.FAULT, "stays"
    daemon.reset()
    run(daemon, 0.3)
    assert side.state == State.HOLD and not arm.faults()
    daemon.shutdown("test")


@installed
def test_a_pressed_stop_gets_no_motion(peer: Peer, arm: FrankaArm) -> None:
    peer.say("user_stop")
    time.sleep(0.05)
    with pytest.raises(EnableError, match="not ready"):
        arm.enable()
    peer.say("well")


@installed
def test_a_lost_controller_is_a_lost_link(peer: Peer) -> None:
    arm = fr3(host=peer.host, realtime=False)
    arm.connect()
    arm.enable()
    peer.kill()
    with pytest.raises(LinkLost):
        for _ in range(300):
            state = arm.read()
            arm.write(JointCommand(time_s=0.0, q_J=state.q_J, dq_J=np.zeros(7)))
            if state.age_J.any() and arm.faults():
                raise LinkLost("seen by age and fault")
            time.sleep(0.01)
    with pytest.raises(LinkLost):
        fr3(host=peer.host, realtime=False).connect()


@installed
def test_release_gives_control_back(arm: FrankaArm) -> None:
    arm.enable()
    arm.stop(StopKind.RELEASE)
    before_J = arm.read().q_J
    arm.write(JointCommand(time_s=0.0, q_J=before_J + 0.2, dq_J=np.zeros(7)))
    time.sleep(0.4)
    np.testing.assert_allclose(arm.read().q_J, before_J, atol=0.01)


def eventually(happened: Callable[[], bool], within_s: float = 10.0) -> None:
    """The peer lives in real time, and on a busy machine that takes its time."""
    end_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def run(daemon: Daemon, seconds: float) -> None:
    end_s = daemon.clock.now() + seconds
    while daemon.clock.now() < end_s:
        daemon.tick()
        daemon.clock.sleep_until(daemon.clock.now() + daemon.dt_s)
