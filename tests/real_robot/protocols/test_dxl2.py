"""The Dynamixel codec against recorded packets and, where that is right, against the vendor's SDK."""

import itertools

import pytest
from dynamixel_sdk import PacketHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from real_robot.protocols import dxl2
from real_robot.protocols.rows import Status

GOLDEN = [
    (dxl2.ping(1), "FF FF FD 00 01 03 00 01 19 4E"),
    (dxl2.read(1, 132, 4), "FF FF FD 00 01 07 00 02 84 00 04 00 1D 15"),
    (dxl2.sync_read([1, 2], 132, 4), "FF FF FD 00 FE 09 00 82 84 00 04 00 01 02 CE FA"),
    (
        dxl2.sync_write(116, {1: (150).to_bytes(4, "little"), 2: (170).to_bytes(4, "little")}),
        "FF FF FD 00 FE 11 00 83 74 00 04 00 01 96 00 00 00 02 AA 00 00 00 82 87",
    ),
]


@pytest.mark.parametrize(("built", "golden"), GOLDEN)
def test_golden_vectors(built: bytes, golden: str) -> None:
    assert built == bytes.fromhex(golden)


def test_crc_equals_the_vendors() -> None:
    handler = PacketHandler(2.0)
    for size in range(40):
        data = bytes((size * 37 + i * 101) & 255 for i in range(size))
        assert dxl2.crc16(data) == handler.updateCRC(0, data, size)


def stuffed_by_hand(body: bytes) -> bytes:
    """The rule as it is written: behind each FF FF FD of the original, one FD."""
    out = b""
    for index, byte in enumerate(body):
        out += bytes([byte])
        if byte == 0xFD and body[index - 2 : index] == b"\xff\xff" and index >= 2:
            out += b"\xfd"
    return out


def test_stuffing_is_exact_for_every_short_payload() -> None:
    """All 349 524 payloads of 1 to 9 letters over the four bytes that matter."""
    letters = (0xFF, 0xFD, 0x00, 0x55)
    for size in range(1, 10):
        for combination in itertools.product(letters, repeat=size):
            body = bytes(combination)
            stuffed = dxl2.stuff(body)
            assert dxl2.unstuff(stuffed) == body
            assert b"\xff\xff\xfd\x00" not in stuffed, "no header inside"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([0xFF, 0xFF, 0xFD, 0xFD, 0x00, 0x7F]), max_size=30).map(bytes))
def test_stuffing_is_the_written_rule(body: bytes) -> None:
    assert dxl2.stuff(body) == stuffed_by_hand(body)


def test_the_vendors_stuffing_is_wrong_where_ours_is_not() -> None:
    """The reason for a codec of our own: its round trip loses bytes, and this test would see ours do so."""
    handler = PacketHandler(2.0)
    wrong = 0
    for combination in itertools.product((0xFF, 0xFD, 0x00), repeat=6):
        body = bytes([0x03, *combination])
        size = len(body) + 2
        packet = [0xFF, 0xFF, 0xFD, 0, 1, size & 255, size >> 8, *body, 0, 0]
        back = handler.removeStuffing(handler.addStuffing(packet))
        wrong += bytes(back[7 : 7 + len(body)]) != body
        assert dxl2.unstuff(dxl2.stuff(body)) == body
    assert wrong > 0


def test_broken_stuffing_is_refused_though_its_crc_is_right() -> None:
    body = b"\x55\x00\xff\xff\xfd\x01"
    head = dxl2.HEADER + b"\x01" + (len(body) + 2).to_bytes(2, "little") + body
    decoder = dxl2.StatusDecoder()
    assert decoder.feed(head + dxl2.crc16(head).to_bytes(2, "little")) + decoder.finish() == []


def reply(device_id: int, error: int, data: bytes) -> bytes:
    body = stuffed_by_hand(b"\x55" + bytes([error]) + data)
    head = b"\xff\xff\xfd\x00" + bytes([device_id]) + (len(body) + 2).to_bytes(2, "little") + body
    crc = PacketHandler(2.0).updateCRC(0, head, len(head))
    return head + crc.to_bytes(2, "little")


NASTY = st.lists(st.sampled_from([0xFF, 0xFD, 0x00, 0x55, 0x01]), max_size=20).map(bytes)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0xFC), st.integers(0, 255), NASTY), max_size=5),
    st.lists(st.integers(1, 30), min_size=1),
)
def test_decodes_whatever_the_pieces(packets: list[tuple[int, int, bytes]], sizes: list[int]) -> None:
    stream = b"".join(reply(*packet) for packet in packets)
    decoder, found = dxl2.StatusDecoder(), []
    position = 0
    while position < len(stream):
        size = sizes[position % len(sizes)]
        found += decoder.feed(stream[position : position + size])
        position += size
    assert found == [Status(device_id=i, error=e, data=d) for i, e, d in packets]
    assert decoder.discarded == 0


def test_every_one_and_two_bit_flip_is_refused() -> None:
    good = reply(3, 0, b"\xff\xff\xfd\x00\x08")
    flips = [(place,) for place in range(8 * len(good))]
    flips += list(itertools.combinations(range(32, 8 * len(good), 3), 2))
    for places in flips:
        bad = bytearray(good)
        for place in places:
            bad[place // 8] ^= 1 << place % 8
        decoder = dxl2.StatusDecoder(device_ids=[3], data_size=5)
        assert decoder.feed(bytes(bad)) + decoder.finish() == [], places


def test_resynchronises_and_sorts_out() -> None:
    good = reply(3, 0x80, b"\x01\x02")
    garbage = b"\xff\xff\xfd\x00\x03\x06\x00\x55" + b"\xff\xff\xfd\x00\x03\xff\x00\x55" + good[:6]
    decoder = dxl2.StatusDecoder(device_ids=[3], data_size=2)
    found = decoder.feed(garbage + good + reply(4, 0, b"\x01\x02")) + decoder.finish()
    assert found == [Status(device_id=3, error=0x80, data=b"\x01\x02")], "the alert bit is kept"
    assert [status.device_id for status in decoder.refused] == [4]


def test_own_echo_is_no_reply() -> None:
    decoder = dxl2.StatusDecoder()
    assert decoder.feed(dxl2.read(1, 132, 4)) + decoder.finish() == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dxl2.ping(253), "device_id 253"),
        (lambda: dxl2.sync_read([], 132, 4), "at least one"),
        (lambda: dxl2.sync_write(116, {1: b"\x00", 2: b""}), "one size"),
    ],
)
def test_what_cannot_be_sent_says_why(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
