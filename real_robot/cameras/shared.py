"""Frames from one process to another on the same machine: a memory-mapped file for each camera, and no lock.

What is special: two slots take turns. A slot's number is taken away while it is written, so a reader that was overtaken
sees that, and takes the other one. Times are of the system's monotonic clock, which all processes share.
"""

import mmap
from pathlib import Path

import numpy as np

from real_robot.cameras.frames import CameraSpec, Frame
from vla.core.errors import CorruptFileError, MissingAssetError

SLOTS, NOTHING = 2, -1
_HEAD = 16  # bytes of a slot before its pixels: int64 number, float64 time


class FrameWriter:
    """The side that has the camera. Makes `path`."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        size = SLOTS * _slot_bytes(height, width)
        path.write_bytes(bytes(size))
        self._slots = _slots(path, height, width)
        for number, _, _ in self._slots:
            number[0] = NOTHING

    def write(self, frame: Frame) -> None:
        """Frames in the order of their numbers."""
        number, time_s, image = self._slots[frame.seq % SLOTS]
        number[0] = NOTHING
        image[:] = frame.image
        time_s[0] = frame.time_s
        number[0] = frame.seq


class SharedCamera:
    """The side that looks: a `Camera` whose device is another process. `path` must be there at `start`."""

    def __init__(self, spec: CameraSpec, path: Path) -> None:
        self._spec, self._path = spec, path
        self._slots: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._last: Frame | None = None

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def start(self) -> None:
        """Raises MissingAssetError without the file, CorruptFileError when it is of another size."""
        self._slots, self._last = _slots(self._path, self._spec.height, self._spec.width), None

    def stop(self) -> None:
        self._slots = []

    def latest(self) -> Frame | None:
        for number, time_s, image in sorted(self._slots, key=lambda slot: -slot[0][0]):
            seq = int(number[0])
            if seq == NOTHING:
                continue
            if self._last is not None and seq <= self._last.seq:
                break
            frame = Frame(seq=seq, time_s=float(time_s[0]), image=image.copy())
            if int(number[0]) == seq:
                self._last = frame
                break
        return self._last


def _slot_bytes(height: int, width: int) -> int:
    return _HEAD + -(-3 * height * width // 8) * 8  # so that the next slot's number is aligned, and written at once


def _slots(path: Path, height: int, width: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Number (1,), time (1,) and image (h, w, 3) of each slot, all of them views of the file."""
    try:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
    except (OSError, ValueError) as error:
        raise MissingAssetError(f"no frames at {path}: {error}") from error
    size = _slot_bytes(height, width)
    if len(memory) != SLOTS * size:
        raise CorruptFileError(f"{path} has {len(memory)} bytes, two pictures of {height}x{width} take {SLOTS * size}")
    return [
        (
            np.frombuffer(memory, np.int64, 1, start),
            np.frombuffer(memory, np.float64, 1, start + 8),
            np.frombuffer(memory, np.uint8, 3 * height * width, start + _HEAD).reshape(height, width, 3),
        )
        for start in range(0, SLOTS * size, size)
    ]
