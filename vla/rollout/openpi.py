"""The messages of openpi (github.com/Physical-Intelligence/openpi): msgpack maps in which arrays are tagged maps.

A request holds images, a state vector and a prompt under names that differ between robots (`Fields`), an answer holds
`actions` (H, A). Bytes are those of the package `openpi-client`. Special: decoding believes nothing. Only plain values,
text and arrays of six dtypes pass, an array's bytes must match its shape exactly, and whatever else arrives raises
CorruptFileError. openpi knows no seed: we read an optional whole number under `seed`, 0 when absent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgpack
import numpy as np

from vla.core.errors import CorruptFileError, GrasplineError, NonFiniteError, SpecMismatchError, unknown_name
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Image, Observation
from vla.core.wire import MAX_PIXELS

MAX_ENTRIES = 1024  # of a map or a list: msgpack reserves memory for what is claimed, at every depth
MAX_DEPTH = 3
MAX_NAME = 200  # characters
MAX_SEED = 2**63 - 1
DTYPES = ("|b1", "|u1", "<i4", "<i8", "<f4", "<f8")

_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR = {b"__npgeneric__", b"data", b"dtype"}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Where a request keeps what. A dot leads into a nested map (`images.cam_high`); a slash is part of a name.

    images  {camera: field}
    """

    images: Mapping[str, str]
    state: str = "observation/state"
    prompt: str = "prompt"

    @classmethod
    def default(cls, spec: Embodiment) -> Self:
        """The names of openpi's LIBERO client: the first camera, the first wrist, the others by name."""
        wrist = next((name for name in spec.camera_names if "wrist" in name), None)
        first = next((name for name in spec.camera_names if name != wrist), None)
        short = {first: "observation/image", wrist: "observation/wrist_image"}
        return cls(images={name: short.get(name, f"observation/images/{name}") for name in spec.camera_names})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], spec: Embodiment) -> Self:
        """The table of a config; what it leaves out is as in `default`.

        Raises:
            UnknownNameError: a key or a camera that does not exist.
            GrasplineError: two things under one name.
        """
        for key in plain.keys() - {"images", "state", "prompt"}:
            raise unknown_name("key of fields", key, ("images", "state", "prompt"))
        images = dict(plain.get("images") or cls.default(spec).images)
        for camera in images.keys() - set(spec.camera_names):
            raise unknown_name("camera", camera, spec.camera_names)
        fields = cls(**{**plain, "images": images})
        if len(set(fields.names)) < len(fields.names):
            raise GrasplineError(f"fields: a name stands twice in {fields.names}")
        return fields

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.images.values(), self.state, self.prompt)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for metadata."""
        return {"images": dict(self.images), "state": self.state, "prompt": self.prompt}


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a map, as `openpi_client.msgpack_numpy.packb` makes them."""
    packed = msgpack.packb(message, default=_tag)
    assert packed is not None
    return packed


def unpack(message: bytes) -> dict[str, Any]:
    """Inverse of `pack`, for bytes from anyone. Arrays are read-only views of the message.

    Raises:
        CorruptFileError: not a map of plain values, text and arrays.
    """
    try:
        content = msgpack.unpackb(
            message,
            object_pairs_hook=_untag,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except CorruptFileError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CorruptFileError(f"message: not msgpack ({str(error) or type(error).__name__})") from error
    _demand(isinstance(content, dict), "not a map")
    return content


def encode_request(observation: Observation, cameras: Sequence[str], fields: Fields) -> bytes:
    """What an openpi server is asked: the pictures of `cameras`, the state, the prompt. No seed: it would ignore it.

    Raises:
        GrasplineError: the table names no field for a camera.
    """
    if missing := [camera for camera in cameras if camera not in fields.images]:
        raise GrasplineError(f"fields: no name for the cameras {missing}, only for {sorted(fields.images)}")
    leaves = {fields.images[camera]: observation.images[camera] for camera in cameras}
    leaves |= {fields.state: observation.state_S, fields.prompt: observation.instruction}
    request: dict[str, Any] = {}
    for path, value in leaves.items():
        *outer, name = path.split(".")
        inner = request
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[name] = value
    return pack(request)


def decode_request(message: bytes, cameras: Sequence[str], fields: Fields) -> tuple[Observation, int]:
    """The observation and the seed. Pictures are (h, w, 3) or (3, h, w) uint8, the state any number type.

    `time_s` is 0: openpi's requests carry no time. Sizes are the embodiment's affair, not checked here.

    Raises:
        CorruptFileError: malformed, a field is missing, or one has a wrong type.
        UnknownNameError: a field that the table does not have.
    """
    leaves = _flatten(unpack(message))
    for name in leaves.keys() - {*fields.names, "seed"}:
        raise unknown_name("field", name, (*fields.names, "seed"))
    needed = (*(fields.images[camera] for camera in cameras), fields.state, fields.prompt)
    _demand(all(name in leaves for name in needed), f"fields {sorted(leaves)}, expected {sorted(needed)}")
    images = {camera: _image(name, leaves[name]) for camera, name in fields.images.items() if name in leaves}
    prompt, seed = leaves[fields.prompt], leaves.get("seed", 0)
    _demand(isinstance(prompt, str), f"'{fields.prompt}' is not text")
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    _demand(whole and 0 <= int(seed) <= MAX_SEED, f"'seed' is not a whole number from 0 to {MAX_SEED}")
    state_S = _vector(fields.state, leaves[fields.state])
    return Observation(images=images, state_S=state_S, instruction=prompt, time_s=0.0), int(seed)


def encode_answer(chunk: ActionChunk, timing_ms: Mapping[str, float]) -> bytes:
    """`actions` (H, A) float32 and, as openpi's server adds it, `server_timing` [ms]."""
    return pack({"actions": chunk.actions_HA, "server_timing": dict(timing_ms)})


def decode_answer(message: bytes, action_dim: int) -> Float:
    """The actions (h, A), float32, of any openpi server.

    Raises:
        CorruptFileError: malformed, or without `actions`.
        SpecMismatchError: not (h, action_dim).
        NonFiniteError: NaN or infinity.
    """
    actions_hA = unpack(message).get("actions")
    if not isinstance(actions_hA, np.ndarray) or actions_hA.dtype.kind != "f":
        raise CorruptFileError("message: no array of floats called 'actions'")
    if actions_hA.ndim != 2 or actions_hA.shape[1] != action_dim or not len(actions_hA):
        raise SpecMismatchError(f"actions have shape {actions_hA.shape}, expected (h, {action_dim})")
    with np.errstate(over="ignore"):
        actions_hA = actions_hA.astype(np.float32)
    if not np.isfinite(actions_hA).all():
        raise NonFiniteError("actions are not finite")
    return actions_hA


def _tag(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"cannot be sent: {type(value).__name__}")
    little = value.astype(value.dtype.newbyteorder("<"), copy=False)
    if little.dtype.str not in DTYPES:
        raise TypeError(f"cannot be sent: dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": little.tobytes(), b"dtype": little.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": little.dtype.str}


def _untag(pairs: list[tuple[Any, Any]]) -> Any:
    fields = dict(pairs)
    _demand(len(fields) == len(pairs), "a key stands twice")
    if fields.keys() == _ARRAY:
        return _array(fields[b"data"], fields[b"dtype"], fields[b"shape"])
    if fields.keys() == _SCALAR:
        return _scalar(fields[b"data"], fields[b"dtype"])
    named = all(isinstance(key, str) and len(key) <= MAX_NAME for key in fields)
    _demand(named, f"a key is not text of at most {MAX_NAME} characters")
    return fields


def _array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    _demand(dtype in DTYPES, f"dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    sizes = isinstance(shape, list) and len(shape) <= 4 and all(type(size) is int and size >= 0 for size in shape)
    _demand(sizes and isinstance(data, bytes), "an array without bytes or without a shape of at most 4 axes")
    wanted = math.prod(shape) * np.dtype(dtype).itemsize
    _demand(len(data) == wanted, f"an array of shape {shape} {dtype} with {len(data)} bytes, expected {wanted}")
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(data: Any, dtype: Any) -> np.generic:
    _demand(dtype in DTYPES, f"dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    kinds = {"b": (bool,), "u": (int,), "i": (int,), "f": (int, float)}[np.dtype(dtype).kind]
    _demand(type(data) in kinds, f"a number of dtype {dtype} that is {type(data).__name__}")
    return np.dtype(dtype).type(data)


def _flatten(message: Mapping[str, Any], prefix: str = "", depth: int = 1) -> dict[str, Any]:
    """{path: value}, the names of nested maps joined by dots. Deeper maps than MAX_DEPTH stay values."""
    leaves: dict[str, Any] = {}
    for name, value in message.items():
        deeper = isinstance(value, dict) and depth < MAX_DEPTH
        leaves |= _flatten(value, f"{prefix}{name}.", depth + 1) if deeper else {f"{prefix}{name}": value}
    return leaves


def _image(name: str, value: Any) -> Image:
    right = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    _demand(right, f"'{name}' is {_told(value)}, expected (h, w, 3) or (3, h, w) uint8")
    image = value if value.shape[2] == 3 else np.moveaxis(value, 0, 2)
    fits = image.shape[2] == 3 and min(image.shape) >= 1 and max(image.shape) <= MAX_PIXELS
    _demand(fits, f"'{name}' has shape {value.shape}, expected (h, w, 3) or (3, h, w) up to {MAX_PIXELS} pixels")
    return np.ascontiguousarray(image)


def _vector(name: str, value: Any) -> Float:
    right = isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "fi"
    _demand(right, f"'{name}' is {_told(value)}, expected a vector of numbers")
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


def _told(value: Any) -> str:
    return f"{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _demand(condition: bool, problem: str) -> None:
    if not condition:
        raise CorruptFileError(f"message: {problem}")
