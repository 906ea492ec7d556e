"""The driver of the xArm 6 through the unmodified `xarm-python-sdk`, against a control box of our own on port 502."""

import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from real_robot.core.arms_xarm import xarm6_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import FaultCode
from real_robot.core.supervisor import State
from real_robot.core.types import JointCommand, StopKind
from real_robot.daemon import Daemon
from real_robot.drivers.errors import EnableError
from real_robot.drivers.xarm import XarmArm, xarm6
from real_robot.errors import LinkLost
from real_robot.twin.xarm_controller import COLLISION, XarmController
from vla.core.errors import MissingAssetError


def installed(test):
    """Runs where the vendor's package is, and in real time: on a machine with a core to spare."""
    there = importlib.util.find_spec("xarm") is not None
    return pytest.mark.slow(pytest.mark.skipif(not there, reason="needs xarm-python-sdk")(test))


numbers = itertools.count(80)


@pytest.fixture
def box() -> Iterator[XarmController]:
    box = XarmController(f"127.0.0.{next(numbers)}")
    try:
        box.start()
    except PermissionError:
        pytest.skip("port 502 may not be opened")
    yield box
    box.close()


@pytest.fixture
def arm(box: XarmController) -> Iterator[XarmArm]:
    arm = xarm6(host=box.host, normal_speed=True)
    arm.connect()
    yield arm
    arm.disconnect()


def follow(arm: XarmArm, path: Callable[[float], np.ndarray], seconds: float) -> float:
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
    with pytest.raises(MissingAssetError, match="xarm-python-sdk"):
        xarm6(host="127.0.0.1").connect()


def test_the_levers_bound_the_flange() -> None:
    """Denavit and Hartenberg's table, 400 postures."""
    lean = 1.3849179
    rows = [
        (0.0, 0.267, 0.0, -np.pi / 2),
        (-lean, 0.0, 0.28948866, 0.0),
        (lean, 0.0, 0.0775, -np.pi / 2),
        (0.0, 0.3425, 0.0, np.pi / 2),
        (0.0, 0.0, 0.076, -np.pi / 2),
        (0.0, 0.097, 0.0, 0.0),
    ]
    said, most = np.array([joint.lever_m for joint in xarm6_spec().joints]), np.zeros(6)
    for q in np.random.default_rng(0).uniform(-np.pi, np.pi, (400, 6)):
        frame, axes = np.eye(4), []
        for (offset, d, a, alpha), angle in zip(rows, q):
            axes.append((frame[:3, 2], frame[:3, 3]))
            c, s, ca, sa = np.cos(angle + offset), np.sin(angle + offset), np.cos(alpha), np.sin(alpha)
            frame = frame @ [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        most = np.maximum(most, [np.linalg.norm(np.cross(axis, frame[:3, 3] - place)) for axis, place in axes])
    assert (most <= said + 1e-3).all()
    assert (most >= 0.85 * said).all()


@installed
def test_limits_are_those_of_the_sdk() -> None:
    from xarm.core.config.x_config import XCONF

    theirs = XCONF.Robot.JOINT_LIMITS[XCONF.Robot.Axis.XARM6][XCONF.Robot.Type.XARM6_X4]
    np.testing.assert_allclose([(joint.low, joint.high) for joint in xarm6_spec().joints], theirs)


@installed
def test_connect_enables_nothing(box: XarmController, arm: XarmArm) -> None:
    state = arm.read()
    np.testing.assert_allclose(state.q_J, box.q_J, atol=1e-6)
    assert not box.enabled and not state.torque_on_J.any() and not arm.faults()


@installed
def test_it_follows_a_wave(box: XarmController, arm: XarmArm) -> None:
    arm.enable()
    start_J = arm.read().q_J
    usual = follow(arm, lambda t: start_J + 0.1 * (1 - np.cos(3.0 * t)), 2.1)
    assert usual < 0.3 * 0.06 and not arm.faults() and box.refused == 0


@installed
def test_silence_leaves_it_at_the_last_setpoint(box: XarmController, arm: XarmArm) -> None:
    """No watchdog in this mode: said in the specification, and true of the peer."""
    assert not arm.spec.native_watchdog
    arm.enable()
    start_J = arm.read().q_J
    follow(arm, lambda t: start_J + 0.3 * t, 0.3)
    eventually(lambda: float(np.abs(np.array(box.q_J) - start_J - 0.3 * 0.29).max()) < 5e-3)
    eventually(lambda: float(np.abs(box.qd_J).max()) < 1e-3)


@installed
def test_an_error_latches_until_reset(box: XarmController) -> None:
    """Row 59: nothing is cleaned by itself; the reset cleans it, and moves nothing."""
    arm = xarm6(host=box.host)
    daemon = Daemon({"arm": arm}, clock=RealClock())
    daemon.connect()
    daemon.enable()
    side = daemon.sides["arm"]
    run(daemon, 0.3)
    assert side.state == State.HOLD
    box.fail(COLLISION)
    run(daemon, 0.3)
    latched = side.controller.supervisor.latched
    assert side.state == State.FAULT and latched is not None
    assert latched.first.code == FaultCode.DEVICE and "31" in latched.first.detail
    run(daemon, 0.5)
    assert side.state == State.FAULT and box.error == COLLISION
    before_J = list(box.q_J)
    daemon.reset()
    run(daemon, 0.3)
    assert side.state == State.HOLD and box.error == 0
    np.testing.assert_allclose(box.q_J, before_J, atol=1e-3)
    daemon.shutdown("test")
    assert not box.enabled


@installed
def test_an_error_at_the_start_gets_no_motion(box: XarmController, arm: XarmArm) -> None:
    box.fail(COLLISION)
    with pytest.raises(EnableError, match="error 31"):
        arm.enable()
    assert not box.enabled


@installed
def test_a_mute_box_is_a_lost_link(box: XarmController, arm: XarmArm) -> None:
    arm.enable()
    box.muted = True
    began_s = time.monotonic()
    with pytest.raises(LinkLost, match="no answer"):
        arm.read()
    assert time.monotonic() - began_s < 1.5
    box.muted = False
    assert math.isfinite(arm.read().q_J[0]), "a late answer to the first is not taken for one to the second"


@installed
def test_a_lost_box_is_a_lost_link(box: XarmController, arm: XarmArm) -> None:
    arm.enable()
    box.close()
    with pytest.raises(LinkLost):
        follow(arm, lambda t: np.array(box.q_J), 1.0)
    with pytest.raises(LinkLost):
        xarm6(host=box.host).connect()


@installed
def test_release_brakes(box: XarmController, arm: XarmArm) -> None:
    arm.enable()
    arm.stop(StopKind.RELEASE)
    assert not box.enabled and not arm.read().torque_on_J.any()


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
