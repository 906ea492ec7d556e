"""A clock that stands still until it is moved, and a host that talks to a twin on it."""

import pytest

from real_robot.protocols import dxl2, dxl2_table, sts, sts_table
from real_robot.twin.arms import koch, so101
from real_robot.twin.link import VirtualLink


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep_until(self, at_s: float) -> None:
        self.now_s = max(self.now_s, at_s)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Host:
    """A driver of the simplest kind, one register at a time by name, for either protocol."""

    def __init__(self, twin, clock, codec, registers) -> None:
        self.twin, self.clock, self.codec, self.registers = twin, clock, codec, registers
        self.link = VirtualLink(twin, sleep_until=clock.sleep_until)
        self.port = self.link.open()

    def ask(self, packet: bytes, **asked):
        """The first reply, or None when none comes within 20 ms."""
        decoder, deadline_s = self.codec.StatusDecoder(**asked), self.clock() + 20e-3
        self.port.write(packet)
        while byte := self.port.read(1, deadline_s):
            if found := decoder.feed(byte):
                return found[0]
        return None

    def read(self, device_id: int, name: str) -> int:
        row = self.registers[name]
        return row.unpack(self.ask(self.codec.read(device_id, row.address, row.width), data_size=row.width).data)

    def write(self, device_id: int, name: str, value: int) -> int | None:
        """Returns the error byte, or None without an answer."""
        row = self.registers[name]
        reply = self.ask(self.codec.write(device_id, row.address, row.pack(value)), data_size=0)
        return reply.error if reply else None

    def joint(self, device_id: int) -> float:
        """Angle of the joint [rad], from the plant itself."""
        return self.twin.plant.positions_rad[self.twin.servo(device_id).joint]


@pytest.fixture
def host_of(clock):
    """Makes a host for (twin, codec, registers)."""
    return lambda twin, codec, registers: Host(twin, clock, codec, registers)


@pytest.fixture
def feetech(clock) -> Host:
    return Host(so101(clock=clock), clock, sts, sts_table.REGISTERS)


@pytest.fixture
def dynamixel(clock) -> Host:
    return Host(koch(clock=clock), clock, dxl2, dxl2_table.REGISTERS)
