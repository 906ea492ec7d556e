"""Bus hygiene against the twins: what is believed, what is refused, how long a dead servo costs."""

import pytest

from real_robot.core.clock import VirtualClock
from real_robot.drivers.bus import Bus
from real_robot.drivers.errors import BusError
from real_robot.protocols import dxl2, sts
from real_robot.twin.arms import koch, so101
from real_robot.twin.link import VirtualLink

IDS = [1, 2, 3, 4, 5, 6]


@pytest.fixture(params=["sts", "dxl"])
def rig(request):
    clock = VirtualClock(start_s=10.0)
    twin = (so101 if request.param == "sts" else koch)(clock=clock.now)
    link = VirtualLink(twin, sleep_until=clock.sleep_until)
    bus = Bus(link.open(), sts if request.param == "sts" else dxl2, clock)
    return twin, bus, clock, (56, 2) if request.param == "sts" else (132, 4)


def position(status) -> int:
    return int.from_bytes(status.data, "little")


def test_all_answer_within_the_time_of_their_bytes(rig) -> None:
    _, bus, clock, (address, size) = rig
    start_s = clock.now()
    answers = bus.sync_read(IDS, address, size)
    assert [position(answers[i]) for i in IDS] == [2048] * 6
    assert clock.now() - start_s < 2e-3


def test_a_dead_servo_costs_milliseconds_and_the_others_count(rig) -> None:
    twin, bus, clock, (address, size) = rig
    twin.servo(3).silent()
    start_s = clock.now()
    assert sorted(bus.sync_read(IDS, address, size)) == [1, 2, 4, 5, 6]
    assert clock.now() - start_s < 6e-3
    with pytest.raises(BusError, match="servo 3 does not answer"):
        bus.read(3, address, size)
    assert bus.write(3, 40, b"\x00") is None


@pytest.mark.parametrize("distrust", [True, False])
def test_a_stale_reply_of_the_same_size(rig, distrust: bool, monkeypatch) -> None:
    """The load (2 bytes) held back until the position (2 bytes) is asked for: refused by the second, different answer.

    The mutation, believing the first answer as the vendors' SDKs do, reports another register as the position.
    """
    twin, bus, _, (address, size) = rig
    if not distrust:
        monkeypatch.setattr(Bus, "_sound", lambda self, found, decoder, ids, odd: {s.device_id: s for s in found[:1]})
    twin.servo(2).stale_reply()
    other = 42 if size == 2 else 116
    twin.servo(2).put(other, size, 999)
    with_nothing = bus._exchange(bus.codec.read(2, other, size), [2], size)
    assert with_nothing == {}
    answers = bus.sync_read([2], address, size)
    believed = [position(status) for status in answers.values()]
    assert believed == ([] if distrust else [999])


def test_late_replies_of_another_size_make_a_servo_suspect(rig) -> None:
    twin, bus, _, (address, size) = rig
    twin.servo(2).stale_reply(for_=0.02)
    bus.sync_read(IDS, address, size - 1)
    assert 2 not in bus.sync_read(IDS, address, size)
    twin.servo(2).heal()
    believed = [2 in bus.sync_read(IDS, address, size) for _ in range(5)]
    assert believed[-1] and not believed[0]


def test_doubled_answers_count_once_and_different_ones_not_at_all(rig) -> None:
    twin, bus, _, (address, size) = rig
    twin.servo(2).double()
    assert 2 in bus.sync_read(IDS, address, size)
    twin.servo(2).heal()
    twin.servo(2).duplicate()
    assert 2 not in bus.sync_read(IDS, address, size)
    assert len(bus.ping(2, data_size=0 if size == 2 else 3)) == 2


def test_an_echo_is_found_and_dropped() -> None:
    clock = VirtualClock(start_s=10.0)
    twin = so101(clock=clock.now, echo=True)
    bus = Bus(VirtualLink(twin, sleep_until=clock.sleep_until).open(), sts, clock)
    assert len(bus.ping(1)) == 2, "unfiltered, the echo of a PING reads like an answer"
    bus.probe_echo(1)
    assert len(bus.ping(1)) == 1
    assert bus.echo and len(bus.sync_read(IDS, 56, 2)) == 6


def test_bytes_that_nobody_asked_for_are_counted(rig) -> None:
    twin, bus, clock, (address, size) = rig
    bus.sync_read(IDS, address, size)
    twin.inject(b"hello")
    clock.advance(1e-3)
    assert len(bus.sync_read(IDS, address, size)) == 6 and bus.counts.stray == 1
