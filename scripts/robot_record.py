"""Verbs of `scripts.robot` that drive an arm: teleop, record, replay.

One thread ticks the arm and the source; episodes are staged by a writer thread as they end, and become a dataset when
the session is over. A recording thus survives a kill but for the episode at hand: `record` picks up what is staged.
"""

import contextlib
import itertools
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.numpy import save_file

from real_robot.calibration import ArmCalibration
from real_robot.core.clock import RealClock
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon
from real_robot.drivers.servo_arm import ServoArm
from real_robot.loop import run_loop
from real_robot.record.recorder import Driver, Recorder, Recording, RecordingError, embodiment_of
from real_robot.record.writer import Writer
from real_robot.teleop import keyboard
from real_robot.teleop.drive import Drive, Teleop
from real_robot.teleop.gamepad import Joystick
from real_robot.teleop.jog import JogSource
from real_robot.teleop.leader import Leader, same_names
from real_robot.teleop.scripted import Replay, Scripted
from vla.core.errors import GrasplineError, SpecMismatchError, unknown_name
from vla.core.types import Episode
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import SUFFIX, read_staged, write_staged

SOURCES = ("keyboard", "gamepad", "leader", "scripted")
HELP = "q/a w/s e/d r/f t/g y/h: joints    space: e-stop    Enter: next episode    Ctrl-D: end"
END, NEXT = "\x04", "\n"


@dataclass(kw_only=True)
class Session:
    """An energised arm with its source, and the keys of the terminal."""

    daemon: Daemon
    drive: Drive
    keys: keyboard.Keys
    ended: bool = False
    next: bool = False

    def tick(self) -> None:
        now_s = self.daemon.clock.now()
        for key in _typed():
            self._key(key, now_s)
        side = self.daemon.sides["arm"]
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
        run_loop(
            self.tick, self.daemon.clock, self.daemon.dt_s, lambda: going() and not self.ended, self.daemon.lateness
        )


def teleop(config: DictConfig) -> None:
    """Drives the arm from `source=` for `seconds`, without recording."""
    with _session(config, _source) as session:
        _run_for(session, config.seconds)
        print(session.daemon.state()["arm"].latched or "done")
        print(f"lateness {session.daemon.lateness}")


def record(config: DictConfig) -> None:
    """Records `episodes=` of `seconds` each to `out=`; Enter ends one early."""
    if config.out is None:
        raise GrasplineError("out=: name the dataset's folder")
    out, staging = Path(config.out), Path(f"{config.out}.staging")
    calibration = ArmCalibration.load(Path(config.calibration))
    recorder = Recorder(arm="arm", rate_hz=config.rate_hz, meta={"calibration": calibration.sha256})
    recorder.driver = Driver.TELEOP
    first = len(_staged(staging)) + (len(LeRobotSource(out)) if out.exists() else 0)
    with (
        Writer(_stager(staging, first)) as writer,
        _session(config, _source) as session,
    ):
        session.daemon.subscribe(recorder.tick)
        for index in range(first, first + config.episodes):
            print(f"episode {index}")
            recorder.start(config.task)
            _run_for(session, config.seconds)
            try:
                recording = recorder.finish(success=not session.ended, truncated=session.ended)
            except RecordingError as error:
                print(f"discarded: {error}")
            else:
                writer.put(recording)
            if session.ended or writer.trouble:
                break
        spec = embodiment_of(session.daemon.sides["arm"].arm.spec, (), config.rate_hz)
    if writer.trouble:
        raise GrasplineError(f"{writer.discarded} episodes discarded: {writer.trouble}; the others are in {staging}")
    staged = _staged(staging)
    if not staged:
        raise GrasplineError("no episode was recorded")
    write_dataset((read_staged(path) for path in staged), out, spec, total=len(staged))
    for path in staged:
        path.unlink()
    print(f"{len(staged)} episodes in {out}; their other columns are in {staging}/columns")


def replay(config: DictConfig) -> None:
    """Plays `episode=` of the dataset `out=` on the arm, after a slow move to its start."""
    dataset = LeRobotSource(Path(config.out))
    episode, dt_s = dataset[config.episode], dataset.spec.dt_s
    with _session(config, lambda _config, arm, _keys: _replay(arm, episode, dt_s)) as session:
        source = session.drive.source
        assert isinstance(source, Replay)
        session.run(lambda: not source.done)
        seen_J = session.daemon.sides["arm"].controller.commanded_J
        print(f"ended {np.abs(seen_J - episode.actions_TA[-1]).max():.3f} rad from the last action")


def _replay(arm: ServoArm, episode: Episode, dt_s: float) -> Replay:
    if episode.actions_TA.shape[1] != len(arm.spec.joints):
        raise SpecMismatchError(f"{episode.actions_TA.shape[1]} actions, {arm.spec.name} has {len(arm.spec.joints)}")
    return Replay(arm.spec, episode.actions_TA.astype(np.float64), dt_s)


@contextlib.contextmanager
def _session(
    config: DictConfig, source_of: Callable[[DictConfig, ServoArm, keyboard.Keys], Teleop]
) -> Iterator[Session]:
    """Torque on, the source driving; afterwards stopped and switched off whatever happened."""
    arm, keys, clock = _arm(config, config.port, config.calibration), keyboard.Keys(), RealClock()
    daemon = Daemon({"arm": arm}, clock=clock, park_at_end=arm.spec.park is not None)
    source = source_of(config, arm, keys)
    daemon.connect()
    try:
        daemon.enable()
        drive = Drive(daemon, source, token=daemon.lease(source.session).token)
        session = Session(daemon=daemon, drive=drive, keys=keys)
        with _signals(session), _raw_terminal():
            drive.start(align=config.align)
            yield session
    finally:
        daemon.shutdown("the session is over")


@contextlib.contextmanager
def _signals(session: Session) -> Iterator[None]:
    """As `Daemon.run` has them: `scripts.robot estop` and `reset` reach this process."""
    daemon = session.daemon

    def end(*_: object) -> None:
        session.ended = True

    def reset(*_: object) -> None:
        with contextlib.suppress(GrasplineError):
            daemon.reset()

    handlers = {
        signal.SIGINT: end,
        signal.SIGTERM: end,
        signal.SIGUSR1: lambda *_: daemon.estop("SIGUSR1"),
        signal.SIGUSR2: reset,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _source(config: DictConfig, arm: ServoArm, keys: keyboard.Keys) -> Teleop:
    if config.source == "keyboard":
        print(HELP)
        return JogSource(arm.spec, lambda now_s: keyboard.jog(keys.held(now_s), arm.spec), session="keyboard")
    if config.source == "gamepad":
        return JogSource(arm.spec, Joystick(Path(config.gamepad), arm.spec).read, session="gamepad")
    if config.source == "leader":
        leader_arm = _arm(config, config.leader_port, config.leader_calibration)
        leader_arm.connect()
        joints = same_names(leader_arm.spec, arm.spec)
        leader = Leader(leader_arm, arm.spec, joints, relative=config.relative)
        leader.engage()
        return leader
    if config.source == "scripted":  # a wave of 0.2 rad, to try everything else with
        return Scripted(arm.spec, lambda t: np.full(len(arm.spec.joints), 0.1 * (1.0 - np.cos(2.0 * t))))
    raise unknown_name("source", str(config.source), SOURCES)


def _arm(config: DictConfig, port: str | None, calibration: str | None) -> ServoArm:
    if port is None or calibration is None:
        raise GrasplineError("port= and calibration= are needed (leader_port=, leader_calibration= for a leader)")
    return instantiate(config.robot, _partial_=True)(calibration=ArmCalibration.load(Path(calibration)), port=port)


def _run_for(session: Session, seconds: float) -> None:
    session.next = False
    end_s = session.daemon.clock.now() + seconds
    session.run(lambda: session.daemon.clock.now() < end_s and not session.next)


def _staged(staging: Path) -> list[Path]:
    return sorted(path for path in staging.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def _stager(staging: Path, first: int) -> Callable[[Recording], None]:
    """Stages recordings, numbered from `first`: columns first, so an episode that is there has them."""
    numbers = itertools.count(first)

    def stage(recording: Recording) -> None:
        name = f"{next(numbers):06d}"
        (staging / "columns").mkdir(parents=True, exist_ok=True)
        save_file(dict(recording.columns), staging / "columns" / f"{name}{SUFFIX}")
        write_staged(staging, name, recording.episode)

    return stage


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
