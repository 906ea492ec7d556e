"""Record, then replay, as a user does it: a twin behind a pseudo-terminal, in real time."""

import json

import numpy as np
import pytest
from omegaconf import DictConfig

from real_robot.cameras.eyes import Eyes
from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.conformance.bench import Bench
from real_robot.conformance.lateness import TWIN_SLACK_S, shop_calibration
from real_robot.conformance.pty_twin import pty_twin
from real_robot.core.supervisor import State
from real_robot.record.recorder import Driver, Recorder
from real_robot.teleop.drive import Drive
from real_robot.teleop.keyboard import Keys
from real_robot.teleop.scripted import Scripted
from scripts.entry import compose
from scripts.robot_cell import ARM
from scripts.robot_record import VERBS, Session
from vla.core.errors import GrasplineError, UnknownNameError
from vla.data.lerobot import LeRobotSource


def config(tmp_path, port, *overrides: str) -> DictConfig:
    calibration = tmp_path / "arm.json"
    shop_calibration("sts").save(calibration)
    fields = [
        f"+robot.slack_s={TWIN_SLACK_S}",
        "+robot.normal_speed=true",
        "+robot.control_hz=50",  # a busy machine shares one core between the twin and the loop
        f"port={port}",
        f"calibration={calibration}",
        *("source=scripted", "align=true", "task=wave", "episodes=2", "episode=1", "seconds=1", "rate_hz=25"),
        *("scene=none", f"out={tmp_path / 'data'}"),
    ]
    return compose("robot", [*fields, *overrides])


@pytest.mark.slow
def test_record_and_replay(tmp_path, capsys) -> None:
    with pty_twin("sts") as port:
        VERBS["record"](config(tmp_path, port))
        dataset = LeRobotSource(tmp_path / "data")
        assert len(dataset) == 2 and dataset.spec.action_dim == 6
        episode = dataset[1]
        assert len(episode) >= 20 and episode.meta["calibration"] == shop_calibration("sts").sha256
        assert np.ptp(episode.actions_TA[:, 0]) > 0.04
        assert {"action.requested", "safety.verdict", "source", "intervention", "obs_age"} <= set(episode.columns)
        assert (episode.columns["source"] == Driver.TELEOP).all()
        assert json.loads((tmp_path / "data" / "meta" / "graspline.json").read_text())["embodiment"]["name"] == "so101"
        VERBS["replay"](config(tmp_path, port))
    said = capsys.readouterr().out
    assert float(said.split("ended ")[1].split(" rad")[0]) < 0.1, said


@pytest.mark.slow
def test_cameras_are_recorded_beside_the_arm_and_their_times_kept(tmp_path) -> None:
    """In real time, on the MuJoCo twin: one camera sees it, the other is painted."""
    cameras = "cameras={front:{serial:twin,height:64,width:96,rate_hz:25},wrist:{serial:pattern,height:48,width:64}}"
    start = ["port=twin", "start=[0,-1.2,1.2,0.8,0,0]"]
    VERBS["record"](config(tmp_path, "twin", *start, cameras, "episodes=1", "seconds=1.5"))
    dataset = LeRobotSource(tmp_path / "data")
    assert dataset.spec.camera_names == ("front", "wrist")
    episode = dataset[0]
    front = np.stack([observation.images["front"] for observation in episode.observations])
    assert front.shape[1:] == (64, 96, 3) and front.std() > 5.0, "the twin is in the picture"
    assert np.abs(front[-1].astype(int) - front[0]).max() > 20, "and moves"
    times_T = np.array([observation.time_s for observation in episode.observations[:-1]])
    assert np.abs(episode.columns["time.front"] - times_T).max() < 0.2
    assert episode.observations[3].images["wrist"].shape == (48, 64, 3)


class Seat:
    """A session of `record` on a virtual clock, with one painted camera."""

    def __init__(self) -> None:
        bench = Bench("sts").start()
        self.daemon = bench.daemon
        spec = CameraSpec(name="front", serial="f", height=24, width=32, rate_hz=30.0)
        self.camera = TwinCamera(spec, pattern(24, 32), clock=bench.clock.now)
        self.camera.start()
        source = Scripted(bench.spec, lambda t: np.full(6, 0.1 * (1.0 - np.cos(2.0 * t))))
        drive = Drive(bench.daemon, source, token=bench.daemon.lease("scripted").token)
        eyes = Eyes({"front": self.camera}, start_s=bench.now)
        self.recorder = Recorder(arm=ARM, cameras=("front",), rate_hz=25.0)
        bench.daemon.subscribe(self.recorder.tick)
        self.session = Session(daemon=bench.daemon, drive=drive, keys=Keys(), eyes=eyes, recorder=self.recorder)
        drive.start()
        self.recorder.start("wave")

    def run(self, seconds: float) -> None:
        end_s = self.daemon.clock.now() + seconds
        self.session.run(lambda: self.daemon.clock.now() < end_s)


def test_a_session_records_what_its_cameras_see() -> None:
    seat = Seat()
    seat.run(2.0)
    assert not seat.session.ended
    episode = seat.recorder.finish(success=True)
    assert len(episode) in range(46, 51) and not episode.columns["skewed"][3:].any()
    times_T = np.array([observation.time_s for observation in episode.observations[:-1]])
    assert np.abs(episode.columns["time.front"] - times_T)[3:].max() <= 0.02
    pictures = {observation.images["front"].tobytes() for observation in episode.observations}
    assert len(pictures) > 40


@pytest.mark.parametrize("fault", ["die", "freeze", "darken"])
def test_a_camera_that_shows_nothing_usable_pauses_the_arm_and_ends_the_session(fault: str, capsys) -> None:
    seat = Seat()
    seat.run(1.0)
    getattr(seat.camera, fault)()
    began_s = seat.daemon.clock.now()
    seat.run(5.0)
    assert seat.session.ended and seat.daemon.clock.now() - began_s < 1.0
    assert seat.daemon.sides[ARM].state == State.PAUSED and "camera 'front'" in capsys.readouterr().out
    episode = seat.recorder.finish(success=False, truncated=True)
    assert len(episode) < 3 * 25


def test_without_a_recorder_a_dead_camera_only_pauses() -> None:
    seat = Seat()
    seat.session.recorder = None
    seat.camera.die()
    seat.run(2.0)
    assert not seat.session.ended and seat.daemon.sides[ARM].state == State.PAUSED


def test_mistakes(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match="keyboard"):
        VERBS["teleop"](config(tmp_path, "/dev/none", "source=keybord"))
    with pytest.raises(GrasplineError, match="out="):
        VERBS["record"](config(tmp_path, "/dev/none", "out=null"))
    with pytest.raises(GrasplineError, match="port="):
        VERBS["teleop"](config(tmp_path, "null"))
    with pytest.raises(UnknownNameError, match="'tabel'"):
        VERBS["teleop"](config(tmp_path, "/dev/none", "scene=tabel"))
    with pytest.raises(GrasplineError, match="3 angles, so101 6 joints"):
        VERBS["teleop"](config(tmp_path, "twin", "start=[0,0,0]"))
