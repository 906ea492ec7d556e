"""The Feetech codec against packets recorded from the vendor's SDK, the SDK itself, and every way to break a reply."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scservo_sdk import PacketHandler

from real_robot.protocols import sts
from real_robot.protocols.rows import Status, decode_sign, encode_sign

GOLDEN = [
    (sts.ping(1), "FF FF 01 02 01 FB"),
    (sts.read(1, 56, 2), "FF FF 01 04 02 38 02 BE"),
    (sts.sync_read([1, 2, 3], 56, 2), "FF FF FE 07 82 38 02 01 02 03 38"),
    (sts.sync_write(42, {1: b"\x00\x08", 2: b"\x00\x08"}), "FF FF FE 0A 83 2A 02 01 00 08 02 00 08 35"),
    (sts.reg_write(1, 42, b"\x00\x08"), "FF FF 01 05 04 2A 00 08 C3"),
    (sts.action(), "FF FF FE 02 05 FA"),
    (sts.torque_off_all(), "FF FF FE 04 03 28 00 D2"),
]


@pytest.mark.parametrize(("built", "golden"), GOLDEN)
def test_golden_vectors(built: bytes, golden: str) -> None:
    assert built == bytes.fromhex(golden)


class RecordingPort:
    """The vendor's port handler, as far as sending needs it."""

    is_using = False

    def __init__(self) -> None:
        self.sent = b""

    def clearPort(self) -> None: ...

    def setPacketTimeout(self, length: int) -> None: ...

    def writePort(self, packet: list[int]) -> int:
        self.sent = bytes(packet)
        return len(packet)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 0xFD), st.integers(0, 100), st.binary(min_size=1, max_size=20))
def test_writes_equal_the_vendors(device_id: int, address: int, data: bytes) -> None:
    handler = PacketHandler(0)
    for vendor, ours in [(handler.writeTxOnly, sts.write), (handler.regWriteTxOnly, sts.reg_write)]:
        port = RecordingPort()
        vendor(port, device_id, address, len(data), list(data))
        assert port.sent == ours(device_id, address, data)
    port = RecordingPort()
    handler.readTx(port, device_id, address, len(data))
    assert port.sent == sts.read(device_id, address, len(data))
    port = RecordingPort()
    handler.syncReadTx(port, address, len(data), [device_id], 1)
    assert port.sent == sts.sync_read([device_id], address, len(data))


def reply(device_id: int, error: int, data: bytes) -> bytes:
    body = [device_id, len(data) + 2, error, *data]
    return bytes([255, 255, *body, (~sum(body)) & 255])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0xFD), st.integers(0, 0x7F), st.binary(max_size=40)), max_size=6),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_decodes_whatever_the_pieces(packets: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    stream = b"".join(reply(*packet) for packet in packets)
    decoder, found = sts.StatusDecoder(), []
    position = 0
    while position < len(stream):
        size = sizes[position % len(sizes)]
        found += decoder.feed(stream[position : position + size])
        position += size
    assert found == [Status(device_id=i, error=e, data=d) for i, e, d in packets]
    assert decoder.discarded == 0


def flips_accepted(decoder_class: type[sts.StatusDecoder]) -> int:
    good, accepted = reply(3, 0, bytes(range(31))), 0
    for place in range(8 * len(good)):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        decoder = decoder_class(device_ids=[3], data_size=31)
        accepted += len(decoder.feed(bytes(bad)) + decoder.finish())
    return accepted


def test_every_single_bit_flip_is_refused() -> None:
    """A sum catches each one; a flipped length is caught by what was asked for."""
    assert flips_accepted(sts.StatusDecoder) == 0

    class Trusting(sts.StatusDecoder):
        def status(self, whole: bytes) -> Status:
            body = whole[2:-1]
            return Status(device_id=body[0], error=body[2], data=body[3:])

    assert flips_accepted(Trusting) > 200, "without the sum they pass"


def test_resynchronises_behind_garbage() -> None:
    good = reply(3, 32, b"\x01\x02")
    garbage = b"\xff\xff\x03\x04\x00\x01" + b"\xff\xff\xff\x00\x80" + good[:4]
    decoder = sts.StatusDecoder(device_ids=[3], data_size=2)
    found = decoder.feed(garbage + good) + decoder.finish()
    assert found == [Status(device_id=3, error=32, data=b"\x01\x02")], "the status byte of a good reply is kept"
    assert decoder.discarded == len(garbage)


def test_a_false_length_cannot_swallow_what_follows() -> None:
    good = reply(1, 0, b"\x00\x08")
    decoder = sts.StatusDecoder(device_ids=[1], data_size=2)
    assert decoder.feed(b"\xff\xff\x01\x30" + good) == [Status(device_id=1, error=0, data=b"\x00\x08")]


def test_half_a_packet_waits_and_is_given_up() -> None:
    good = reply(1, 0, b"\x00\x08")
    decoder = sts.StatusDecoder()
    assert decoder.feed(good[:5]) == []
    assert decoder.feed(good[5:]) != []
    assert decoder.feed(b"\xff\xff\x01\x20\x00" + good) == [], "it may still be a long one"
    assert decoder.finish() == [Status(device_id=1, error=0, data=b"\x00\x08")]


def test_other_ids_and_sizes_are_refused_but_kept() -> None:
    decoder = sts.StatusDecoder(device_ids=[1, 2], data_size=2)
    assert decoder.feed(reply(7, 0, b"\x00\x08") + reply(1, 0, b"\x05")) == []
    assert [status.device_id for status in decoder.refused] == [7, 1]


@pytest.mark.parametrize("bit", [10, 11, 15])
def test_sign_magnitude(bit: int) -> None:
    limit = (1 << bit) - 1
    for value in (0, 1, -1, limit, -limit):
        assert decode_sign(encode_sign(value, bit), bit) == value
    assert encode_sign(-1, bit) == 1 << bit | 1
    assert decode_sign(1 << bit, bit) == 0, "minus zero is zero"
    with pytest.raises(ValueError, match=f"sign bit {bit}"):
        encode_sign(limit + 1, bit)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sts.ping(255), "device_id 255"),
        (lambda: sts.sync_read([1, 1], 56, 2), "distinct"),
        (lambda: sts.sync_write(42, {1: b"\x00", 2: b"\x00\x01"}), "one size"),
        (lambda: sts.sync_write(42, {}), "at least one"),
        (lambda: sts.write(1, 0, bytes(250)), "at most"),
    ],
)
def test_what_cannot_be_sent_says_why(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
