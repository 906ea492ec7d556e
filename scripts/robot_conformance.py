"""Verbs of `scripts.robot` that need no arm: the conformance suite and the loop's lateness."""

import contextlib
import os
import struct
import sys
import tempfile
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from real_robot.cameras.eyes import Eyes
from real_robot.conformance import support
from real_robot.conformance.case import Product, Terminal
from real_robot.conformance.lateness import measure
from real_robot.conformance.support import PeerRow
from real_robot.conformance.table import cases, run_suite, score
from real_robot.daemon import Daemon
from real_robot.teleop import keyboard
from real_robot.teleop.drive import Drive
from real_robot.teleop.gamepad import ESTOP, Joystick
from real_robot.teleop.jog import JogSource
from scripts.robot_record import Session
from vla.core.errors import GrasplineError, unknown_name
from vla.core.spec import Embodiment
from vla.core.types import Episode
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import SUFFIX, read_staged, write_staged

DEVICES = ("sts", "dxl")


def conformance(config: DictConfig) -> None:
    """Prints the table and `passed/total` last; exit status 0 only when all pass."""
    numbers, peers, outcomes = set(config.cases or range(1, 61)), [], []
    rows = [case for case in cases(PRODUCT, soak_hours=config.soak_hours) if case.number in numbers]
    for outcome in run_suite(rows, _devices(config.device)):
        outcomes.append(outcome)
        print(outcome, flush=True)
    if config.peer is not None:
        peers = _peer(config.peer, numbers)
    if config.out is not None:
        Path(config.out).write_text(support.page(outcomes, peers))
    passed, total = score(outcomes)
    print(f"{passed}/{total}")
    if passed < total:
        sys.exit(1)


def bench(config: DictConfig) -> None:
    """Prints how late ticks begin, idle and driving a paced twin."""
    for device in _devices(config.device):
        print(f"{device}, {config.busy} busy processes")
        print(measure(device, seconds=config.seconds, num_busy=config.busy))


def _read(folder: Path) -> list[Episode]:
    return [read_staged(path) for path in sorted(folder.glob(f"*{SUFFIX}")) if not path.name.startswith(".")]


def _publish(episodes: Sequence[Episode], out: Path, spec: Embodiment) -> LeRobotSource:
    write_dataset(iter(episodes), out, spec, total=len(episodes))
    return LeRobotSource(out)


@contextlib.contextmanager
def _keyboard(daemon: Daemon) -> Iterator[Terminal]:
    """A session as `teleop` runs it, its standard input a terminal of ours. A foot pedal is a keyboard of one key."""
    master, slave = os.openpty()
    tty.setraw(slave)
    before, sys.stdin = sys.stdin, os.fdopen(slave)
    try:
        spec = next(iter(daemon.sides.values())).arm.spec
        session = _session(daemon, JogSource(spec, lambda _: keyboard.jog(frozenset(), spec)))
        yield Terminal(press=lambda: os.write(master, keyboard.ESTOP.encode()), tick=session.tick)
    finally:
        sys.stdin.close()
        sys.stdin = before
        os.close(master)


@contextlib.contextmanager
def _gamepad(daemon: Daemon) -> Iterator[Terminal]:
    """The same with a pad, whose device file is a pipe of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path, spec = Path(folder) / "js0", next(iter(daemon.sides.values())).arm.spec
        os.mkfifo(path)
        pad = Joystick(path, spec)
        with path.open("wb", buffering=0) as device:
            session = _session(daemon, JogSource(spec, pad.read, session="gamepad", stops=pad.stops))
            short = b"".join(struct.pack("<IhBB", 0, value, 1, ESTOP) for value in (1, 0))  # down and up in one tick
            yield Terminal(press=lambda: device.write(short), tick=session.tick)
        pad.close()


def _session(daemon: Daemon, source: JogSource) -> Session:
    """Beside whoever drives."""
    arm, keys = next(iter(daemon.sides)), keyboard.Keys()
    holder = daemon.leases.holder
    assert holder is not None, "somebody drives"
    drive = Drive(daemon, source, token=holder.token, arm=arm)
    return Session(daemon=daemon, drive=drive, keys=keys, eyes=Eyes({}, start_s=daemon.clock.now()))


TERMINALS = {"keyboard": _keyboard, "gamepad": _gamepad}
PRODUCT = Product(write=write_staged, read=_read, publish=_publish, terminals=TERMINALS)


def _peer(name: str, numbers: set[int]) -> list[PeerRow]:
    """What a stock driver does; not in the score, which is ours."""
    if name != "lerobot":
        raise unknown_name("peer", name, ["lerobot"])
    try:
        from real_robot.conformance import lerobot_peer  # an optional extra, behind its own door
    except ImportError as error:
        raise GrasplineError(f"peer=lerobot: lerobot is not installed with its Feetech extra ({error})") from error
    rows = []
    for number in sorted(numbers & set(lerobot_peer.RUNS)):
        passed, detail = lerobot_peer.run_peer(number)
        rows.append(PeerRow(number=number, passed=passed, detail=" ".join(detail.split()).replace("|", "/")))
        print(f"{number:2d} lerobot {'pass' if passed else 'FAIL'} {rows[-1].detail}", flush=True)
    return rows


def _devices(device: str) -> tuple:
    if device == "all":
        return DEVICES
    if device not in DEVICES:
        raise unknown_name("device", device, [*DEVICES, "all"])
    return (device,)


VERBS = {"conformance": conformance, "bench": bench}
