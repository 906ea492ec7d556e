"""The vendors' own SDKs drive the twins: they agree where they are right, and show the faults that our codec is for."""

import dynamixel_sdk
import pytest
import scservo_sdk

from real_robot.twin.arms import koch, so101
from real_robot.twin.link import VirtualLink

IDS = [1, 2, 3, 4, 5, 6]


class TwinSerial:
    """What the SDKs use of a pyserial port, on the twin's clock: a look at an empty line takes 0.1 ms."""

    def __init__(self, twin, clock) -> None:
        self.clock = clock
        self.port = VirtualLink(twin, sleep_until=clock.sleep_until).open()

    def write(self, data) -> int:
        self.port.write(bytes(data))
        return len(data)

    def read(self, size: int) -> bytes:
        return self.port.read(size, self.clock() + 1e-4)

    def flush(self) -> None: ...


def vendor_port(module, twin, clock):
    port = module.PortHandler("twin")
    port.ser, port.is_open = TwinSerial(twin, clock), True
    port.tx_time_per_byte = 1000.0 / port.baudrate * 10.0
    port.getCurrentTime = lambda: 1000.0 * clock()
    return port


@pytest.fixture
def feetech_sdk(clock):
    twin = so101(clock=clock)
    return twin, vendor_port(scservo_sdk, twin, clock), scservo_sdk.PacketHandler(0)


@pytest.fixture
def dynamixel(clock):
    twin = koch(clock=clock)
    return twin, vendor_port(dynamixel_sdk, twin, clock), dynamixel_sdk.PacketHandler(2.0)


def test_feetech_ping_read_write(clock, feetech_sdk) -> None:
    _, port, handler = feetech_sdk
    assert [handler.ping(port, i)[:2] for i in IDS] == [(777, 0)] * 6
    assert handler.write2ByteTxRx(port, 1, 42, 2300) == (0, 0)
    assert handler.write1ByteTxRx(port, 1, 40, 1) == (0, 0)
    clock.sleep(1.0)
    position, result, error = handler.read2ByteTxRx(port, 1, 56)
    assert (result, error) == (0, 0)
    assert position == pytest.approx(2300, abs=2)


def test_feetech_groups(clock, feetech_sdk) -> None:
    twin, port, handler = feetech_sdk
    twin.place([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    reader = scservo_sdk.GroupSyncRead(port, handler, 56, 2)
    writer = scservo_sdk.GroupSyncWrite(port, handler, 42, 2)
    for i in IDS:
        reader.addParam(i)
        writer.addParam(i, [i, 8])
    assert reader.txRxPacket() == 0
    assert [reader.getData(i, 56, 2) for i in IDS] == [2113, 2178, 2244, 2309, 2374, 2439]
    assert writer.txPacket() == 0
    clock.sleep(1e-3)
    assert [twin.servo(i).get(42, 2) for i in IDS] == [2048 + i for i in IDS]


def test_feetech_action(clock, feetech_sdk) -> None:
    twin, port, handler = feetech_sdk
    assert handler.regWriteTxRx(port, 2, 42, 2, [0x34, 0x06]) == (0, 0)
    assert twin.servo(2).get(42, 2) == 2048
    handler.action(port, scservo_sdk.BROADCAST_ID)
    clock.sleep(1e-3)
    assert twin.servo(2).get(42, 2) == 0x634


def test_feetech_sees_the_overload(clock, feetech_sdk) -> None:
    twin, port, handler = feetech_sdk
    twin.servo(4).overload()
    clock.sleep(0.01)
    assert handler.read1ByteTxRx(port, 4, 63)[1:] == (0, 32)


def test_the_vendor_takes_a_stale_reply_for_the_answer(clock, feetech_sdk) -> None:
    """Load 999 is returned as a position of 999; the true one is 2048. Our driver must not do this."""
    twin, port, handler = feetech_sdk
    twin.servo(1).stale_reply()
    twin.servo(1).motor.duty = 0.999
    assert handler.read2ByteTxRx(port, 1, 60)[1] == scservo_sdk.COMM_RX_TIMEOUT
    assert handler.read2ByteTxRx(port, 1, 56) == (999, 0, 0)


def test_the_vendor_reads_a_silent_servo_as_zero(clock, feetech_sdk) -> None:
    twin, port, handler = feetech_sdk
    twin.servo(3).silent()
    reader = scservo_sdk.GroupSyncRead(port, handler, 56, 2)
    for i in IDS:
        reader.addParam(i)
    assert reader.txRxPacket() != 0
    assert [reader.getData(i, 56, 2) for i in (1, 2, 3, 4)] == [2048, 2048, 0, 0]


def test_dynamixel_ping_read_write(clock, dynamixel) -> None:
    _, port, handler = dynamixel
    assert [handler.ping(port, i) for i in IDS] == [(1060, 0, 0)] * 2 + [(1200, 0, 0)] * 4
    assert handler.write4ByteTxRx(port, 1, 116, 2300) == (0, 0)
    assert handler.write1ByteTxRx(port, 1, 64, 1) == (0, 0)
    clock.sleep(1.0)
    position, result, error = handler.read4ByteTxRx(port, 1, 132)
    assert (result, error) == (0, 0)
    assert position == pytest.approx(2300, abs=5)


def test_dynamixel_groups_and_broadcast(clock, dynamixel) -> None:
    twin, port, handler = dynamixel
    twin.place([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    reader = dynamixel_sdk.GroupSyncRead(port, handler, 132, 4)
    writer = dynamixel_sdk.GroupSyncWrite(port, handler, 116, 4)
    for i in IDS:
        reader.addParam(i)
        writer.addParam(i, [i, 8, 0, 0])
    assert reader.txRxPacket() == 0
    assert [reader.getData(i, 132, 4) for i in IDS] == [2113, 2178, 2244, 2309, 2374, 2439]
    assert writer.txPacket() == 0
    clock.sleep(1e-3)
    assert [twin.servo(i).get(116, 4) for i in IDS] == [2048 + i for i in IDS]
    found, result = handler.broadcastPing(port)
    assert result == 0
    assert found == {i: [1060 if i < 3 else 1200, 45] for i in IDS}


def test_dynamixel_errors_and_reboot(clock, dynamixel) -> None:
    twin, port, handler = dynamixel
    assert handler.write4ByteTxRx(port, 1, 116, 4095) == (0, 6), "data limit error"
    assert handler.write2ByteTxRx(port, 1, 144, 1) == (0, 7), "access error"
    twin.servo(1).hardware_error(32)
    assert handler.ping(port, 1)[2] == 0x80
    assert handler.reboot(port, 1)[0] == 0
    clock.sleep(0.3)
    assert handler.ping(port, 1) == (1060, 0, 0)


def test_the_vendors_unstuffed_write_is_dropped(clock, dynamixel) -> None:
    twin, port, handler = dynamixel
    assert handler.write4ByteTxRx(port, 1, 112, 0x00FDFFFF)[0] == dynamixel_sdk.COMM_RX_TIMEOUT
    assert twin.monitor.lost == 1
    assert twin.servo(1).get(112, 4) == 0
