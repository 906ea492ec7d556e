"""Random bytes through both decoders: no exception, nothing sound lost, nothing accepted beyond the checksum's rate."""

import random
from types import ModuleType

import pytest

from real_robot.protocols import dxl2, sts
from real_robot.twin.dxl_bus import DxlBusTwin
from real_robot.twin.sts_bus import StsBusTwin

STATUS = {sts: StsBusTwin._status, dxl2: DxlBusTwin._status}  # packets made apart from the codec


def sound(codec: ModuleType, rng: random.Random) -> tuple[int, bytes, bytes]:
    data = rng.randbytes(rng.randrange(16))
    device_id = rng.randrange(1, 7)
    return device_id, data, STATUS[codec](None, device_id, 0, data)


def broken(codec: ModuleType, rng: random.Random, packet: bytes) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        size = rng.randrange(4, 12)  # a head that promises a packet, and noise
        head = [0xFF, 0xFF, 3, size, 0] if codec is sts else [0xFF, 0xFF, 0xFD, 0, 3, size, 0, 0x55]
        return bytes(head) + rng.randbytes(size)
    if kind == 1:
        return packet[: rng.randrange(len(packet))]
    if kind == 2:
        place = rng.randrange(len(packet))
        return packet[:place] + packet[place + 1 :]
    return rng.randbytes(rng.randrange(25))


def candidates(codec: ModuleType, stream: bytes) -> int:
    """Places where a whole packet might stand, judged by header and length alone."""
    head, low, tail = (4, 3, 1) if codec is sts else (7, 5, 0)
    start = b"\xff\xff" if codec is sts else b"\xff\xff\xfd\x00"
    count = 0
    for place in range(len(stream) - head):
        if stream.startswith(start, place):
            size = stream[place + low] + (0 if codec is sts else 256 * stream[place + 6])
            count += place + head + size + tail - 1 <= len(stream)
    return count


def fuzz(codec: ModuleType, streams: int, seed: int) -> tuple[int, int, int]:
    """Streams of sound and broken pieces. Counts packets lost, packets that nobody made, and chances."""
    rng = random.Random(seed)
    lost = invented = chances = 0
    for _ in range(streams):
        decoder, sent, made, stream = codec.StatusDecoder(), [], [], b""
        for _ in range(rng.randrange(1, 4)):
            device_id, data, packet = sound(codec, rng)
            made.append((device_id, data))  # a broken one may be whole again thanks to its neighbour's bytes
            if rng.random() < 0.5:
                stream += broken(codec, rng, packet)
            else:
                stream += packet
                sent.append((device_id, data))
        cut = rng.randrange(len(stream) + 1)
        found = decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) + decoder.finish()
        found = [(status.device_id, status.data) for status in found]
        extra = sum(packet not in made for packet in found)
        missing = sum(packet not in found for packet in sent)
        others = sum(packet not in sent for packet in found)
        assert missing <= 2 * others, "a sound packet is lost only to one that took its bytes"
        lost, invented, chances = lost + missing, invented + extra, chances + candidates(codec, stream)
    return lost, invented, chances


@pytest.mark.parametrize(("codec", "rate"), [(sts, 1 / 256), (dxl2, 1 / 65536)])
@pytest.mark.parametrize("streams", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_fuzzed_streams(codec: ModuleType, rate: float, streams: int) -> None:
    lost, invented, chances = fuzz(codec, streams, seed=streams)
    expected = chances * rate
    assert chances > streams / 2
    assert invented <= expected + 4 * expected**0.5 + 2
    assert lost <= streams * 2 * rate + 2


@pytest.mark.parametrize(("codec", "tail", "rate"), [(sts, 1, 1 / 256), (dxl2, 2, 1 / 65536)])
def test_a_reply_with_a_random_checksum_passes_at_the_checksums_rate(codec: ModuleType, tail: int, rate: float) -> None:
    rng = random.Random(3)
    accepted = 0
    for _ in range(20_000):
        packet = STATUS[codec](None, 3, 0, b"\x01\x02\x03\x04")
        decoder = codec.StatusDecoder(device_ids=[3], data_size=4)
        accepted += len(decoder.feed(packet[:-tail] + rng.randbytes(tail)) + decoder.finish())
    expected = 20_000 * rate
    assert abs(accepted - expected) <= 4 * expected**0.5 + 2
