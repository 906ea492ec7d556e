"""Observation and ActionChunk <-> bytes, for a policy behind a socket. numpy only; never pickle.

A message: 4 bytes `GLW1`, the header's length (uint32, little-endian), the header (JSON in ASCII), then the arrays' raw
bytes, little-endian, C order, in the header's order and without gaps. The header of an observation:

    {"kind": "observation", "time_s": 1.5, "instruction": "...",
     "arrays": [{"name": "state_S", "dtype": "<f4", "shape": [8]},
                {"name": "wrist", "dtype": "|u1", "shape": [h, w, 3]}]}

and of a chunk: {"kind": "chunk", "start_s": 1.5, "dt_s": 0.05, "arrays": [{"name": "actions_HA", ...}]}.
Special: decoding believes nothing. Whatever is not exactly this form raises CorruptFileError, and no more memory is
taken than the message has bytes. Simulator truth (`privileged`) is not sent.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla.core.errors import CorruptFileError
from vla.core.types import ActionChunk, Observation

MAX_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**16
MAX_CAMERAS = 16
MAX_PIXELS = 4096  # along an image's side
MAX_NUMBERS = 4096  # along an axis of a state or a chunk

_MAGIC = b"GLW1"
_FLOAT, _BYTE = "<f4", "|u1"


def encode_observation(observation: Observation) -> bytes:
    """The message for an observation, without its privileged entries.

    Raises:
        CorruptFileError: it would not be decoded (not finite, a wrong dtype or shape, too large).
    """
    arrays = {"state_S": observation.state_S, **observation.images}
    header = {
        "kind": "observation",
        "time_s": float(observation.time_s),
        "instruction": observation.instruction,
    }
    if "state_S" in observation.images:
        raise CorruptFileError("message: a camera cannot be called 'state_S'")
    message = _pack(header, arrays)
    decode_observation(message)
    return message


def decode_observation(message: bytes) -> Observation:
    """Inverse of `encode_observation`.

    Raises:
        CorruptFileError: the message is not exactly an observation of this format.
    """
    header, arrays = _unpack(message, "observation", {"time_s", "instruction"})
    instruction = header["instruction"]
    _demand(isinstance(instruction, str), "instruction is not text")
    _demand(len(arrays) <= 1 + MAX_CAMERAS, f"{len(arrays)} arrays, at most {1 + MAX_CAMERAS}")
    state_S = arrays.pop("state_S", np.zeros((0, 0)))
    _check_floats("state_S", state_S, 1)
    for name, image in arrays.items():
        _demand(image.dtype == np.uint8, f"image '{name}' is {image.dtype}, not uint8")
        right = image.ndim == 3 and image.shape[2] == 3 and max(image.shape) <= MAX_PIXELS
        _demand(right, f"image '{name}' has shape {image.shape}, not (h, w, 3) up to {MAX_PIXELS} pixels")
    time_s = _finite(header["time_s"], "time_s")
    return Observation(images=arrays, state_S=state_S, instruction=instruction, time_s=time_s)


def encode_chunk(chunk: ActionChunk) -> bytes:
    """The message for a chunk.

    Raises:
        CorruptFileError: it would not be decoded (not finite, a wrong dtype or shape, too large).
    """
    header = {"kind": "chunk", "start_s": float(chunk.start_s), "dt_s": float(chunk.dt_s)}
    message = _pack(header, {"actions_HA": chunk.actions_HA})
    decode_chunk(message)
    return message


def decode_chunk(message: bytes) -> ActionChunk:
    """Inverse of `encode_chunk`.

    Raises:
        CorruptFileError: the message is not exactly a chunk of this format.
    """
    header, arrays = _unpack(message, "chunk", {"start_s", "dt_s"})
    _demand(arrays.keys() == {"actions_HA"}, f"arrays {sorted(arrays)}, expected ['actions_HA']")
    _check_floats("actions_HA", arrays["actions_HA"], 2)
    start_s, dt_s = _finite(header["start_s"], "start_s"), _finite(header["dt_s"], "dt_s")
    _demand(dt_s > 0, f"dt_s is {dt_s}, not positive")
    return ActionChunk(actions_HA=arrays["actions_HA"], start_s=start_s, dt_s=dt_s)


def _pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    described, buffers = [], []
    for name, array in arrays.items():
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        described.append({"name": name, "dtype": little.dtype.str, "shape": list(little.shape)})
        buffers.append(little.tobytes())
    text = json.dumps({**header, "arrays": described}).encode("ascii")
    return b"".join([_MAGIC, len(text).to_bytes(4, "little"), text, *buffers])


def _unpack(message: bytes, kind: str, fields: set[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header with exactly `fields`, and the arrays that follow it."""
    _demand(len(message) <= MAX_BYTES, f"{len(message)} bytes, at most {MAX_BYTES}")
    _demand(message[:4] == _MAGIC, "does not begin with GLW1")
    _demand(len(message) >= 8, "cut off in the header")
    length = int.from_bytes(message[4:8], "little")
    _demand(length <= MAX_HEADER_BYTES, f"a header of {length} bytes, at most {MAX_HEADER_BYTES}")
    _demand(len(message) >= 8 + length, "cut off in the header")
    header = _parse(message[8 : 8 + length])
    _demand(header.keys() == {"kind", "arrays", *fields}, f"fields {sorted(header)}, expected kind, arrays, {fields}")
    _demand(header["kind"] == kind, f"kind is {header['kind']!r}, expected '{kind}'")
    _demand(isinstance(header["arrays"], list), "arrays is not a list")
    arrays: dict[str, np.ndarray] = {}
    start = 8 + length
    for described in header["arrays"]:
        name, dtype, shape = _description(described)
        _demand(name not in arrays, f"two arrays called '{name}'")
        stop = start + math.prod(shape) * dtype.itemsize
        _demand(stop <= len(message), f"cut off in '{name}'")
        arrays[name] = np.frombuffer(message[start:stop], dtype).reshape(shape).astype(dtype.newbyteorder("="))
        start = stop
    _demand(start == len(message), f"{len(message) - start} bytes after the last array")
    return header, arrays


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("ascii"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"message: the header is not JSON ({error})") from error
    _demand(isinstance(header, dict), "the header is not an object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _demand(len({key for key, _ in pairs}) == len(pairs), "a key stands twice in the header")
    return dict(pairs)


def _description(described: Any) -> tuple[str, np.dtype, tuple[int, ...]]:
    right = isinstance(described, dict) and described.keys() == {"name", "dtype", "shape"}
    _demand(right, "an array is not described by name, dtype and shape")
    name, dtype, shape = described["name"], described["dtype"], described["shape"]
    _demand(isinstance(name, str), "an array's name is not text")
    _demand(dtype in (_FLOAT, _BYTE), f"array '{name}' has dtype {dtype!r}, expected '{_FLOAT}' or '{_BYTE}'")
    whole = isinstance(shape, list) and 1 <= len(shape) <= 3 and all(type(size) is int for size in shape)
    _demand(whole and min(shape) >= 1, f"array '{name}' has shape {shape!r}")
    return name, np.dtype(dtype), tuple(shape)


def _check_floats(name: str, array: np.ndarray, ndim: int) -> None:
    _demand(array.dtype == np.float32, f"{name} is {array.dtype}, not float32")
    right = array.ndim == ndim and max(array.shape) <= MAX_NUMBERS
    _demand(right, f"{name} has shape {array.shape}, expected {ndim} axes up to {MAX_NUMBERS}")
    _demand(bool(np.isfinite(array).all()), f"{name} is not finite")


def _finite(value: Any, name: str) -> float:
    _demand(type(value) is float and math.isfinite(value), f"{name} is {value!r}, not a finite number")
    return value


def _demand(condition: bool, problem: str) -> None:
    if not condition:
        raise CorruptFileError(f"message: {problem}")
