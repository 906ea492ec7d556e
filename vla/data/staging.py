"""Finished episodes on their way to a dataset: one file each, written atomically, lossless.

A video encoder and a table writer keep files open for minutes; a kill then loses everything. So a collector first
stages each episode here: one safetensors file (a JSON header and flat arrays, no pickle) holding low-dimensional arrays
exactly and images as PNG. What exists under its final name is complete. `privileged` arrays are not kept.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from vla.core.errors import CorruptFileError, MissingAssetError, StorageError
from vla.core.types import Episode, Image, Observation
from vla.data.folders import sync

SUFFIX = ".safetensors"
_FORMAT = "graspline-episode-1"
_PNG_LEVEL = 1  # at 128 px, higher levels cost several times the time for a tenth of the size


def write_staged(folder: Path, name: str, episode: Episode) -> Path:
    """Writes `<folder>/<name>.safetensors` and returns its path; survives a kill or a power cut once it has returned.

    An observation may lack a camera (one that was not rendered); it lacks it again when read.

    Raises:
        StorageError: the disk refused (errno is kept); no file appears under the final name.
    """
    path = Path(folder) / f"{name}{SUFFIX}"
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
    content = _encode(episode)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - atomic by contract, and the same call everywhere
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(error.errno, f"episode '{name}' was not written to {folder}: {error.strerror}") from error
    return path


def read_staged(path: Path) -> Episode:
    """The episode that `write_staged` wrote.

    Raises:
        MissingAssetError: no such file.
        CorruptFileError: truncated, or not a staged episode.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingAssetError(f"no staged episode at {path}") from error
    try:
        header_bytes = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_bytes])["__metadata__"]
        if header["format"] != _FORMAT:
            raise CorruptFileError(f"{path}: format is '{header['format']}', expected '{_FORMAT}'")
        return _decode(load(content), json.loads(header["episode"]))
    except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path} is truncated or not a staged episode: {error}") from error


def _encode(episode: Episode) -> bytes:
    observations = episode.observations
    cameras = sorted({name for observation in observations for name in observation.images})
    arrays: dict[str, NDArray] = {
        "actions": episode.actions_TA,
        "labels": episode.labels_TA,
        "states": np.stack([observation.state_S for observation in observations]),
        "times": np.array([observation.time_s for observation in observations], np.float64),
        **{f"reward/{term}": reward_T for term, reward_T in episode.rewards.items()},
        **{f"column/{name}": column for name, column in episode.columns.items()},
    }
    for camera in cameras:
        images = [observation.images.get(camera) for observation in observations]
        arrays[f"png/{camera}"], arrays[f"png_ends/{camera}"] = _pack(images)
    header: dict[str, Any] = {
        "meta": {key: _plain(value) for key, value in episode.meta.items()},
        "terminated": bool(episode.terminated),
        "truncated": bool(episode.truncated),
        "success": bool(episode.success),
        "instructions": [observation.instruction for observation in observations],
        "cameras": cameras,
        "rewards": list(episode.rewards),
        "columns": list(episode.columns),
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, {"format": _FORMAT, "episode": json.dumps(header)})


def _decode(arrays: dict[str, NDArray], header: dict[str, Any]) -> Episode:
    images = {camera: _unpack(arrays[f"png/{camera}"], arrays[f"png_ends/{camera}"]) for camera in header["cameras"]}
    observations = [
        Observation(
            images={camera: found[t] for camera, found in images.items() if found[t] is not None},
            state_S=arrays["states"][t],
            instruction=instruction,
            time_s=float(arrays["times"][t]),
        )
        for t, instruction in enumerate(header["instructions"])
    ]
    return Episode(
        observations=observations,
        actions_TA=arrays["actions"],
        labels_TA=arrays["labels"],
        rewards={term: arrays[f"reward/{term}"] for term in header["rewards"]},
        terminated=header["terminated"],
        truncated=header["truncated"],
        success=header["success"],
        meta=header["meta"],
        columns={name: arrays[f"column/{name}"] for name in header.get("columns", [])},
    )


def _pack(images: Sequence[Image | None]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """PNG files one after another, and where each ends; an image that is missing takes no bytes."""
    files = [b"" if image is None else _png(image) for image in images]
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([len(file) for file in files])


def _unpack(packed: NDArray[np.uint8], ends: NDArray[np.int64]) -> list[Any]:
    starts = np.concatenate([[0], ends[:-1]])
    return [None if end == start else read_png(packed[start:end]) for start, end in zip(starts, ends, strict=True)]


def _png(image: Image) -> bytes:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.shape} {image.dtype}, expected (h, w, 3) uint8")
    done, file = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    assert done, "the PNG encoder takes any (h, w, 3) uint8"
    return file.tobytes()


def read_png(file: NDArray[np.uint8]) -> Image:
    """RGB image (h, w, 3) from the bytes of an image file. Raises CorruptFileError."""
    image = cv2.imdecode(file, cv2.IMREAD_COLOR)
    if image is None:
        raise CorruptFileError(f"an image of {len(file)} bytes does not decode")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _plain(value: Any) -> str | int | float | bool:
    """Numpy scalars as Python ones, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value
