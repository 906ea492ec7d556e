"""A twin in a process of its own: the arm behind a pseudo-terminal, its cameras behind memory-mapped files.

    with twin_process("so101", folder, cameras=[spec], start_rad=[...]) as port: SerialTransport(port)

An arm and its cameras have processors of their own; a twin that shares an interpreter with the control loop would make
both late. Ends when its standard input closes, so it does not outlive who started it.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.shared import FrameWriter
from real_robot.cameras.twin import TwinCamera, rendered, view
from real_robot.loop import first_in_line
from real_robot.twin import arms
from real_robot.twin.dxl_bus import DxlBusTwin
from real_robot.twin.link import PtyLink
from real_robot.twin.physics import MujocoPlant
from real_robot.twin.sts_bus import StsBusTwin
from vla.core.errors import GrasplineError, unknown_name

type AnyTwin = StsBusTwin | DxlBusTwin

TWINS: dict[str, Callable[[], AnyTwin]] = {"so101": partial(arms.so101, plant="mujoco"), "koch": arms.koch}
SETTLE_S = 2.0  # a limp arm sinks: nobody switches it on before it lies still
VIEWS: dict[str, dict[str, Any]] = {
    "front": {"azimuth_deg": 180.0},
    "side": {"azimuth_deg": 90.0},
    "top": {"elevation_deg": -89.0},
}


def make_twin(name: str) -> AnyTwin:
    """With MuJoCo behind it where there is a model. Raises UnknownNameError."""
    if name not in TWINS:
        raise unknown_name("twin", name, TWINS)
    return TWINS[name]()


def frames_at(folder: Path, camera: str) -> Path:
    """Where a camera's frames are."""
    return folder / f"{camera}.frames"


@contextlib.contextmanager
def twin_process(
    name: str, folder: Path, *, cameras: Sequence[CameraSpec] = (), start_rad: Sequence[float] | None = None
) -> Iterator[Path]:
    """The path of the port, while the process lives. Raises GrasplineError when it does not start."""
    told = json.dumps({"cameras": [asdict(camera) for camera in cameras], "start_rad": start_rad and list(start_rad)})
    command = [sys.executable, "-W", "ignore", "-m", "real_robot.twin.process", name, str(folder), told]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for who parks the arm
        env={"MUJOCO_GL": "egl", **os.environ},
    )
    try:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        if not path:
            raise GrasplineError(f"the twin of {name} did not start (its words are above)")
        yield Path(path)
    finally:
        process.communicate()  # closes its input, which ends it


def serve(name: str, folder: Path, cameras: Sequence[CameraSpec], start_rad: Sequence[float] | None) -> None:
    """Until standard input closes."""
    twin = make_twin(name)
    if start_rad is not None:
        twin.place(start_rad)
    with contextlib.ExitStack() as stack:
        with first_in_line(level=20):  # its thread inherits that
            link = stack.enter_context(PtyLink(twin, folder))
        take = [_film(twin, camera, folder) for camera in cameras]
        for each in take:
            each()  # the first picture takes longest
        time.sleep(SETTLE_S)
        sys.stdout.write(f"{link.path}\n")
        sys.stdout.flush()
        pause_s = min([0.5 / camera.rate_hz for camera in cameras], default=1.0)
        while not select.select([sys.stdin], [], [], pause_s)[0]:
            for each in take:
                each()


def _film(twin: AnyTwin, spec: CameraSpec, folder: Path) -> Callable[[], None]:
    """Its camera, as a function that takes the picture that is due, if one is."""
    plant = twin.plant
    if not isinstance(plant, MujocoPlant):
        raise GrasplineError(f"camera '{spec.name}': this twin has no MuJoCo model to look at")
    look = view(**VIEWS.get(spec.name, VIEWS["front"]))
    draw = rendered(plant.model, plant.data, look, spec.height, spec.width, lock=twin.lock)
    camera = TwinCamera(spec, draw, clock=time.monotonic)
    writer = FrameWriter(frames_at(folder, spec.name), spec.height, spec.width)
    camera.start()
    seen: list[int] = []

    def take() -> None:
        frame = camera.latest()
        if frame is not None and frame.seq not in seen:
            writer.write(frame)
            seen[:] = [frame.seq]

    return take


if __name__ == "__main__":
    arguments = json.loads(sys.argv[3])
    specs = [CameraSpec(**fields) for fields in arguments["cameras"]]
    serve(sys.argv[1], Path(sys.argv[2]), specs, arguments["start_rad"])
