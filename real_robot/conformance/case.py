"""One row of the suite, and what rows need from outside this package."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from real_robot.conformance.bench import Device
from real_robot.daemon import Daemon
from vla.core.protocols import EpisodeSource
from vla.core.spec import Embodiment
from vla.core.types import Episode


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """Something with which an operator stops an arm. `tick` is what the loop then calls instead of `Daemon.tick`."""

    press: Callable[[], object]
    tick: Callable[[], object]


type Channel = Callable[[Daemon], AbstractContextManager[Terminal]]


@dataclass(frozen=True, kw_only=True)
class Product:
    """What rows need of the layers above this package; `scripts.robot_conformance` has it.

    write      keeps an episode under a name in a folder, all or nothing; OSError when the disk refuses
    read       every whole episode of a folder, in the order of their names
    publish    episodes -> dataset in a folder that does not exist yet, opened again
    terminals  by name: where an operator stops an arm
    """

    write: Callable[[Path, str, Episode], object]
    read: Callable[[Path], list[Episode]]
    publish: Callable[[Sequence[Episode], Path, Embodiment], EpisodeSource]
    terminals: Mapping[str, Channel]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault and what shows that it is handled.

    run      builds its own bench, raises CaseFailed, returns the measured numbers in words; None: nothing runs yet
    missing  what of the case is not built; then it does not count as passed, whatever `run` says
    devices  where it runs
    absent   why it runs nowhere else, where the fault could exist there; then it is not built, else not applicable
    """

    number: int
    title: str
    run: Callable[[Device], str] | None = None
    missing: str = ""
    devices: tuple[Device, ...] = ("sts", "dxl")
    absent: str = ""
