"""Time on the wire: the table of transaction times, half duplex, echo, baud, and bytes that nobody should trust."""

import pytest

from real_robot.errors import LinkLost, PortBusyError
from real_robot.protocols import dxl2, sts
from real_robot.twin import bus
from real_robot.twin.arms import koch, so101
from real_robot.twin.link import VirtualLink

IDS = [1, 2, 3, 4, 5, 6]


def sts_write(size: int) -> bytes:
    return sts.sync_write(42, {i: bytes(size) for i in IDS})


# request, bytes of all replies, {baud: milliseconds}: figures published for these transactions
STS_TABLE = [
    (sts.sync_read(IDS, 56, 2), 48, {57_600: 10.8, 115_200: 5.4, 1_000_000: 0.62}),
    (sts.sync_read(IDS, 56, 15), 126, {57_600: 24.3, 115_200: 12.2, 1_000_000: 1.40}),
    (sts.sync_read(IDS, 40, 31), 222, {57_600: 41.0, 115_200: 20.5, 1_000_000: 2.36}),
]
DXL_TABLE = [
    (dxl2.sync_read(IDS, 126, 10), 126, {57_600: 25.3, 115_200: 12.7, 1_000_000: 1.46, 4_000_000: 0.36}),
]


@pytest.mark.parametrize(("make", "request_", "size", "baud", "expected_ms"), [
    *((so101, r, n, baud, ms) for r, n, row in STS_TABLE for baud, ms in row.items()),
    *((koch, r, n, baud, ms) for r, n, row in DXL_TABLE for baud, ms in row.items()),
])  # fmt: skip
def test_reads_take_the_time_of_the_table(
    clock, make, request_: bytes, size: int, baud: int, expected_ms: float
) -> None:
    link = VirtualLink(make(clock=clock, baud=baud), sleep_until=clock.sleep_until)
    port = link.open()
    start_s = clock()
    port.write(request_)
    assert len(port.read(size, clock() + 1.0)) == size
    assert 1000.0 * (clock() - start_s) == pytest.approx(expected_ms, rel=0.1)
    assert clock() - start_s == pytest.approx((len(request_) + size) * 10 / baud, rel=1e-6), "no more, no less"


@pytest.mark.parametrize(("packet", "expected_ms"), [
    (sts.sync_write(42, {i: bytes(2) for i in IDS}), 0.26),
    (sts.sync_write(41, {i: bytes(7) for i in IDS}), 0.56),
])  # fmt: skip
def test_a_write_takes_effect_when_its_last_byte_is_there(clock, packet: bytes, expected_ms: float) -> None:
    twin = so101(clock=clock)
    twin.receive(packet)
    clock.sleep(0.9e-3 * expected_ms)
    twin.advance()
    assert twin.monitor.num_writes == 0
    clock.sleep(0.2e-3 * expected_ms)
    twin.advance()
    assert twin.monitor.num_writes == 6


def test_eight_bits_a_byte_would_be_seen(clock, monkeypatch) -> None:
    """The slip that a table of times is for: start and stop bits forgotten."""
    monkeypatch.setattr(bus, "BITS_PER_BYTE", 8)
    request_, size, times_ms = STS_TABLE[0]
    with pytest.raises(AssertionError):
        test_reads_take_the_time_of_the_table(clock, so101, request_, size, 57_600, times_ms[57_600])


def test_return_delay_is_waited_for_by_each_servo(clock) -> None:
    """250 x 2 us x 6 servos: the 3 ms that arms lose who leave it at its default."""
    twin = koch(clock=clock)
    for servo in twin.servos:
        servo.memory[9] = 250
    port = VirtualLink(twin, sleep_until=clock.sleep_until).open()
    start_s = clock()
    port.write(dxl2.sync_read(IDS, 126, 10))
    assert len(port.read(126, clock() + 1.0)) == 126
    assert clock() - start_s == pytest.approx(1.46e-3 + 3.0e-3, rel=0.01)


def test_bytes_arrive_one_by_one(clock) -> None:
    port = VirtualLink(so101(clock=clock, baud=57_600), sleep_until=clock.sleep_until).open()
    port.write(sts.ping(1))
    start_s = clock()
    assert len(port.read(6, start_s + 8.5 * 10 / 57_600)) == 2, "six bytes there, two and a half back"
    assert len(port.read(4, start_s + 1.0)) == 4


def test_a_silent_servo_leaves_its_place_empty(clock) -> None:
    twin = so101(clock=clock)
    twin.servo(3).silent(for_=0.05)
    port = VirtualLink(twin, sleep_until=clock.sleep_until).open()
    port.write(sts.sync_read(IDS, 56, 2))
    decoder = sts.StatusDecoder(device_ids=IDS, data_size=2)
    assert [s.device_id for s in decoder.feed(port.read(48, clock() + 0.01))] == [1, 2, 4, 5, 6]
    clock.sleep(0.05)
    port.write(sts.sync_read(IDS, 56, 2))
    assert len(port.read(48, clock() + 0.01)) == 48


def test_talking_over_a_reply_spoils_both(clock) -> None:
    twin = so101(clock=clock, baud=57_600)
    port = VirtualLink(twin, sleep_until=clock.sleep_until).open()
    port.write(sts.sync_read(IDS, 40, 31))
    port.read(10, clock() + 1.0)
    port.write(sts.write(1, 42, b"\x00\x08"))
    clock.sleep(0.1)
    decoder = sts.StatusDecoder(device_ids=IDS, data_size=31)
    found = decoder.feed(port.read(500, clock())) + decoder.finish()
    assert len(found) < 6
    assert twin.monitor.collisions > 0
    assert not twin.monitor.of(1, 42), "the write was noise to the servo"


def test_echo_comes_first(clock) -> None:
    port = VirtualLink(so101(clock=clock, echo=True), sleep_until=clock.sleep_until).open()
    ping = sts.ping(2)
    port.write(ping)
    assert port.read(12, clock() + 0.01) == ping + bytes.fromhex("FF FF 02 02 00 FB")


def test_the_wrong_baud_is_deaf_and_mute(clock) -> None:
    twin = so101(clock=clock)
    link = VirtualLink(twin, sleep_until=clock.sleep_until)
    port = link.open(baud=115_200)
    port.write(sts.ping(1))
    assert port.read(6, clock() + 0.05) == b""
    port.close()
    port = link.open(baud=1_000_000)
    port.write(sts.ping(1))
    assert len(port.read(6, clock() + 0.05)) == 6


def test_unplugged_is_lost_and_stays_lost(clock) -> None:
    link = VirtualLink(so101(clock=clock), sleep_until=clock.sleep_until)
    port = link.open()
    with pytest.raises(PortBusyError, match="open already"):
        link.open()
    link.unplug()
    for lost in (lambda: port.write(b"x"), lambda: port.read(1, clock()), lambda: port.drain(1e-3), link.open):
        with pytest.raises(LinkLost, match="unplugged"):
            lost()
    link.replug()
    with pytest.raises(LinkLost, match="unplugged"):
        port.read(1, clock())
    again = link.open()
    again.write(sts.ping(1))
    assert len(again.read(6, clock() + 0.01)) == 6


def test_drain_waits_for_quiet(clock) -> None:
    twin = so101(clock=clock)
    port = VirtualLink(twin, sleep_until=clock.sleep_until).open()
    port.write(sts.sync_read(IDS, 40, 31))
    start_s = clock()
    assert len(port.drain(20e-3)) == 222
    assert clock() - start_s == pytest.approx(2.36e-3 + 20e-3, rel=0.02)


def test_the_same_seed_is_the_same_run(clock) -> None:
    def run(seed: int) -> bytes:
        time = type(clock)()
        twin = so101(clock=time, seed=seed)
        for servo in twin.servos:
            servo.flip_bit(0.5)
            servo.garbage(0.5)
        port = VirtualLink(twin, sleep_until=time.sleep_until).open()
        out = b""
        for _ in range(20):
            port.write(sts.sync_read(IDS, 40, 31))
            out += port.drain(5e-3)
        return out

    assert run(1) == run(1)
    assert run(1) != run(2)
