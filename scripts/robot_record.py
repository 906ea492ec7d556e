"""Verbs of `scripts.robot` that drive an arm: teleop, record, replay.

One thread ticks the arm and the source, and looks through the cameras; one that shows nothing usable for half a second
pauses the arm. Episodes are staged by a writer thread as they end, and become a dataset when the session is over. A
recording thus survives a kill but for the episode at hand: `record` picks up what is staged.
"""

import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from real_robot.calibration import ArmCalibration
from real_robot.cameras.eyes import Eyes
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.core.types import ArmSpec
from real_robot.daemon import Daemon
from real_robot.loop import first_in_line, run_loop
from real_robot.record.recorder import Driver, Recorder, RecordingError, embodiment_of
from real_robot.record.writer import Writer
from real_robot.teleop import keyboard
from real_robot.teleop.drive import Drive, Teleop
from real_robot.teleop.gamepad import Joystick
from real_robot.teleop.jog import JogSource
from real_robot.teleop.leader import Leader, same_names
from real_robot.teleop.scripted import Replay, Scripted
from scripts.robot_cell import ARM, Cell, cell, connected
from scripts.robot_staging import Staging
from vla.core.errors import GrasplineError, SpecMismatchError, unknown_name
from vla.core.types import Episode
from vla.data.lerobot import LeRobotSource

SOURCES = ("keyboard", "gamepad", "leader", "scripted")
HELP = "q/a w/s e/d r/f t/g y/h: joints    space: e-stop    Enter: next episode    Ctrl-D: end"
END, NEXT = "\x04", "\n"


@dataclass(kw_only=True)
class Session:
    """An energised arm with its source, its cameras, and the keys of the terminal."""

    daemon: Daemon
    drive: Drive
    keys: keyboard.Keys
    eyes: Eyes
    recorder: Recorder | None = None
    ended: bool = False
    next: bool = False

    def tick(self) -> None:
        now_s = self.daemon.clock.now()
        for key in _typed():
            self._key(key, now_s)
        source = self.drive.source
        for _ in range(source.stops() if isinstance(source, JogSource) else 0):
            self.daemon.estop(source.session)
        for finding in self.eyes.look(now_s):
            self.daemon.fail(finding)
            print(f"\n{finding}")
            self.ended = (
                self.ended or self.recorder is not None
            )  # what goes on without its pictures is no demonstration
        if self.recorder is not None:
            for name, frame in (self.eyes.frames or {}).items():
                self.recorder.see(name, frame)
        side = self.daemon.sides[ARM]
        pressed = self.keys.held(now_s) - {keyboard.ESTOP}
        if side.state == State.PAUSED and side.controller.at_rest and pressed:
            with contextlib.suppress(RefusedError):  # it will be asked for again while the key is down
                self.drive.start(align=True)
        self.drive.step()
        self.daemon.tick()
        self.ended = self.ended or bool(self.daemon.ending) or side.state in (State.FAULT, State.ESTOP)

    def _key(self, key: str, now_s: float) -> None:
        if key == keyboard.ESTOP:
            self.daemon.estop("keyboard")
        elif key == END:
            self.ended = True
        elif key == NEXT:
            self.next = True
        else:
            self.keys.press(key, now_s)

    def run(self, going: Callable[[], bool]) -> None:
        """Ticks while `going()` and nobody has ended it."""
        daemon = self.daemon
        with first_in_line():
            run_loop(self.tick, daemon.clock, daemon.dt_s, lambda: going() and not self.ended, daemon.lateness)


def teleop(config: DictConfig) -> None:
    """Drives the arm from `source=` for `seconds`, without recording."""
    with cell(config) as one, _session(config, one, _source) as session:
        _run_for(session, config.seconds)
        print(session.daemon.state()[ARM].latched or "done")
        print(f"lateness {session.daemon.lateness}")


def record(config: DictConfig) -> None:
    """Records `episodes=` of `seconds` each to `out=`; Enter ends one early."""
    if config.out is None:
        raise GrasplineError("out=: name the dataset's folder")
    staging = Staging(Path(config.out))
    with cell(config) as one, staging.writing() as writer:
        specs = [camera.spec for camera in one.cameras.values()]
        meta = {"calibration": one.calibration.sha256}
        recorder = Recorder(arm=ARM, cameras=tuple(one.cameras), rate_hz=config.rate_hz, meta=meta)
        recorder.driver = Driver.TELEOP
        with _session(config, one, _source) as session:
            session.recorder = recorder
            session.daemon.subscribe(recorder.tick)
            for index in range(staging.first, staging.first + config.episodes):
                print(f"episode {index}")
                _one(config, session, recorder, writer)
                if session.ended or writer.trouble:
                    break
            spec = embodiment_of(session.daemon.sides[ARM].arm.spec, specs, config.rate_hz)
    print(f"{staging.publish(spec)} episodes in {staging.out}")


def _one(config: DictConfig, session: Session, recorder: Recorder, writer: Writer) -> None:
    recorder.start(config.task)
    _run_for(session, config.seconds)
    try:
        writer.put(recorder.finish(success=not session.ended, truncated=session.ended))
    except RecordingError as error:
        print(f"discarded: {error}")


def replay(config: DictConfig) -> None:
    """Plays `episode=` of the dataset `out=` on the arm, after a slow move to its start."""
    dataset = LeRobotSource(Path(config.out))
    episode, dt_s = dataset[config.episode], dataset.spec.dt_s
    with (
        cell(config) as one,
        _session(config, one, lambda _config, spec, _keys: _replay(spec, episode, dt_s)) as session,
    ):
        source = session.drive.source
        assert isinstance(source, Replay)
        session.run(lambda: not source.done)
        seen_J = session.daemon.sides[ARM].controller.commanded_J
        print(f"ended {np.abs(seen_J - episode.actions_TA[-1]).max():.3f} rad from the last action")


def _replay(spec: ArmSpec, episode: Episode, dt_s: float) -> Replay:
    if episode.actions_TA.shape[1] != len(spec.joints):
        raise SpecMismatchError(f"{episode.actions_TA.shape[1]} actions, {spec.name} has {len(spec.joints)}")
    return Replay(spec, episode.actions_TA.astype(np.float64), dt_s)


@contextlib.contextmanager
def _session(
    config: DictConfig, one: Cell, source_of: Callable[[DictConfig, ArmSpec, keyboard.Keys], Teleop]
) -> Iterator[Session]:
    """Torque on, the source driving; afterwards stopped and switched off whatever happened."""
    keys = keyboard.Keys()
    source = source_of(config, one.build().spec, keys)
    with connected(one) as daemon:
        daemon.enable()
        eyes = Eyes(one.cameras, start_s=daemon.clock.now())
        drive = Drive(daemon, source, token=daemon.lease(source.session).token, arm=ARM)
        with _raw_terminal():
            drive.start(align=config.align)
            yield Session(daemon=daemon, drive=drive, keys=keys, eyes=eyes)


def _source(config: DictConfig, spec: ArmSpec, keys: keyboard.Keys) -> Teleop:
    if config.source == "keyboard":
        print(HELP)
        return JogSource(spec, lambda now_s: keyboard.jog(keys.held(now_s), spec), session="keyboard")
    if config.source == "gamepad":
        pad = Joystick(Path(config.gamepad), spec)
        return JogSource(spec, pad.read, session="gamepad", stops=pad.stops)
    if config.source == "leader":
        return _leader(config, spec)
    if config.source == "scripted":  # a wave of 0.2 rad, to try everything else with
        return Scripted(spec, lambda t: np.full(len(spec.joints), 0.1 * (1.0 - np.cos(2.0 * t))))
    raise unknown_name("source", str(config.source), SOURCES)


def _leader(config: DictConfig, spec: ArmSpec) -> Leader:
    if config.leader_port is None or config.leader_calibration is None:
        raise GrasplineError("leader_port= and leader_calibration=: name the leader's port and its file")
    calibration = ArmCalibration.load(Path(config.leader_calibration))
    arm = instantiate(config.robot, _partial_=True)(calibration=calibration, port=config.leader_port)
    arm.connect()
    leader = Leader(arm, spec, same_names(arm.spec, spec), relative=config.relative)
    leader.engage()
    return leader


def _run_for(session: Session, seconds: float) -> None:
    session.next = False
    end_s = session.daemon.clock.now() + seconds
    session.run(lambda: session.daemon.clock.now() < end_s and not session.next)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys one by one, without echo; nothing changes where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _typed() -> str:
    """What has been typed since the last time."""
    if not sys.stdin.isatty() or not select.select([sys.stdin], [], [], 0.0)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 64).decode(errors="ignore")


VERBS: dict[str, Callable[[DictConfig], None]] = {"teleop": teleop, "record": record, "replay": replay}
