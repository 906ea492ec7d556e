"""What a camera gives, and pure checks of it: late, repeated, frozen, black, of a wrong size, exchanged.

What is special: a frozen camera is told by its pixels, not by its frame counter. A sensor's noise never repeats a
picture exactly, while a driver that is stuck often goes on counting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla.core.errors import SpecMismatchError

type Image = NDArray[np.uint8]

BLACK_LEVEL, BLACK_SPREAD = 8.0, 3.0  # of 255
SAME_MARGIN = 0.1  # of correlation, by which another camera's reference has to fit better
GRID = 16  # pictures are compared as GRID x GRID means
AHEAD_S = 0.02  # a frame may have come between the caller's look at the clock and at the camera
ROWS = 120  # of a picture's rows so many are enough to tell darkness


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One picture. `seq` counts captures from 0, `time_s` is the middle of its exposure on the monotonic clock [s]."""

    seq: int
    time_s: float
    image: Image


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """What is expected of a camera. `serial`: of the device that must be behind this name."""

    name: str
    serial: str
    height: int
    width: int
    rate_hz: float


class Camera(Protocol):
    """A source of frames that runs by itself; `latest` never waits for one."""

    @property
    def spec(self) -> CameraSpec: ...

    def start(self) -> None: ...

    def latest(self) -> Frame | None:
        """The newest frame; None before the first one."""
        ...

    def stop(self) -> None: ...


def findings(frames: Sequence[Frame], spec: CameraSpec, now_s: float, *, max_age_s: float, still: int = 5) -> list[str]:
    """What is wrong with a camera, from its last frames, oldest first; empty when it is well.

    Args:
        frames: the last few, without repetitions of one `seq`.
        spec: what is expected.
        now_s: now.
        max_age_s: of the newest frame.
        still: so many equal pictures in a row are a frozen camera.
    """
    if not frames:
        return ["dead: no frame yet"]
    return [*flaws(frames, spec, still), *lateness(frames[-1], now_s, max_age_s)]


def flaws(frames: Sequence[Frame], spec: CameraSpec, still: int = 5) -> list[str]:
    """What is wrong with the pictures themselves, whatever the time; at least one frame."""
    newest, found = frames[-1], []
    if newest.image.shape != (spec.height, spec.width, 3):
        found.append(f"size: {newest.image.shape}, expected ({spec.height}, {spec.width}, 3)")
    if any(b.seq <= a.seq or b.time_s <= a.time_s for a, b in pairwise(frames)):
        found.append("sequence: frame numbers or times that do not grow")
    if frozen(frames, still):
        found.append(f"frozen: {still} equal pictures in a row")
    if black(newest.image):
        found.append("black: no light, or a cap on the lens")
    return found


def lateness(newest: Frame, now_s: float, max_age_s: float) -> list[str]:
    """Whether the newest frame is too old, or from the future."""
    age_s = now_s - newest.time_s
    if age_s > max_age_s:
        return [f"late: the newest frame is {1e3 * age_s:.0f} ms old, at most {1e3 * max_age_s:.0f} ms"]
    if age_s < -AHEAD_S:
        return [f"clock: the newest frame is {-1e3 * age_s:.0f} ms ahead of now"]
    return []


def frozen(frames: Sequence[Frame], still: int) -> bool:
    """Whether the last `still` pictures are equal to the pixel."""
    if len(frames) < still:
        return False
    last = frames[-still:]
    return all(np.array_equal(a.image, b.image) for a, b in pairwise(last))


def black(image: Image) -> bool:
    """Whether a picture is dark and shows nothing."""
    step = max(1, min(image.shape[:2]) // ROWS)
    image = image[::step, ::step]
    return bool(image.mean() < BLACK_LEVEL and image.std() < BLACK_SPREAD)


def swapped(images: Mapping[str, Image], references: Mapping[str, Image]) -> list[tuple[str, str]]:
    """Pairs of cameras of which each shows the other's reference picture better than its own."""
    signs = {name: _signature(image) for name, image in images.items()}
    wanted = {name: _signature(image) for name, image in references.items()}
    names = sorted(signs.keys() & wanted.keys())
    return [
        (a, b)
        for place, a in enumerate(names)
        for b in names[place + 1 :]
        if _closer(signs[a], wanted[b], wanted[a]) and _closer(signs[b], wanted[a], wanted[b])
    ]


def require_bound(spec: CameraSpec, serial: str) -> None:
    """Raises SpecMismatchError when another device answers to a camera's name."""
    if spec.serial != serial:
        raise SpecMismatchError(f"camera '{spec.name}' is bound to serial '{spec.serial}', the device has '{serial}'")


def _closer(seen: NDArray[np.float64], other: NDArray[np.float64], own: NDArray[np.float64]) -> bool:
    return float(seen @ other) > float(seen @ own) + SAME_MARGIN


def _signature(image: Image) -> NDArray[np.float64]:
    """Means of a grid of patches without brightness and contrast, as a unit vector."""
    rows, columns = (np.linspace(0, size, GRID, endpoint=False).astype(int) for size in image.shape[:2])
    means = np.add.reduceat(np.add.reduceat(image.mean(axis=2), rows, axis=0), columns, axis=1).ravel()
    means = means - means.mean()
    return means / max(float(np.linalg.norm(means)), 1e-9)
