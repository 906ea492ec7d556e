"""Episodes from the ticks of a daemon over a twin, on a virtual clock."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from real_robot.cameras.frames import CameraSpec, Frame
from real_robot.conformance.bench import Bench
from real_robot.core.supervisor import State
from real_robot.core.types import Verdict
from real_robot.record.recorder import Driver, Recorder, RecordingError, embodiment_of
from real_robot.record.writer import Writer
from real_robot.teleop.drive import Drive
from real_robot.teleop.scripted import Replay, Scripted
from vla.core.errors import StorageError
from vla.core.types import Episode
from vla.data.staging import read_staged, write_staged

CAMERA = CameraSpec(name="front", serial="1", height=8, width=10, rate_hz=30.0)


def path(t: float) -> np.ndarray:
    return 0.3 * (1.0 - np.cos(2.0 * t)) * np.array([1.0, -1.0, 0.5, 0.5, 0.5, 0.5])


class Session:
    """A scripted episode, with a camera whose picture k shows the number k."""

    def __init__(self, *, source=None, cameras=("front",)) -> None:
        self.bench = Bench("sts")
        self.recorder = Recorder(arm="arm", cameras=cameras, meta={"calibration": "abc"})
        self.recorder.driver = Driver.TELEOP
        self.bench.daemon.subscribe(self.recorder.tick)
        self.bench.start()
        self.drive = Drive(
            self.bench.daemon,
            source or Scripted(self.bench.spec, path),
            token=self.bench.daemon.lease("script").token,
        )
        self.drive.start()
        self.lost: set[int] = set()
        self._seq, self._camera_s = 0, self.bench.now + 0.004

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            while self._camera_s <= self.bench.now:
                image = np.full((8, 10, 3), self._seq % 256, np.uint8)
                if self._seq not in self.lost and self.recorder._cameras:
                    self.recorder.see("front", Frame(seq=self._seq, time_s=self._camera_s, image=image))
                self._seq, self._camera_s = self._seq + 1, self._camera_s + 1.0 / 30.0
            self.drive.step()
            self.bench.tick()


def recorded(seconds: float = 2.0) -> tuple[Session, Episode]:
    session = Session()
    session.recorder.start("wave")
    session.run(seconds)
    return session, session.recorder.finish(success=True)


def test_an_episode_says_what_was_measured_and_what_was_sent() -> None:
    session, episode = recorded()
    columns = episode.columns
    reports = session.bench.reports
    times = np.array([report.state.time_s for report in reports])
    assert len(episode) in (58, 59) and len(episode.observations) == len(episode) + 1
    for t in (0, 7, len(episode) - 1):
        seen = reports[int(np.argmin(np.abs(times - episode.observations[t].time_s)))]
        np.testing.assert_allclose(episode.observations[t].state_S, seen.state.q_J, atol=1e-6)
        after = reports[int(np.argmin(np.abs(times - episode.observations[t + 1].time_s)))]
        np.testing.assert_allclose(episode.actions_TA[t], after.tick.command.q_J, atol=1e-6)
        np.testing.assert_allclose(columns["action.requested"][t], after.tick.requested_J, atol=1e-6)
    assert (columns["source"] == Driver.TELEOP).all() and not columns["skewed"].any()
    assert (columns["obs_age"] < 0.011).all() and episode.meta == {"calibration": "abc", "task": "wave"}
    assert all(len(column) == len(episode) for column in columns.values())
    embodiment = embodiment_of(session.bench.spec, [CAMERA], 30.0)
    for observation in episode.observations:
        embodiment.validate(observation)


def test_the_sent_action_is_not_the_wanted_one_where_the_filter_worked() -> None:
    """A step of 0.5 rad: the verdict says so, in the steps in which it was true."""
    session = Session(source=None)
    jump = Scripted(session.bench.spec, lambda t: np.r_[0.5 * (t > 0.5), np.zeros(5)])
    session.drive = Drive(session.bench.daemon, jump, token=session.drive._token)
    session.drive.start()
    session.recorder.start("jump")
    session.run(1.5)
    recording = session.recorder.finish(success=False)
    bits = recording.columns["safety.verdict"]
    bound = Verdict.VELOCITY | Verdict.ACCELERATION | Verdict.JERK
    limited = np.array([bool(Verdict(int(b)) & bound) for b in bits])
    assert limited[15:25].any() and not limited[:13].any() and not limited[-5:].any()
    difference = np.abs(recording.columns["action.requested"] - recording.actions_TA)[:, 0]
    assert difference[limited].max() > 0.02 and difference[:13].max() < 1e-3


def test_interventions_are_marked_from_their_tick_on() -> None:
    session = Session()
    session.recorder.start("help")
    session.run(1.0)
    session.recorder.intervention = True
    session.run(0.5)
    session.recorder.intervention = False
    session.run(0.5)
    marked = session.recorder.finish(success=True).columns["intervention"]
    first, last = np.flatnonzero(marked)[[0, -1]]
    assert first in (29, 30) and last == 44 and marked[first : last + 1].all()


def test_pictures_are_the_nearest_and_a_lost_one_is_flagged() -> None:
    session = Session()
    session.lost = {20}
    session.recorder.start("look")
    session.run(1.5)
    recording = session.recorder.finish(success=True)
    times = recording.columns["time.front"]
    grid = np.array([observation.time_s for observation in recording.observations[:-1]])
    assert np.abs(times - grid)[~recording.columns["skewed"]].max() <= 0.02
    assert len(np.flatnonzero(recording.columns["skewed"])) == 1
    shown = [int(observation.images["front"][0, 0, 0]) for observation in recording.observations]
    assert 20 not in shown and shown == sorted(shown) and len(set(shown)) >= len(shown) - 2


def test_a_recording_replays_to_itself() -> None:
    """Recorded on one arm, replayed on another, recorded again: the same motion at the same times."""
    _, first = recorded()
    actions = first.actions_TA
    session = Session(source=Replay(Bench("sts").spec, actions, 1.0 / 30.0), cameras=())
    session.recorder.start("again")
    session.run(2.0)
    again = session.recorder.finish(success=True).actions_TA
    shifts = {k: np.abs(again[k : k + 45] - actions[:45])[10:].max() for k in (0, 1, 2)}
    assert min(shifts.values()) < 0.012 and min(shifts, key=lambda k: shifts[k]) <= 1


def test_what_cannot_become_an_episode() -> None:
    session = Session()
    session.recorder.start("too short")
    session.run(0.02)
    with pytest.raises(RecordingError, match="too short"):
        session.recorder.finish(success=True)
    session.recorder.start("dark")
    session.recorder.see = lambda *_: None
    session.run(0.5)
    with pytest.raises(RecordingError, match="front"):
        session.recorder.finish(success=True)


def test_a_released_arm_ends_the_episode() -> None:
    session = Session()
    session.recorder.start("fall")
    session.run(1.0)
    session.bench.daemon.estop("test")
    session.run(0.3)
    session.bench.daemon.estop("test")  # the second press lets the torque go
    session.run(0.5)
    episode = session.recorder.finish(success=False, truncated=True)
    assert len(episode) in (38, 39, 40) and episode.truncated and not episode.terminated


def test_a_full_disk_leaves_the_motion_alone() -> None:
    """The writer hangs, then fails; the ticks go on and the next episodes are discarded, said in `trouble`."""
    session, recording = recorded(1.0)
    go = threading.Event()

    def write(_: Episode) -> None:
        go.wait(10.0)
        raise StorageError(errno.ENOSPC, "no space left on device")

    with Writer(write) as writer:
        writer.put(recording)
        session.run(0.5)
        assert session.bench.state == State.ACTIVE and writer.trouble == ""
        go.set()
        writer.put(recording)
        session.run(0.5)
        session.bench.bounded()
    assert session.bench.state == State.ACTIVE
    assert "no space" in writer.trouble and (writer.written, writer.discarded) == (0, 2)


def test_a_killed_recorder_loses_only_the_episode_at_hand(tmp_path: Path) -> None:
    _, recording = recorded(1.0)
    write_staged(tmp_path, "000000", recording)
    before = read_staged(tmp_path / "000000.safetensors")
    code = """
import os, signal, sys
from pathlib import Path
from unittest.mock import patch
from vla.data.staging import read_staged, write_staged
folder = Path(sys.argv[1])
episode = read_staged(folder / "000000.safetensors")
write_staged(folder, "000001", episode)
with patch("os.fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL)):
    write_staged(folder, "000002", episode)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={**os.environ}, timeout=60)
    assert done.returncode == -signal.SIGKILL
    names = sorted(path.name for path in tmp_path.glob("*.safetensors") if not path.name.startswith("."))
    assert names == ["000000.safetensors", "000001.safetensors"]
    after = read_staged(tmp_path / "000001.safetensors")
    np.testing.assert_array_equal(after.actions_TA, before.actions_TA)
