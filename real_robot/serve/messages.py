"""What crosses the network to and from a robot: msgpack maps with arrays in openpi's envelope, decoded strictly.

A message is {"type": ..., fields}; an array is {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [..]}.
What is special: decoding believes nothing. Types, fields, dtypes, sizes and nesting are those listed here, or the
message is refused as a whole with BadMessageError; a dtype from the wire never reaches numpy unless it is in `DTYPES`.
"""

import math
from typing import Any

import msgpack
import numpy as np

from vla.core.errors import GrasplineError

MAX_BYTES = 32 * 2**20
MAX_DEPTH = 6
MAX_DIMS = 5
MAX_ITEMS = 4096  # of a list or map: what a header of five bytes may make the decoder allocate
MAX_TEXT = 65_536
DTYPES = frozenset({"|u1", "|i1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8", "|b1"})
_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}

_TEXT, _NUMBER, _FLAG, _ARRAY = (str,), (int, float), (bool,), (np.ndarray,)
_MAYBE = (type(None),)
type Fields = dict[str, tuple[type, ...]]

REQUESTS: dict[str, Fields] = {  # of a client; a field whose types hold NoneType may be left out
    "clock": {},
    "state": {},
    "frame": {"camera": _TEXT},
    "estop": {},
    "lease": {"client": _TEXT},
    "heartbeat": {},
    "release": {},
    "activate": {"session": _TEXT, "arm": _TEXT + _MAYBE, "align": _FLAG},
    "pause": {"reason": _TEXT},
    "reset": {"cause": _TEXT},
    "chunk": {
        "session": _TEXT,
        "seq": (int,),
        "t_obs_s": _NUMBER,
        "dt_s": _NUMBER,
        "q_HN": _ARRAY,
        "gripper_H": _ARRAY + _MAYBE,
        "valid_until_s": _NUMBER + _MAYBE,
        "arm": _TEXT + _MAYBE,
    },
}


class BadMessageError(GrasplineError, ValueError):
    """Bytes that are not a message of this protocol."""


def encode(message: dict[str, Any]) -> bytes:
    """The bytes of a message. Its arrays must be of the dtypes in `DTYPES`."""
    data = msgpack.packb(message, default=_wrapped, use_bin_type=True)
    assert isinstance(data, bytes)
    return data


def decode(data: bytes) -> dict[str, Any]:
    """Inverse of `encode`, for any map. Raises BadMessageError."""
    _demand(len(data) <= MAX_BYTES, f"{len(data)} bytes, at most {MAX_BYTES}")
    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            object_pairs_hook=_map,
            strict_map_key=True,
            max_str_len=MAX_TEXT,
            max_bin_len=MAX_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except BadMessageError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise BadMessageError(f"not msgpack within the limits ({type(error).__name__})") from error
    _demand(isinstance(message, dict), "not a map")
    _walk(message, MAX_DEPTH)
    return message


def decode_request(data: bytes | str) -> dict[str, Any]:
    """A client's message, with exactly the fields of its type. Raises BadMessageError."""
    _demand(isinstance(data, bytes), "text, expected bytes")
    assert isinstance(data, bytes)
    message = decode(data)
    kind = message.pop("type", None)
    _demand(isinstance(kind, str) and kind in REQUESTS, f"type {str(kind)[:40]!r}, expected one of {sorted(REQUESTS)}")
    fields = REQUESTS[kind]
    for name in message:
        _demand(name in fields, f"field {str(name)[:40]!r} in '{kind}', expected {sorted(fields)}")
    for name, types in fields.items():
        value = message.setdefault(name, None)
        right = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        _demand(right, f"'{kind}': {name} is {type(value).__name__}, expected {' or '.join(t.__name__ for t in types)}")
        finite = not isinstance(value, (int, float)) or (abs(value) < 1e15 and math.isfinite(value))
        _demand(finite, f"'{kind}': {name} is not a finite number")
    return {"type": kind, **message}


def _wrapped(value: object) -> object:
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        data = np.ascontiguousarray(value).tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": list(value.shape)}
    raise BadMessageError(f"cannot send {getattr(value, 'dtype', type(value))}")


def _map(pairs: list[tuple[Any, Any]]) -> object:
    """A map as a dict with unique text keys, or the array that it describes."""
    found = dict(pairs)
    _demand(len(found) == len(pairs), "a key stands twice")
    if b"__ndarray__" in found:
        return _array(found)
    _demand(all(isinstance(key, str) for key in found), "a key that is not text")
    return found


def _array(found: dict[Any, Any]) -> np.ndarray:
    _demand(found.keys() == _KEYS and found[b"__ndarray__"] is True, "an array without data, dtype and shape")
    data, dtype, shape = found[b"data"], found[b"dtype"], found[b"shape"]
    _demand(isinstance(dtype, str) and dtype in DTYPES, f"dtype {str(dtype)[:20]!r}, expected one of {sorted(DTYPES)}")
    _demand(isinstance(data, bytes), "an array's data are not bytes")
    whole = isinstance(shape, list) and all(type(size) is int and 0 <= size <= MAX_BYTES for size in shape)
    _demand(whole and len(shape) <= MAX_DIMS, f"an array's shape is not up to {MAX_DIMS} whole numbers")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    _demand(size == len(data), f"shape {shape} of {dtype} needs {size} bytes, not {len(data)}")
    if dtype == "|b1":
        _demand(not data.strip(b"\x00\x01"), "a truth value that is neither 0 nor 1")
    return np.frombuffer(data, dtype).reshape(shape)


def _walk(value: object, left: int) -> None:
    """Refuses nesting deeper than `left` levels of maps and lists."""
    if isinstance(value, (dict, list)):
        _demand(left > 0, f"nested deeper than {MAX_DEPTH}")
        for inner in value.values() if isinstance(value, dict) else value:
            _walk(inner, left - 1)


def _demand(condition: bool, problem: str) -> None:
    if not condition:
        raise BadMessageError(f"message: {problem}")
