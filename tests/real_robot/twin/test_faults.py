"""Each fault does what its name says, on the wire or in the servo, from when and for how long it was asked."""

import math
import random

import pytest

from real_robot.protocols import dxl2, sts
from real_robot.twin.motor import COUNTS_PER_RAD

IDS = [1, 2, 3, 4, 5, 6]


def read_all(feetech, size: int = 2):
    decoder = sts.StatusDecoder(device_ids=IDS, data_size=size)
    feetech.port.write(sts.sync_read(IDS, 56, size))
    found = decoder.feed(feetech.port.read(1000, feetech.clock() + 10e-3)) + decoder.finish()
    return [status.device_id for status in found], decoder


def test_a_window_opens_and_closes(feetech) -> None:
    feetech.twin.servo(3).silent(after=0.1, for_=0.2)
    seen = []
    for _ in range(8):
        seen.append(3 in read_all(feetech)[0])
        feetech.clock.sleep(0.04)
    assert seen == [True, True, False, False, False, False, True, True]


def test_silent_hears_nothing_and_keeps_going(feetech) -> None:
    feetech.write(1, "goal_speed", 100)
    feetech.write(1, "torque_enable", 1)
    feetech.write(1, "goal_position", 2200)
    feetech.twin.servo(1).silent(for_=2.0)
    assert feetech.write(1, "torque_enable", 0) is None
    feetech.clock.sleep(2.5)
    assert feetech.read(1, "torque_enable") == 1
    assert feetech.read(1, "present_position") == pytest.approx(2200, abs=2)


@pytest.mark.parametrize("fault", ["flip_bit", "truncate"])
def test_spoilt_replies_are_refused(feetech, fault: str) -> None:
    getattr(feetech.twin.servo(2), fault)(1.0)
    ids, decoder = read_all(feetech)
    assert 2 not in ids
    assert set(ids) <= {1, 3, 4, 5, 6}
    assert len(ids) >= 4, "at most the neighbour is lost with it"
    assert decoder.discarded > 0


def test_doubled_and_garbled_replies(feetech) -> None:
    feetech.twin.servo(2).double()
    feetech.twin.servo(4).garbage()
    ids, decoder = read_all(feetech)
    assert ids.count(2) == 2
    assert set(ids) == set(IDS)
    assert decoder.discarded > 0


def test_a_share_is_a_share(feetech) -> None:
    feetech.twin.servo(1).flip_bit(0.3)
    clean = sum(feetech.ask(sts.read(1, 56, 2), data_size=2) is not None for _ in range(300))
    assert clean == pytest.approx(210, abs=32), "four standard deviations"


def test_wrong_id(feetech) -> None:
    feetech.twin.servo(2).wrong_id()
    ids, decoder = read_all(feetech)
    assert ids == [1, 3, 4, 5, 6]
    assert [status.device_id for status in decoder.refused] == [102]
    feetech.twin.servo(2).wrong_id(5)
    assert sorted(read_all(feetech)[0]) == [1, 3, 4, 5, 5, 6]


def test_a_duplicate_id_answers_twice(feetech) -> None:
    feetech.twin.servo(2).duplicate()
    feetech.port.write(sts.read(2, 56, 2))
    found = sts.StatusDecoder().feed(feetech.port.read(100, feetech.clock() + 0.01))
    assert [int.from_bytes(s.data, "little") for s in found] == [2048, 3072]


def test_two_servos_of_one_id_answer_twice(feetech) -> None:
    feetech.twin.servo(3).device_id = 2
    assert sorted(read_all(feetech)[0]) == [1, 2, 2, 4, 5, 6]


def test_a_delayed_reply_comes_late(feetech) -> None:
    feetech.twin.servo(1).delay_reply(80e-3)
    start_s = feetech.clock()
    feetech.port.write(sts.ping(1))
    assert feetech.port.read(6, start_s + 79e-3) == b""
    assert len(feetech.port.read(6, start_s + 1.0)) == 6
    assert feetech.clock() - start_s == pytest.approx(80e-3 + 12 * 10 / 1e6, abs=1e-6)


def test_a_stale_reply_stands_in_front_of_the_true_one(feetech) -> None:
    """It has the right ID, length and checksum: only that it came too early in the answer gives it away."""
    feetech.twin.servo(1).memory[60:62] = b"\xe7\x03"
    feetech.twin.servo(1).stale_reply()
    feetech.twin.servo(1).motor.duty = 0.999
    feetech.port.write(sts.read(1, 60, 2))
    assert feetech.port.read(8, feetech.clock() + 1e-3) == b"", "held back"
    feetech.port.write(sts.read(1, 56, 2))
    found = sts.StatusDecoder(device_ids=[1], data_size=2).feed(feetech.port.read(100, feetech.clock() + 5e-3))
    assert [int.from_bytes(s.data, "little") for s in found] == [999, 2048]


def test_a_lost_sync_write_reaches_nobody(feetech) -> None:
    feetech.twin.lose_sync_writes(1)
    for goal in (2100, 2200):
        feetech.port.write(sts.sync_write(42, {i: goal.to_bytes(2, "little") for i in IDS}))
        feetech.clock.sleep(5e-3)
        expected = 2048 if goal == 2100 else 2200
        assert [feetech.read(i, "goal_position") for i in IDS] == [expected] * 6


def test_foreign_bytes_on_the_wire(feetech) -> None:
    feetech.twin.inject(b"\x01\x02\x03")
    feetech.clock.sleep(1e-3)
    assert feetech.port.drain(1e-3) == b"\x01\x02\x03"


def test_encoder_faults(feetech) -> None:
    feetech.write(1, "torque_enable", 1)
    servo = feetech.twin.servo(1)
    servo.jump(500, for_=4e-3)
    feetech.clock.sleep(3e-3)
    assert feetech.read(1, "present_position") == 2548
    feetech.clock.sleep(1.0)
    assert feetech.read(1, "present_position") == pytest.approx(2048, abs=2)
    servo.freeze(for_=0.1)
    feetech.write(1, "goal_position", 2300)
    feetech.clock.sleep(0.09)
    assert feetech.read(1, "present_position") == pytest.approx(2048, abs=2)
    assert feetech.joint(1) * COUNTS_PER_RAD > 100, "the arm moves, the encoder does not"


def test_stall_blocks_and_lets_go(feetech) -> None:
    feetech.write(1, "torque_enable", 1)
    feetech.twin.servo(1).stall(for_=0.5)
    feetech.write(1, "goal_position", 2300)
    feetech.clock.sleep(0.4)
    assert feetech.joint(1) == 0.0
    feetech.clock.sleep(1.0)
    assert feetech.read(1, "present_position") == pytest.approx(2300, abs=2)


def test_overload_can_be_forced(feetech) -> None:
    feetech.write(1, "torque_enable", 1)
    feetech.twin.servo(1).overload()
    feetech.clock.sleep(0.01)
    assert feetech.ask(sts.ping(1)).error == 32
    assert feetech.write(1, "torque_enable", 0) == 32
    assert feetech.read(1, "torque_enable") == 0, "the write took effect"


def test_reboot_in_motion(feetech) -> None:
    feetech.write(1, "torque_enable", 1)
    feetech.write(1, "torque_limit", 500)
    feetech.write(1, "goal_position", 2600)
    feetech.clock.sleep(0.1)
    feetech.twin.servo(1).reboot()
    assert feetech.ask(sts.ping(1)) is None
    feetech.clock.sleep(0.3)
    assert feetech.read(1, "torque_enable") == 0
    assert feetech.read(1, "torque_limit") == 1000


def test_dynamixel_faults_ride_the_same_wire(dynamixel) -> None:
    twin = dynamixel.twin
    twin.servo(2).flip_bit(1.0)
    twin.servo(4).wrong_id()
    twin.servo(5).double()
    decoder = dxl2.StatusDecoder(device_ids=IDS, data_size=4)
    dynamixel.port.write(dxl2.sync_read(IDS, 132, 4))
    found = decoder.feed(dynamixel.port.read(1000, dynamixel.clock() + 10e-3)) + decoder.finish()
    assert [status.device_id for status in found] == [1, 3, 5, 5, 6]


def test_an_unknown_servo_is_named(feetech) -> None:
    with pytest.raises(KeyError, match="no servo 9"):
        feetech.twin.servo(9)


@pytest.mark.parametrize("host", ["feetech", "dynamixel"])
def test_no_packet_breaks_the_twin(request, host: str) -> None:
    """3000 sound frames with random instructions and noise between them: the arm is still an arm."""
    bench = request.getfixturevalue(host)
    rng, codes = random.Random(5), [1, 2, 3, 3, 3, 4, 5, 8, 0x10, 0x82, 0x83, 0x55]
    for _ in range(3000):
        params = bytes(rng.choice([rng.randrange(256), rng.randrange(8), 40, 64]) for _ in range(rng.randrange(12)))
        bench.port.write(bench.codec.packet(rng.choice([*IDS, 0xFE]), rng.choice(codes), params) + rng.randbytes(2))
        bench.clock.sleep(1e-3)
    bench.port.drain(0.1)
    bench.clock.sleep(1.0)
    for servo in bench.twin.servos:
        servo.heal()
        servo.reboot()
    bench.clock.sleep(0.5)
    bench.twin.advance()
    assert all(math.isfinite(q) for q in bench.twin.plant.positions_rad)
    assert bench.twin.monitor.packets > 1000
