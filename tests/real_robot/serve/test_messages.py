"""The decoder: round trips against msgpack itself, what openpi's client packs, and everything hostile."""

import contextlib
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from real_robot.serve.messages import DTYPES, REQUESTS, BadMessageError, decode, decode_request, encode

CHUNK = {
    "type": "chunk",
    "session": "s",
    "seq": 3,
    "t_obs_s": 1.5,
    "dt_s": 0.05,
    "q_HN": np.arange(10, dtype=np.float32).reshape(2, 5),
    "gripper_H": np.zeros(2),
    "valid_until_s": None,
    "arm": None,
}


def envelope(**changed: object) -> bytes:
    array = {b"__ndarray__": True, b"data": b"\x00" * 8, b"dtype": "<f4", b"shape": [2]}
    array |= {key.encode(): value for key, value in changed.items()}
    return msgpack.packb({"type": "x", "a": array})


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 2, 1, 2, 1)])
def test_arrays_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    back = decode(encode({"a": array}))["a"]
    assert back.dtype == array.dtype and back.shape == array.shape and np.array_equal(back, array)


def test_what_openpi_packs_is_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(decode(msgpack_numpy.packb({"a": array}))["a"], array)


def test_a_request_comes_back() -> None:
    back = decode_request(encode(CHUNK))
    assert back.keys() == CHUNK.keys() and np.array_equal(back["q_HN"], CHUNK["q_HN"])
    assert decode_request(encode({"type": "activate", "session": "s", "align": True}))["arm"] is None


@pytest.mark.parametrize(
    "data",
    [
        envelope(dtype="|O"),
        envelope(dtype=">f4"),
        envelope(dtype="f4"),
        envelope(dtype="<U2"),
        envelope(dtype="<M8[s]"),
        envelope(dtype=["<f4"]),
        envelope(shape=[-2]),
        envelope(shape=[-1, -2]),
        envelope(shape=[3]),
        envelope(shape=[1]),
        envelope(shape=[2.0]),
        envelope(shape=[True, 2]),
        envelope(shape=[2**62, 2**62]),
        envelope(shape=[1, 1, 1, 1, 1, 2]),
        envelope(data="text"),
        envelope(dtype="|b1", data=b"\x02" * 8, shape=[8]),
        envelope(extra=1),
        msgpack.packb({"a": {b"__ndarray__": True}}),
        msgpack.packb({b"key": 1}),
        msgpack.packb({1: 1}),
        msgpack.packb([1, 2]),
        msgpack.packb({"a": msgpack.ExtType(1, b"x")}),
        msgpack.packb({"a": [[[[[[[1]]]]]]]}),
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x81\xa1a" + b"\x91" * 5000 + b"\x01",
        b"\xdf" + struct.pack(">I", 2**32 - 1),
        b"\xdd" + struct.pack(">I", 2**32 - 1),
        b"\x81\xa1a\xc6" + struct.pack(">I", 2**32 - 1),
        b"\x81\xa1a\xa2\xff\xff",
        b"\x80\x80",
        b"",
    ],
)
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessageError):
        decode(data)


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "eval"},
        {"type": ["chunk"]},
        {"seq": True},
        {"seq": 1.0},
        {"seq": 2**63},
        {"t_obs_s": float("nan")},
        {"dt_s": float("inf")},
        {"q_HN": [[1.0]]},
        {"session": None},
        {"surplus": 1},
    ],
)
def test_wrong_fields_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(BadMessageError):
        decode_request(encode({**CHUNK, **changed}))


def test_text_and_missing_fields_are_refused() -> None:
    for data in ("{}", encode({"type": "chunk"}), encode({"type": "lease"})):
        with pytest.raises(BadMessageError):
            decode_request(data)


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadMessageError):
        assert isinstance(decode_request(data), dict)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 400))
def test_damaged_requests_are_a_message_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(encode(CHUNK))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        request = decode_request(bytes(data[: len(data) - cut] if cut < 50 else data))
        assert set(request) == {"type", *REQUESTS[request["type"]]}
    except BadMessageError:
        pass
