"""Our codec against openpi's own package: the same bytes out, the same values in, and nothing else accepted."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy

from sim.fake import FAKE
from vla.core.errors import CorruptFileError, GrasplineError, NonFiniteError, SpecMismatchError, UnknownNameError
from vla.core.spec import Camera, Embodiment
from vla.rollout import openpi
from vla.rollout.openpi import Fields

FIELDS = Fields.default(FAKE)
CAMERAS = FAKE.camera_names
OBSERVATION = FAKE.random(np.random.default_rng(0))

arrays = st.sampled_from(openpi.DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
)
scalars = st.sampled_from([np.float64(1.5), np.float32(0.1), np.int64(-3), np.uint8(9), np.bool_(True)])
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=9)
messages = st.dictionaries(
    st.text(max_size=9),
    st.recursive(arrays | scalars | plain, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
    | st.dictionaries(st.text(max_size=5), arrays | plain, max_size=3),
    max_size=5,
)


@given(messages)
@settings(deadline=None, max_examples=40)
def test_the_bytes_are_those_of_openpi_and_come_back_alike(message: dict) -> None:
    packed = msgpack_numpy.packb(message)
    assert openpi.pack(message) == packed
    np.testing.assert_equal(openpi.unpack(packed), msgpack_numpy.unpackb(packed))


def request(**changes: object) -> dict:
    """A LIBERO client's request, as openpi's example builds it; a change to ... takes a field away."""
    element = {
        "observation/image": OBSERVATION.images["agentview"],
        "observation/wrist_image": OBSERVATION.images["wrist"],
        "observation/state": OBSERVATION.state_S.astype(np.float64),
        "prompt": "pick up the bowl",
    }
    element |= {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in element.items() if value is not ...}


def decode(message: dict, fields: Fields = FIELDS):
    return openpi.decode_request(msgpack_numpy.packb(message), CAMERAS, fields)


def test_a_libero_request_becomes_an_observation() -> None:
    observation, seed = decode(request(seed=7))
    np.testing.assert_array_equal(observation.images["agentview"], OBSERVATION.images["agentview"])
    np.testing.assert_array_equal(observation.images["wrist"], OBSERVATION.images["wrist"])
    assert observation.state_S.dtype == np.float32 and observation.state_S.tolist() == OBSERVATION.state_S.tolist()
    assert (observation.instruction, observation.time_s, seed) == ("pick up the bowl", 0.0, 7)
    assert decode(request())[1] == 0 and decode(request(seed=np.int64(3)))[1] == 3
    FAKE.validate(observation)


def test_channels_may_come_first() -> None:
    observation, _ = decode(request(observation__image=OBSERVATION.images["agentview"].transpose(2, 0, 1)))
    np.testing.assert_array_equal(observation.images["agentview"], OBSERVATION.images["agentview"])


def test_a_dot_leads_into_a_nested_map() -> None:
    fields = Fields(images={"agentview": "images.cam_high", "wrist": "images.cam_wrist"}, state="state")
    aloha = openpi.encode_request(OBSERVATION, CAMERAS, fields)
    told = msgpack_numpy.unpackb(aloha)
    assert set(told) == {"images", "state", "prompt"} and set(told["images"]) == {"cam_high", "cam_wrist"}
    observation, _ = openpi.decode_request(aloha, CAMERAS, fields)
    np.testing.assert_array_equal(observation.images["wrist"], OBSERVATION.images["wrist"])


def test_default_names() -> None:
    cameras = tuple(Camera(name=name, height=8, width=8) for name in ("left_wrist", "front", "side", "right_wrist"))
    body = Embodiment(name="b", state=FAKE.state, action=FAKE.action, cameras=cameras, control_hz=20)
    assert Fields.default(body).images == {
        "front": "observation/image",
        "left_wrist": "observation/wrist_image",
        "side": "observation/images/side",
        "right_wrist": "observation/images/right_wrist",
    }


@pytest.mark.parametrize(
    ("plain_fields", "words"),
    [
        ({"image": {}}, "Did you mean 'images'"),
        ({"images": {"agentvew": "a"}}, "Did you mean 'agentview'"),
        ({"images": {"agentview": "prompt"}}, "stands twice"),
    ],
)
def test_a_wrong_table_is_refused(plain_fields: dict, words: str) -> None:
    with pytest.raises(GrasplineError, match=words):
        Fields.from_dict(plain_fields, FAKE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation__wrist_image": ...}, "expected.*observation/wrist_image"),
        ({"prompt": ...}, "expected.*prompt"),
        ({"prompt": 3}, "'prompt' is not text"),
        ({"observation__state": [0.0] * 8}, "'observation/state' is list"),
        ({"observation__state": np.zeros((1, 8))}, "vector"),
        ({"observation__image": np.zeros((64, 64, 3), np.float32)}, "float32.*uint8"),
        ({"observation__image": np.zeros((64, 64), np.uint8)}, r"\(64, 64\)"),
        ({"observation__image": np.zeros((64, 64, 4), np.uint8)}, r"\(64, 64, 4\)"),
        ({"observation__image": np.zeros((0, 64, 3), np.uint8)}, r"\(0, 64, 3\)"),
        ({"seed": -1}, "'seed'"),
        ({"seed": True}, "'seed'"),
        ({"seed": 2**63}, "'seed'"),
    ],
)
def test_each_wrong_field_is_named(changes: dict, words: str) -> None:
    with pytest.raises(CorruptFileError, match=words):
        decode(request(**changes))


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'observation/image'"):
        decode(request(observation__imag=OBSERVATION.images["wrist"]))


def array(**changes: object) -> bytes:
    tagged = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"a": {**tagged, **{key.encode(): value for key, value in changes.items()}}})


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x93\x01\x02\x03",
        msgpack.packb({"a": 1}) + b"\x00",
        msgpack.packb({"a": msgpack.ExtType(5, b"x")}),
        msgpack.packb({b"key": 1}),
        msgpack.packb({"k" * 300: 1}),
        b"\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\xdd\xff\xff\xff\xff",  # a list of 2^32 - 1
        b"\x81\xa1a" + b"\xdc\x03\xff" * 5000,  # lists in lists in lists, each claiming 1023 entries
        b"\x81\xa1a" * 5000,
        array(dtype="|O"),
        array(dtype="<V4"),
        array(dtype=["<f4"]),
        array(shape=[3]),
        array(shape=[-1, -2]),
        array(shape=[2.0]),
        array(shape=[10**9, 10**9]),
        array(shape=[1, 1, 1, 1, 2]),
        array(data="12345678"),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}),
        msgpack.packb({"a": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}),
    ],
)
def test_hostile_bytes_are_refused(message: bytes) -> None:
    with pytest.raises(CorruptFileError):
        openpi.unpack(message)


def test_objects_are_never_sent() -> None:
    for value in (object(), np.array([object()]), np.array([1j]), np.zeros(2, np.float16)):
        with pytest.raises(TypeError, match="cannot be sent"):
            openpi.pack({"a": value})


def test_answers_of_other_servers_are_checked() -> None:
    actions_hA = np.random.default_rng(0).standard_normal((10, 7))
    got = openpi.decode_answer(msgpack_numpy.packb({"actions": actions_hA, "policy_timing": {"infer_ms": 1.0}}), 7)
    assert got.dtype == np.float32 and got.tolist() == actions_hA.astype(np.float32).tolist()
    for wrong, error in (
        ({"action": actions_hA}, CorruptFileError),
        ({"actions": [[0.0] * 7]}, CorruptFileError),
        ({"actions": actions_hA.astype(np.int64)}, CorruptFileError),
        ({"actions": actions_hA[:, :6]}, SpecMismatchError),
        ({"actions": actions_hA[0]}, SpecMismatchError),
        ({"actions": actions_hA[:0]}, SpecMismatchError),
        ({"actions": actions_hA * np.nan}, NonFiniteError),
        ({"actions": actions_hA * 1e300}, NonFiniteError),
    ):
        with pytest.raises(error):
            openpi.decode_answer(msgpack_numpy.packb(wrong), 7)
