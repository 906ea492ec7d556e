"""Serial numbers from a made-up sysfs; frames from a film that stands in for a device."""

import time
from pathlib import Path

import numpy as np
import pytest

from real_robot.cameras.frames import CameraSpec
from real_robot.cameras.v4l2 import V4l2Camera, open_camera, serials
from vla.core.errors import GrasplineError, MissingAssetError, UnknownNameError

cv2 = pytest.importorskip("cv2")
SPEC = CameraSpec(name="wrist", serial="A1", height=48, width=64, rate_hz=30.0)


def plug(root: Path, number: int, port: str, serial: str | None, index: int = 0) -> None:
    """A node as the kernel lays it out: video4linux/videoN/device -> the interface below the USB device."""
    usb = root / "devices" / port
    (usb / "interface").mkdir(parents=True, exist_ok=True)
    if serial is not None:
        (usb / "serial").write_text(serial + "\n")
    node = root / "video4linux" / f"video{number}"
    node.mkdir(parents=True)
    (node / "index").write_text(f"{index}\n")
    (node / "device").symlink_to(usb / "interface")


def test_serials_follow_the_device_not_the_number(tmp_path: Path) -> None:
    for folder, first in (("boot1", 0), ("boot2", 2)):
        root = tmp_path / folder
        plug(root, first, "1-1", "A1")
        plug(root, first + 1, "1-1", "A1", index=1)  # metadata
        plug(root, 2 - first, "1-2", "B2")
        plug(root, 7, "1-3", None)
        found = serials(root / "video4linux")
        assert found == {"A1": Path(f"/dev/video{first}"), "B2": Path(f"/dev/video{2 - first}")}


def test_two_devices_with_one_serial_are_refused(tmp_path: Path) -> None:
    plug(tmp_path, 0, "1-1", "SN0001")
    plug(tmp_path, 2, "1-2", "SN0001")
    with pytest.raises(GrasplineError, match="both have the serial"):
        serials(tmp_path / "video4linux")


def test_a_camera_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    plug(tmp_path, 0, "1-1", "A2")
    with pytest.raises(UnknownNameError, match="A2"):
        open_camera(SPEC, sysfs=tmp_path / "video4linux")
    with pytest.raises(MissingAssetError, match="cannot open"):
        V4l2Camera(SPEC, tmp_path / "none").start()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    for _ in range(20):
        writer.write(np.full((48, 64, 3), (0, 0, 200), np.uint8))  # red, in OpenCV's order
    writer.release()
    return path


def test_frames_are_rgb_and_dated(device: Path) -> None:
    camera = V4l2Camera(SPEC, device, latency_s=0.1)
    began_s = time.monotonic()
    camera.start()
    frame = camera.latest()
    camera.stop()
    assert frame is not None and frame.image.shape == (48, 64, 3)
    assert frame.image[..., 0].mean() > 180 and frame.image[..., 2].mean() < 20
    assert began_s - 0.1 <= frame.time_s <= time.monotonic() - 0.1


def test_another_size_is_refused(device: Path) -> None:
    with pytest.raises(GrasplineError, match="expected"):
        V4l2Camera(CameraSpec(name="w", serial="", height=480, width=640, rate_hz=30.0), device).start()
