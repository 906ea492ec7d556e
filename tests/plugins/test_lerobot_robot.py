"""Our arm as a robot of lerobot, on a twin behind a pseudo-terminal, in real time."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.robots.config import RobotConfig
from lerobot.robots.utils import make_robot_from_config
from lerobot.utils.errors import DeviceNotConnectedError

from real_robot.conformance.lateness import TWIN_SLACK_S, shop_calibration
from real_robot.conformance.pty_twin import pty_twin
from real_robot.core.clock import RealClock
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.drivers.build import so101
from real_robot.twin.arms import so101 as so101_twin
from real_robot.twin.link import VirtualLink
from vla.core.errors import UnknownNameError

PLUGIN = Path(__file__).parents[2] / "plugins" / "lerobot_robot_graspline"


@pytest.fixture(scope="module")
def config_class():
    """As lerobot finds it once the plugin is installed."""
    sys.path.insert(0, str(PLUGIN))
    import lerobot_robot_graspline  # noqa: F401

    yield RobotConfig.get_choice_class("graspline_arm")
    sys.path.remove(str(PLUGIN))


@pytest.fixture
def robot(config_class, tmp_path):
    calibration = tmp_path / "arm.json"
    shop_calibration("sts").save(calibration)
    with pty_twin("sts") as port:
        robot = make_robot_from_config(
            config_class(
                port=str(port), calibration=str(calibration), id="a", calibration_dir=tmp_path, normal_speed=True
            )
        )
        robot.arm._slack_s = TWIN_SLACK_S
        for attempt in range(5):  # a busy machine may swallow the first answers
            try:
                robot.connect()
                break
            except Exception:
                if attempt == 4:
                    raise
        yield robot
        if robot.is_connected:
            robot.disconnect()


def test_observation_action_and_what_was_really_sent(robot) -> None:
    assert robot.observation_features == robot.action_features
    seen = robot.get_observation()
    assert seen.keys() == robot.observation_features.keys()
    assert abs(seen["shoulder_pan.pos"]) < 1.0 and 0.0 < seen["gripper.pos"] < 100.0

    asked, sent = [], []
    goal = 0.0
    for _ in range(40):  # 30 degrees in 1.3 s
        goal = min(goal + 1.0, 30.0)
        asked.append(goal)
        sent.append(robot.send_action({"shoulder_pan.pos": goal})["shoulder_pan.pos"])
        time.sleep(0.02)
    assert robot.daemon.sides["arm"].state in (State.ACTIVE, State.STARVED)
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline and abs(sent[-1] - 30.0) > 0.1:
        sent.append(robot.send_action({"shoulder_pan.pos": 30.0})["shoulder_pan.pos"])
    assert sent[-1] == pytest.approx(30.0, abs=0.1)
    assert max(np.abs(np.array(asked) - sent[:40])) > 0.3  # limited by the filter, and it says so
    commanded = np.degrees(robot.daemon.sides["arm"].controller.commanded_J[0]) * 4096 / 4095
    assert sent[-1] == pytest.approx(commanded, abs=0.2)
    time.sleep(0.1)
    assert robot.get_observation()["shoulder_pan.pos"] == pytest.approx(30.0, abs=2.0)


@pytest.fixture
def steady(config_class, tmp_path):
    """The same robot on a twin in this process: a machine that is busy does not delay its answers."""
    calibration = tmp_path / "arm.json"
    shop_calibration("sts").save(calibration)
    robot = make_robot_from_config(
        config_class(port="", calibration=str(calibration), id="a", calibration_dir=tmp_path, normal_speed=True)
    )
    clock = RealClock()
    link = VirtualLink(so101_twin(), sleep_until=clock.sleep_until)
    robot.arm = so101(calibration=shop_calibration("sts"), open_port=link.open, clock=clock, normal_speed=True)
    robot.connect()
    yield robot
    if robot.is_connected:
        robot.disconnect()


def test_garbage_faults_and_silence(steady) -> None:
    robot = steady
    with pytest.raises(RefusedError, match="position"):
        robot.send_action({"shoulder_pan.pos": 400.0})
    with pytest.raises(RefusedError, match="non_finite"):
        time.sleep(0.03)
        robot.send_action({"shoulder_pan.pos": float("nan")})
    with pytest.raises(RefusedError, match="align"):
        time.sleep(0.03)
        robot.send_action({"shoulder_pan.pos": 40.0})
    with pytest.raises(UnknownNameError, match="shoulder_pan"):
        robot.send_action({"shoulder_pam.pos": 0.0})
    robot.send_action({"shoulder_pan.pos": 1.0})
    time.sleep(0.6)  # nobody calls
    assert robot.daemon.sides["arm"].state == State.PAUSED
    robot.send_action({"shoulder_pan.pos": 1.0})
    assert robot.daemon.sides["arm"].state != State.PAUSED
    robot.daemon.estop("test")
    time.sleep(0.1)
    with pytest.raises(RefusedError, match="reset"):
        robot.send_action({"shoulder_pan.pos": 0.0})
    robot.reset()
    robot.send_action({"shoulder_pan.pos": 1.0})
    robot.disconnect()
    with pytest.raises(DeviceNotConnectedError):
        robot.get_observation()


def test_mistakes(config_class, tmp_path) -> None:
    with pytest.raises(ValueError, match="koch"):
        config_class(port="/dev/none", calibration="x", arm="ur5")
    with pytest.raises(ValueError, match="no such calibration"):
        make_robot_from_config(config_class(port="/dev/none", calibration=str(tmp_path / "x"), id="a"))
