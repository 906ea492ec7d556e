"""USB cameras on Linux: found by the serial number in sysfs, read by a thread that keeps the newest frame only.

What is special: `/dev/video0` and `/dev/video2` change places at every boot, and two wrist cameras that are exchanged
look alike to a program. A camera is therefore bound to its serial number, and a device without one is refused.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_robot.cameras.frames import CameraSpec, Frame
from vla.core.errors import GrasplineError, MissingAssetError, unknown_name

SYSFS = Path("/sys/class/video4linux")
WARM_UP_S = 5.0


def serials(sysfs: Path = SYSFS) -> dict[str, Path]:
    """Serial number -> device file, for every camera that captures (index 0; the others are metadata nodes).

    Raises:
        GrasplineError: two devices with one serial number, as cheap cameras have: they cannot be told apart.
    """
    found: dict[str, Path] = {}
    for node in sorted(sysfs.glob("video*")):
        index = node / "index"
        if index.exists() and index.read_text().strip() != "0":
            continue
        serial = _serial(node)
        if serial in found:
            raise GrasplineError(f"cameras {found[serial]} and /dev/{node.name} both have the serial '{serial}'")
        if serial:
            found[serial] = Path("/dev") / node.name
    return found


def open_camera(spec: CameraSpec, *, latency_s: float = 0.0, sysfs: Path = SYSFS) -> "V4l2Camera":
    """The camera with `spec.serial`. Raises UnknownNameError."""
    devices = serials(sysfs)
    if spec.serial not in devices:
        raise unknown_name("camera serial", spec.serial, devices)
    return V4l2Camera(spec, devices[spec.serial], latency_s=latency_s)


class V4l2Camera:
    """A device, or a film that stands in for one, behind OpenCV.

    Args:
        spec: size and rate asked for; another size is refused at `start`.
        device: file to open.
        latency_s: from the middle of the exposure to the frame in memory, as calibrated (0.125 s in UMI's set-up).
        clock: monotonic time [s].
    """

    def __init__(
        self, spec: CameraSpec, device: Path, *, latency_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spec, self._device, self._latency_s, self._clock = spec, device, latency_s, clock
        self._latest: Frame | None = None
        self._running = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def start(self) -> None:
        """Opens the device and waits for the first frame. Raises MissingAssetError, GrasplineError."""
        capture = _open(self._device, self._spec)
        self._running.set()
        self._latest = None
        self._thread = threading.Thread(target=self._read, args=(capture,), name=f"camera-{self._spec.name}")
        self._thread.daemon = True  # a driver that hangs in a read must not keep the program alive
        self._thread.start()
        until_s = self._clock() + WARM_UP_S
        while self._latest is None and self._clock() < until_s and self._thread.is_alive():
            time.sleep(0.005)
        frame = self._latest
        if frame is None:
            self.stop()
            raise GrasplineError(f"camera '{self._spec.name}' at {self._device} gave no frame in {WARM_UP_S} s")
        wanted = (self._spec.height, self._spec.width, 3)
        if frame.image.shape != wanted:
            self.stop()
            raise GrasplineError(f"camera '{self._spec.name}' gives {frame.image.shape}, expected {wanted}")

    def latest(self) -> Frame | None:
        return self._latest

    def stop(self) -> None:
        self._running.clear()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _read(self, capture: Any) -> None:
        seq = 0
        while self._running.is_set():
            taken, bgr = capture.read()
            if not taken:  # unplugged: no more frames, and their age tells
                break
            time_s = self._clock() - self._latency_s
            self._latest = Frame(seq=seq, time_s=time_s, image=bgr[:, :, ::-1].copy())
            seq += 1
        capture.release()


def _serial(node: Path) -> str:
    """Of the USB device that a video node belongs to: the nearest ancestor with the file `serial`."""
    device = (node / "device").resolve()
    for folder in (device, *device.parents):
        if (folder / "serial").is_file():
            return (folder / "serial").read_text().strip()
    return ""


def _open(device: Path, spec: CameraSpec) -> Any:
    try:
        import cv2  # an optional part's own door
    except ImportError as error:
        raise MissingAssetError("cameras need OpenCV: uv pip install opencv-python-headless") from error
    capture = cv2.VideoCapture(str(device))
    if not capture.isOpened():
        raise MissingAssetError(f"camera '{spec.name}': cannot open {device}")
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, spec.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, spec.height)
    capture.set(cv2.CAP_PROP_FPS, spec.rate_hz)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a queue of old pictures is latency
    return capture
