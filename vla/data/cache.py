"""Decoded frames of a dataset on disk, memory-mapped, so that a random frame costs a copy instead of a video decode.

Built once, in `<dataset>/.cache/frames-<fingerprint>/<camera>.npy`; the fingerprint changes with the dataset. It takes
h x w x 3 bytes a frame (49 kB at 128 px), which the operating system keeps in memory as far as there is room.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vla.core.errors import CorruptFileError, SpecMismatchError, StorageError
from vla.core.types import Image
from vla.data.folders import replace_folder
from vla.data.lerobot import LeRobotSource

_HEAD_AND_TAIL = 1 << 16  # bytes of each file that are hashed: an mp4's index of sample sizes lies at one of its ends


class FrameCache:
    """Random access to decoded images: `images(frames_B)`. Make it with `FrameCache.open(source)`."""

    def __init__(self, folder: Path, cameras: Sequence[str]) -> None:
        self.cameras = tuple(cameras)
        self._frames = {camera: np.load(_file(folder, camera), mmap_mode="r") for camera in cameras}

    @classmethod
    def open(cls, source: LeRobotSource) -> Self:
        """The cache of a dataset, decoding every video first if there is none that fits.

        Raises:
            CorruptFileError: a video does not decode or lacks frames.
            StorageError: no room.
        """
        folder = source.root / ".cache" / f"frames-{_fingerprint(source.root)}"
        if not folder.is_dir():
            _build(source, folder)
        return cls(folder, source.spec.camera_names)

    def images(self, frames_B: NDArray[np.integer], cameras: Sequence[str] | None = None) -> NDArray[np.uint8]:
        """Images (B, K, h, w, 3) of frames, by their number in the dataset; cameras in the given order, default all.

        Raises:
            KeyError: a camera that the dataset does not have.
            SpecMismatchError: the cameras differ in size, so that they cannot be stacked.
        """
        cameras = self.cameras if cameras is None else tuple(cameras)
        sizes = {self._frames[camera].shape[1:] for camera in cameras}
        if len(sizes) != 1:
            raise SpecMismatchError(f"cameras {list(cameras)} have sizes {sorted(sizes)}, expected one size")
        images = np.empty((len(frames_B), len(cameras), *sizes.pop()), np.uint8)
        for k, camera in enumerate(cameras):
            images[:, k] = self._frames[camera][frames_B]
        return images


def _build(source: LeRobotSource, folder: Path) -> None:
    starts, spec = source.columns().starts, source.spec
    needed = sum(int(starts[-1]) * camera.height * camera.width * 3 for camera in spec.cameras)
    temporary = folder.with_name(f".building-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if needed > (free := shutil.disk_usage(temporary).free):
            raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
        files = {}
        for camera in spec.cameras:
            shape = (int(starts[-1]), camera.height, camera.width, 3)
            files[camera.name] = _create(_file(temporary, camera.name), shape)
        jobs = list(product(range(len(source)), spec.camera_names))
        with ThreadPoolExecutor(os.cpu_count(), "decode") as pool:  # PyAV decodes outside the interpreter lock
            done = pool.map(lambda job: _decode(source, job[0], job[1], files[job[1]]), jobs)
            for _ in tqdm(done, desc=f"decoding {source.root.name}", total=len(jobs), unit="video"):
                pass
        if not folder.exists():  # another process may have been faster; its frames are the same
            replace_folder(temporary, folder)
    except OSError as error:
        if isinstance(error, StorageError) or error.errno is None:
            raise
        raise StorageError(error.errno, f"frame cache of {source.root} not built: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for stale in folder.parent.glob("frames-*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)


def _create(path: Path, shape: tuple[int, ...]) -> Path:
    """An npy file of a header only. Frames are written into it, not mapped: a full disk kills who writes to a map."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return path


def _decode(source: LeRobotSource, episode: int, camera: str, path: Path) -> None:
    starts = source.columns().starts
    size = next((c.height, c.width, 3) for c in source.spec.cameras if c.name == camera)
    found = 0
    with path.open("r+b") as file:
        header = _header_bytes(path)
        file.seek(header + int(starts[episode]) * int(np.prod(size)))
        for image in source.frames(episode, camera):
            _check_size(image, size, camera, episode)
            file.write(image.tobytes())
            found += 1
    if found != starts[episode + 1] - starts[episode]:
        raise CorruptFileError(f"episode {episode} has {found} images of '{camera}'")


def _check_size(image: Image, size: tuple[int, int, int], camera: str, episode: int) -> None:
    if image.shape != size:
        raise CorruptFileError(f"episode {episode}: image of '{camera}' is {image.shape}, meta/info.json says {size}")


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return file.tell()


def _file(folder: Path, camera: str) -> Path:
    return folder / f"{camera.replace('/', '_')}.npy"


def _fingerprint(root: Path) -> str:
    """Changes when a file of the dataset is added, removed, resized or rewritten."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("meta", "data", "videos") for path in (root / folder).rglob("*.*")):
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root)} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HEAD_AND_TAIL))
            file.seek(max(0, size - _HEAD_AND_TAIL))
            digest.update(file.read())
    return digest.hexdigest()[:16]
