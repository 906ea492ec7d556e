"""What the verbs that move an arm share: the arm of `robot=` on `port=` or a twin of it, its cameras, its end.

port=twin puts a twin behind a pseudo-terminal, in a process of its own, MuJoCo behind it where the arm has a model; a
camera `twin` sees it. From there on no word is different from an arm on a cable.
"""

import contextlib
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from real_robot.calibration import ArmCalibration
from real_robot.cameras.frames import Camera, CameraSpec
from real_robot.cameras.running import RunningCamera
from real_robot.cameras.shared import SharedCamera
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.cameras.v4l2 import open_camera
from real_robot.conformance.bench import stored_calibration
from real_robot.conformance.lateness import TWIN_SLACK_S
from real_robot.core.clock import RealClock
from real_robot.core.collision import CollisionScene, Workspace
from real_robot.core.types import ArmSpec
from real_robot.daemon import Daemon
from real_robot.drivers.servo_arm import ServoArm
from real_robot.twin.process import frames_at, make_twin, twin_process
from vla.core.errors import GrasplineError, unknown_name

ARM = "arm"  # the name of the only arm in its daemon
TWIN, PATTERN = "twin", "pattern"
SCENES = ("self", "table", "none")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """build: the arm, not connected; takes `normal_speed`. cameras: running."""

    build: Callable[..., ServoArm]
    calibration: ArmCalibration
    cameras: Mapping[str, Camera]
    scene: str


@contextlib.contextmanager
def cell(config: DictConfig) -> Iterator[Cell]:
    """The arm and the cameras of a config; nothing is opened on the arm yet."""
    if config.scene not in SCENES:
        raise unknown_name("scene", str(config.scene), SCENES)
    with contextlib.ExitStack() as stack:
        make: Callable[..., ServoArm] = instantiate(config.robot, _partial_=True)
        specs = camera_specs(config.cameras)
        options: dict[str, Any] = {}
        folder = None
        if config.port == TWIN:
            name, spec = str(config.robot["_target_"]).rpartition(".")[2], make(calibration=None).spec
            if config.start is not None and len(config.start) != len(spec.joints):
                raise GrasplineError(f"start= has {len(config.start)} angles, {name} {len(spec.joints)} joints")
            calibration = stored_calibration(make_twin(name), spec)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            seen = [camera for camera, _ in specs.values() if camera.serial == TWIN]
            process = twin_process(name, folder, cameras=seen, start_rad=config.start)
            options = {"port": stack.enter_context(process), "slack_s": TWIN_SLACK_S}
        else:
            calibration, options["port"] = calibration_of(config.calibration), port_of(config.port)
        cameras = {name: _camera(camera, latency_s, folder) for name, (camera, latency_s) in specs.items()}
        for camera in cameras.values():
            camera.start()
            stack.callback(camera.stop)
        build = partial(make, calibration=calibration, **options)
        yield Cell(build=build, calibration=calibration, cameras=cameras, scene=config.scene)


@contextlib.contextmanager
def connected(one: Cell, **changed: bool) -> Iterator[Daemon]:
    """A daemon with the arm connected, without torque; parked if possible and switched off whatever happens."""
    arm = one.build(**changed)
    scene = _scene(one.scene, arm.spec)
    daemon = Daemon(
        {ARM: arm},
        clock=RealClock(),
        scenes=None if scene is None else {ARM: scene},
        park_at_end=arm.spec.park is not None,
    )
    daemon.connect()
    try:
        with signals(daemon):
            yield daemon
    finally:
        daemon.shutdown(daemon.ending or "the session is over")


@contextlib.contextmanager
def signals(daemon: Daemon) -> Iterator[None]:
    """As `Daemon.run` has them, for loops of our own: `scripts.robot estop` and `reset` reach this process."""

    def end(number: int, _: object) -> None:
        daemon.ending = signal.Signals(number).name

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


def confirmation(config: DictConfig) -> Callable[[str], Callable[[], bool]]:
    """Says what comes next; the function that it gives is true until Enter was typed. confirm=false never waits."""

    def wait(words: str) -> Callable[[], bool]:
        if not config.confirm:
            print(words, flush=True)
            return lambda: False
        if not sys.stdin.isatty():
            raise GrasplineError("standard input is no terminal, nobody can confirm: say confirm=false to go without")
        print(f"{words}: Enter goes on, Ctrl-C ends", flush=True)
        return lambda: not _entered()

    return wait


def port_of(port: str | None) -> str:
    if port is None:
        raise GrasplineError("port=: name the serial port, best one of /dev/serial/by-id, or port=twin")
    return str(port)


def calibration_of(path: str | None) -> ArmCalibration:
    if path is None:
        raise GrasplineError("calibration=: name the arm's file; `calibrate` makes it")
    return ArmCalibration.load(Path(path))


def camera_specs(described: DictConfig | None) -> dict[str, tuple[CameraSpec, float]]:
    """(camera, latency [s]) from {name: serial number | twin | pattern, or a mapping with serial, height, ...}."""
    return {str(name): _spec(str(name), one) for name, one in (described or {}).items()}


def _spec(name: str, described: Any) -> tuple[CameraSpec, float]:
    given = {str(key): value for key, value in described.items()} if isinstance(described, DictConfig) else None
    fields: dict[str, Any] = {"serial": None, "height": 480, "width": 640, "rate_hz": 30.0, "latency_s": 0.0}
    for key in given or ():
        if key not in fields:
            raise unknown_name(f"key of camera '{name}'", key, fields)
    fields |= {"serial": described} if given is None else given
    if fields["serial"] is None:
        raise GrasplineError(f"camera '{name}': serial= names the device, or is {TWIN} or {PATTERN}")
    latency_s, fields["serial"] = float(fields.pop("latency_s")), str(fields["serial"])
    return CameraSpec(name=name, **fields), latency_s


def _camera(spec: CameraSpec, latency_s: float, twin: Path | None) -> Camera:
    """`twin`: the folder of the twin's frames."""
    if spec.serial == PATTERN:
        return RunningCamera(TwinCamera(spec, pattern(spec.height, spec.width), clock=time.monotonic))
    if spec.serial != TWIN:
        return open_camera(spec, latency_s=latency_s)
    if twin is None:
        raise GrasplineError(f"camera '{spec.name}' looks at a twin: that needs port=twin")
    return SharedCamera(spec, frames_at(twin, spec.name))


def _scene(kind: str, spec: ArmSpec) -> CollisionScene | None:
    if kind == "none" or spec.mjcf is None:
        return None
    return CollisionScene(spec, workspace=Workspace(table_z=0.0 if kind == "table" else None))


def _entered() -> bool:
    if not select.select([sys.stdin], [], [], 0.0)[0]:
        return False
    sys.stdin.readline()
    return True
