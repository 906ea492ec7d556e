"""The wire format: exact round trips, and nothing but CorruptFileError from anything else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sim.fake import FAKE
from vla.core import wire
from vla.core.errors import CorruptFileError
from vla.core.types import ActionChunk, Observation

finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite64 = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=12).filter(lambda name: name != "state_S")
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
observations = st.builds(
    Observation,
    images=st.dictionaries(names, images, max_size=4),
    state_S=hnp.arrays(np.float32, st.integers(1, 20), elements=finite32),
    instruction=st.text(max_size=60),
    time_s=finite64,
)
chunks = st.builds(
    ActionChunk,
    actions_HA=hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 9)), elements=finite32),
    start_s=finite64,
    dt_s=st.floats(1e-6, 10),
)


@given(observations)
@settings(deadline=None)
def test_observation_round_trip_is_exact(observation: Observation) -> None:
    there = wire.decode_observation(wire.encode_observation(observation))
    assert list(there.images) == list(observation.images)
    for name, image in observation.images.items():
        assert there.images[name].dtype == np.uint8
        np.testing.assert_array_equal(there.images[name], image)
    assert there.state_S.dtype == np.float32
    assert there.state_S.tobytes() == observation.state_S.tobytes()
    assert (there.instruction, there.time_s) == (observation.instruction, observation.time_s)


@given(chunks)
@settings(deadline=None)
def test_chunk_round_trip_is_exact(chunk: ActionChunk) -> None:
    there = wire.decode_chunk(wire.encode_chunk(chunk))
    assert there.actions_HA.shape == chunk.actions_HA.shape
    assert there.actions_HA.tobytes() == chunk.actions_HA.tobytes()
    assert (there.start_s, there.dt_s) == (chunk.start_s, chunk.dt_s)


def sample() -> bytes:
    return wire.encode_observation(FAKE.random(np.random.default_rng(0)))


def chunk_message(header: dict, body: bytes = np.zeros(2, "<f4").tobytes()) -> bytes:
    text = json.dumps(header).encode()
    return b"GLW1" + len(text).to_bytes(4, "little") + text + body


GOOD = {
    "kind": "chunk",
    "start_s": 0.5,
    "dt_s": 0.05,
    "arrays": [{"name": "actions_HA", "dtype": "<f4", "shape": [1, 2]}],
}


def test_the_layout_is_as_documented() -> None:
    chunk = wire.decode_chunk(chunk_message(GOOD, np.array([1.5, -2.0], "<f4").tobytes()))
    assert chunk.actions_HA.tolist() == [[1.5, -2.0]]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(CorruptFileError):
        wire.decode_observation(message)
    with pytest.raises(CorruptFileError):
        wire.decode_chunk(b"GLW1" + message)


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_a_cut_or_longer_message_is_refused(data: st.DataObject) -> None:
    message = sample()
    with pytest.raises(CorruptFileError):
        wire.decode_observation(message[: data.draw(st.integers(0, len(message) - 1))])
    with pytest.raises(CorruptFileError):
        wire.decode_observation(message + data.draw(st.binary(min_size=1, max_size=9)))


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_flipped_header_byte_is_refused_or_decodes_to_something_valid(data: st.DataObject) -> None:
    message = bytearray(sample())
    length = int.from_bytes(message[4:8], "little")
    message[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    try:
        observation = wire.decode_observation(bytes(message))
    except CorruptFileError:
        return
    assert np.isfinite(observation.state_S).all() and np.isfinite(observation.time_s)
    assert all(image.dtype == np.uint8 and image.ndim == 3 for image in observation.images.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "observation"}, "kind"),
        ({"dt_s": 0.0}, "dt_s"),
        ({"dt_s": 1}, "dt_s"),
        ({"start_s": float("nan")}, "start_s"),
        ({"start_s": float("inf")}, "start_s"),
        ({"start_s": True}, "start_s"),
        ({"extra": 1}, "extra"),
        ({"arrays": []}, "after the last array"),
        ({"arrays": {}}, "not a list"),
        ({"arrays": [{"name": "actions_HA", "dtype": "|O", "shape": [1, 2]}]}, "dtype"),
        ({"arrays": [{"name": "actions_HA", "dtype": "<f8", "shape": [1]}]}, "dtype"),
        ({"arrays": [{"name": "actions_HA", "dtype": ["<f4"], "shape": [1, 2]}]}, "dtype"),
        ({"arrays": [{"name": "actions_HA", "dtype": "<f4", "shape": [2]}]}, "axes"),
        ({"arrays": [{"name": "actions_HA", "dtype": "<f4", "shape": [-1, -2]}]}, "shape"),
        ({"arrays": [{"name": "actions_HA", "dtype": "<f4", "shape": [1.0, 2]}]}, "shape"),
        ({"arrays": [{"name": "actions_HA", "dtype": "<f4", "shape": [10**12, 10**12]}]}, "cut off"),
        ({"arrays": [{"name": "actions_HA", "dtype": "|u1", "shape": [2, 4]}]}, "float32"),
        ({"arrays": [{"name": "a", "dtype": "<f4", "shape": [1]}] * 2}, "two arrays"),
    ],
)
def test_each_wrong_field_is_named(change: dict, words: str) -> None:
    with pytest.raises(CorruptFileError, match=words):
        wire.decode_chunk(chunk_message(GOOD | change))


def test_hostile_headers_are_refused() -> None:
    deep = b"[" * 60_000
    with pytest.raises(CorruptFileError):
        wire.decode_chunk(b"GLW1" + len(deep).to_bytes(4, "little") + deep)
    twice = json.dumps(GOOD)[:-1].encode() + b', "dt_s": 0.1}'
    with pytest.raises(CorruptFileError, match="twice"):
        wire.decode_chunk(b"GLW1" + len(twice).to_bytes(4, "little") + twice + bytes(8))
    with pytest.raises(CorruptFileError, match="at most"):
        wire.decode_chunk(b"GLW1" + (2**32 - 1).to_bytes(4, "little"))


def test_numbers_that_are_not_finite_never_leave_or_arrive() -> None:
    bad_HA = np.array([[0.0, np.nan]], np.float32)
    with pytest.raises(CorruptFileError, match="finite"):
        wire.encode_chunk(ActionChunk(actions_HA=bad_HA, start_s=0.0, dt_s=0.05))
    with pytest.raises(CorruptFileError, match="finite"):
        wire.decode_chunk(chunk_message(GOOD, bad_HA.tobytes()))


def test_a_message_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = sample()
    monkeypatch.setattr(wire, "MAX_BYTES", len(message) - 1)
    with pytest.raises(CorruptFileError, match="bytes, at most"):
        wire.decode_observation(message)


def test_privileged_entries_stay_at_home() -> None:
    seen = Observation(
        images={}, state_S=np.zeros(3, np.float32), instruction="", time_s=0.0, privileged={"target": np.ones(3)}
    )
    assert b"target" not in wire.encode_observation(seen)
    assert wire.decode_observation(wire.encode_observation(seen)).privileged == {}
