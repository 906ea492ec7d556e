"""The pick task's cell on a virtual clock: physics, servos, wire, driver, daemon, cameras. One per episode.

What is special: a servo's EEPROM outlives the cell. An arm comes from its maker with encoders at unknown angles
(`serial` says which arm it is); `calibrate` sweeps it as a hand would, stores what it found in the servos, and `Memory`
carries that from one cell to the next, as it would survive a night without power.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from real_robot.calibration import ArmCalibration, Sweep, finish_sweep
from real_robot.cameras.frames import CameraSpec, Image
from real_robot.cameras.twin import TwinCamera
from real_robot.core.arms import so101_spec
from real_robot.core.clock import VirtualClock
from real_robot.core.collision import CollisionScene, Workspace
from real_robot.core.filter import Scene
from real_robot.daemon import Daemon
from real_robot.drivers.build import so101 as so101_arm
from real_robot.loop import run_loop
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink
from real_robot.twin.pick_scene import CAMERAS, PickScene
from real_robot.twin.sts_bus import StsBusTwin
from vla.core.errors import CorruptFileError, MissingAssetError

RATE_HZ = 20.0  # of cameras, dataset and policy
TABLE_STOP_M, TABLE_SLOW_M = 0.004, 0.02  # nearer than the filter's own: fingers close a centimetre above the table
SWEEP_READINGS = 100


@dataclass(frozen=True, kw_only=True)
class Memory:
    """EEPROM of each servo of one arm, in the order of its joints."""

    eeproms: tuple[bytes, ...]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([eeprom.hex() for eeprom in self.eeproms]) + "\n")

    @staticmethod
    def load(path: Path) -> "Memory":
        if not path.is_file():
            raise MissingAssetError(f"{path}: no such memory of servos; the stage `calibrate` makes it")
        try:
            return Memory(eeproms=tuple(bytes.fromhex(text) for text in json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise CorruptFileError(f"{path}: not a memory of servos ({error})") from error


class Cell:
    """Everything between the policy's socket and the cube. `start` it once; `shutdown` of its daemon ends it.

    Args:
        scene: its physics; one scene serves many cells, one after the other.
        calibration: what the servos were told, or None for an arm from its maker.
        memory: of the servos.
        serial: of the arm.
        seed: of the cameras' noise.
        obstacles: for the filter; `table()` makes it, once for all cells.
    """

    def __init__(
        self,
        scene: PickScene,
        *,
        calibration: ArmCalibration | None = None,
        memory: Memory | None = None,
        serial: int = 0,
        seed: int = 0,
        obstacles: Scene | None = None,
    ) -> None:
        self.scene, self.clock = scene, VirtualClock(start_s=100.0, step_s=0.01)
        self.twin = _twin(scene, self.clock, serial, memory)
        link = VirtualLink(self.twin, sleep_until=self.clock.sleep_until)
        self.arm = so101_arm(calibration=calibration, open_port=link.open, clock=self.clock)
        self.daemon = Daemon(
            {"arm": self.arm}, clock=self.clock, scenes=None if obstacles is None else {"arm": obstacles}
        )
        self.cameras: Mapping[str, TwinCamera] = {
            spec.name: self._camera(spec, seed + place) for place, spec in enumerate(camera_specs(scene.image_size))
        }

    def start(self, init_state: int) -> None:
        """The scene as `layout(init_state)` says; a hand holds the arm there until it holds itself."""
        self.twin.advance()
        self.scene.reset(init_state)
        self.twin.place(self.scene.positions_rad)
        self._hold(True)
        self.daemon.connect()
        self.daemon.enable()
        self._hold(False)
        for camera in self.cameras.values():
            camera.start()
        self.run(0.3)

    def run(self, seconds: float) -> None:
        """Ticks, with nobody driving."""
        end_s = self.clock.now() + seconds
        run_loop(self.daemon.tick, self.clock, self.daemon.dt_s, lambda: self.clock.now() < end_s, self.daemon.lateness)

    def calibrate(self) -> tuple[ArmCalibration, Memory]:
        """As `scripts.robot calibrate`: every joint from stop to stop by hand, then homed and stored."""
        arm, spec = self.arm, self.arm.spec
        arm.open()
        arm.check_identity()
        low_J, high_J = (np.array([getattr(joint, end) for joint in spec.joints]) for end in ("low", "high"))
        sweep, there = Sweep(), np.linspace(0.0, 2.0 * np.pi, SWEEP_READINGS)
        self._hold(True)
        for angle in there:  # from the middle to one stop, to the other, and back
            self.twin.place((0.5 * (low_J + high_J) + 0.5 * np.sin(angle) * (high_J - low_J)).tolist())
            sweep.update([arm.get(device_id, "present_position") for device_id in arm.ids])
        self._hold(False)
        offsets = [arm.get(device_id, "homing_offset") for device_id in arm.ids]
        calibration = finish_sweep(sweep, spec, device_ids=arm.ids, offsets=offsets)
        arm.store(calibration)
        arm.check_calibration()
        arm.close()
        return calibration, Memory(eeproms=tuple(servo.stored for servo in self.twin.servos))

    def _hold(self, held: bool) -> None:
        for joint in range(len(self.scene.positions_rad)):
            self.scene.block(joint, held)

    def _camera(self, spec: CameraSpec, seed: int) -> TwinCamera:
        def draw(_: float) -> Image:
            self.twin.advance()
            return self.scene.draw(spec.name)

        return TwinCamera(spec, draw, clock=self.clock.now, seed=seed)


def camera_specs(image_size: int) -> tuple[CameraSpec, ...]:
    return tuple(
        CameraSpec(name=name, serial=f"twin-{name}", height=image_size, width=image_size, rate_hz=RATE_HZ)
        for name in CAMERAS
    )


def table() -> CollisionScene:
    """The filter's geometry: links and table."""
    return CollisionScene(so101_spec(), workspace=Workspace(), stop_m=TABLE_STOP_M, slow_m=TABLE_SLOW_M)


def _twin(scene: PickScene, clock: VirtualClock, serial: int, memory: Memory | None) -> StsBusTwin:
    """Six servos whose encoders were mounted anyhow, moving the scene."""
    twin = so101(clock=clock.now)
    zeros = np.random.default_rng(serial).integers(0, 4096, len(twin.servos))
    for place, servo in enumerate(twin.servos):
        servo.zero_count = int(zeros[place])
        if memory is not None:
            servo.stored = memory.eeproms[place]
            servo.memory[: servo.eeprom_size] = servo.stored
        servo.update_command()
    twin.plant = scene
    twin.place(scene.positions_rad)
    return twin
