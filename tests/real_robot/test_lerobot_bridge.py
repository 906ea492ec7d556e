"""lerobot's stock SO101Follower behind our controller, on a twin behind a pseudo-terminal, in real time."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.motors import motors_bus
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from real_robot.conformance.bench import stored_calibration
from real_robot.core.arms import so101_spec
from real_robot.core.clock import RealClock, VirtualClock
from real_robot.core.supervisor import State
from real_robot.core.types import JointCommand, StopKind
from real_robot.daemon import Daemon
from real_robot.drivers.errors import TorqueOffError
from real_robot.errors import LinkLost
from real_robot.lerobot_bridge import LerobotArm
from real_robot.loop import Lateness, run_loop
from real_robot.teleop.drive import Drive
from real_robot.teleop.scripted import Scripted
from real_robot.twin.arms import so101
from real_robot.twin.link import PtyLink
from real_robot.units import LerobotUnits, Unit
from vla.core.errors import SpecMismatchError

RATE_HZ = 25.0


@pytest.fixture
def cell():
    """(twin, link, arm) with the arm not connected."""
    # an optional package of lerobot, used only to word a message
    motors_bus.require_package = lambda *_, **__: None  # type: ignore[assignment]
    motors_bus.DeepDiff = lambda before, after: before != after  # type: ignore[attr-defined]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # the vendor's SDK spins while it waits
    with tempfile.TemporaryDirectory() as folder:
        twin, spec = so101(), so101_spec(normal_speed=True, control_hz=RATE_HZ)
        calibration = stored_calibration(twin, spec)
        (Path(folder) / "peer.json").write_text(calibration.to_lerobot())
        units = LerobotUnits(calibration, {"gripper": Unit.PERCENT})
        with PtyLink(twin, Path(folder) / "dev") as link:
            robot = SO101Follower(SO101FollowerConfig(port=str(link.path), id="peer", calibration_dir=Path(folder)))
            robot.config.num_read_retries = 20
            yield twin, link, LerobotArm(robot, spec, units, clock=RealClock())
            robot.bus.port_handler.closePort()
    sys.setswitchinterval(interval_s)


def patiently(action):
    for _ in range(20):
        try:
            return action()
        except LinkLost:
            time.sleep(0.02)
    return action()


def connect(one: LerobotArm | Daemon, arm: LerobotArm) -> None:
    """Again where the machine was too busy for the SDK's time-out."""

    def once() -> None:
        if arm._robot.is_connected:
            arm._robot.bus.port_handler.closePort()
        one.connect()

    patiently(once)


def test_stock_lerobot_robot_is_driven_through_our_daemon(cell) -> None:
    twin, _, arm = cell
    daemon = Daemon({"arm": arm}, clock=RealClock())
    connect(daemon, arm)
    daemon.enable()
    drive = Drive(
        daemon,
        Scripted(arm.spec, lambda t: 0.3 * np.sin(np.minimum(2 * t, np.pi / 2)) * np.ones(6)),
        token=daemon.lease("script").token,
    )
    commands = []
    daemon.subscribe(lambda report: commands.append(report.tick.command))
    drive.start()

    def tick() -> None:
        drive.step()
        daemon.tick()

    until_s = time.monotonic() + 1.6
    run_loop(tick, daemon.clock, daemon.dt_s, lambda: time.monotonic() < until_s, Lateness())
    assert daemon.sides["arm"].state in (State.ACTIVE, State.STARVED), daemon.state()
    twin.advance()
    np.testing.assert_allclose(twin.plant.positions_rad, 0.3, atol=0.06)
    assert not twin.monitor.num_violations
    assert any(command is not None and np.abs(command.dq_J).max() > 0.1 for command in commands)
    daemon.shutdown("test")
    assert not any(twin.torque_flags().values())


def test_a_dead_servo_leaves_no_other_one_on_and_a_pulled_cable_is_link_lost(cell) -> None:
    """Where lerobot's own `disconnect` gives up at the first error (conformance case 18)."""
    twin, link, arm = cell
    connect(arm, arm)
    assert sum(twin.torque_flags().values()) == 6  # since lerobot's connect
    twin.servo(3).silent()
    with pytest.raises(TorqueOffError, match="elbow_flex"):
        arm.stop(StopKind.RELEASE)
    assert [i for i, on in twin.torque_flags().items() if on] in ([], [3])
    link.unplug()
    for _ in range(2):
        with pytest.raises(LinkLost):
            arm.read()


class Fake:
    """A robot of lerobot without a bus."""

    def __init__(self) -> None:
        self.sent: list[dict[str, float]] = []
        self.is_connected = False
        self.slip = 0.0

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def get_observation(self) -> dict[str, float]:
        last = self.sent[-1] if self.sent else dict.fromkeys((f"{name}.pos" for name in so101_spec().names), 10.0)
        return {key: value + self.slip * len(self.sent) for key, value in last.items()}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append(action)
        return action

    def disconnect(self) -> None:
        self.is_connected = False


def test_positions_go_both_ways_in_lerobots_units() -> None:
    spec = so101_spec()
    units = LerobotUnits(stored_calibration(so101(), spec), {"gripper": Unit.PERCENT})
    robot = Fake()
    arm = LerobotArm(robot, spec, units, clock=VirtualClock())
    arm.connect()
    arm.enable()
    assert robot.sent[0]["shoulder_pan.pos"] == pytest.approx(10.0)  # goal := present
    assert robot.sent[0]["gripper.pos"] == pytest.approx(10.0)
    q_J = arm.read().q_J
    assert q_J[0] == pytest.approx(np.radians(10.0), abs=0.002)
    arm.write(JointCommand(time_s=0.0, q_J=q_J + 0.1, dq_J=np.zeros(6)))
    np.testing.assert_allclose(arm.read().q_J, q_J + 0.1, atol=1e-6)
    robot.slip = 10.0
    with pytest.raises(Exception, match="moved by"):
        arm.enable()
    assert not robot.is_connected
    units.names = units.names[::-1]
    with pytest.raises(SpecMismatchError, match="units"):
        LerobotArm(robot, spec, units, clock=VirtualClock())
