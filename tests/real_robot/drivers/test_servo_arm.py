"""Start-up, reading and shutdown of the drivers, judged at the twin."""

import numpy as np
import pytest

from real_robot.conformance.bench import Bench
from real_robot.core.types import JointCommand, StopKind
from real_robot.drivers import servo_arm
from real_robot.drivers.errors import BusError, EnableError, TorqueOffError
from real_robot.drivers.register_shadow import RegisterShadow
from real_robot.twin import registers_dxl, registers_sts


@pytest.fixture(params=["sts", "dxl"])
def bench(request) -> Bench:
    return Bench(request.param)


def torque_writes(bench: Bench) -> list[tuple[float, int]]:
    address = registers_sts.TORQUE if bench.device == "sts" else registers_dxl.TORQUE
    return [(write.time_s, write.device_id) for write in bench.twin.monitor.of(1, address) if write.data == b"\x01"]


def test_connect_leaves_the_arm_limp_and_writes_resident_limits(bench: Bench) -> None:
    bench.arm.connect()
    assert not any(bench.twin.torque_flags().values())
    assert bench.twin.monitor.num_eeprom_writes == 0
    servo = bench.twin.servo(1)
    if bench.device == "sts":
        assert servo.get(registers_sts.GOAL_SPEED, 2) == round(1.15 * 3.0 * 4096 / (2 * np.pi))
        assert servo.get(registers_sts.ACCELERATION, 1) == round(1.5 * 15.0 * 4096 / (2 * np.pi) / 100)
    else:
        assert servo.memory[registers_dxl.WATCHDOG] == 10
        assert servo.get(registers_dxl.VELOCITY, 4) == round(1.15 * 3.5 * 60 / (2 * np.pi) / 0.229)


def test_goals_come_before_torque_and_torque_comes_slowly(bench: Bench) -> None:
    bench.arm.connect()
    bench.arm.enable()
    goal, limit = (42, 48) if bench.device == "sts" else (116, 100)
    on_s = torque_writes(bench)[0][0]
    assert bench.twin.monitor.of(1, goal)[0].time_s < on_s
    limits = [int.from_bytes(write.data[:2], "little") for write in bench.twin.monitor.of(1, limit)]
    full = 1000 if bench.device == "sts" else 885
    first = round(0.15 * full)
    assert first in limits and limits[-1] == full
    ramp = limits[limits.index(first) :]
    assert ramp == sorted(ramp) and len(ramp) == 11


@pytest.mark.parametrize("careful", [True, False])
def test_enable_gives_up_when_something_moves(bench: Bench, careful: bool, monkeypatch) -> None:
    """A load that 15 % of the torque cannot carry. The mutation (no look) leaves the torque on."""
    if not careful:
        monkeypatch.setattr(servo_arm.ServoArm, "_verify", lambda self, goal_J: None)
    bench.arm.connect()
    bench.twin.plant.loads_nm[1] = 1.2  # type: ignore[union-attr]
    if not careful:
        bench.arm.enable()
        assert bench.twin.torque_flags()[2]
        return
    with pytest.raises(EnableError, match="moved by"):
        bench.arm.enable()
    assert not any(bench.twin.torque_flags().values())


def test_readings_agree_with_the_plant(bench: Bench) -> None:
    wanted = [0.3, -0.4, 0.5, -0.2, 0.1, 0.6]
    bench.twin.place(wanted)
    bench.arm.connect()
    state = bench.arm.read()
    np.testing.assert_allclose(state.q_J, wanted, atol=1e-3)
    assert (state.age_J == 0).all() and not state.torque_on_J.any()
    assert state.voltage_J[0] == pytest.approx(12.0) and (state.temperature_J == 30).all()


def test_writes_never_leave_the_calibrated_travel(bench: Bench) -> None:
    bench.arm.connect()
    bench.arm.enable()
    bench.arm.write(JointCommand(time_s=0.0, q_J=np.full(6, 50.0), dq_J=np.zeros(6)))
    bench.twin.monitor.check()
    ends = [joint.to_rad(joint.high_count) for joint in bench.arm.calibration.joints.values()]
    assert bench.arm.read().goal_J == pytest.approx(ends, abs=1e-6)


def test_an_arm_outside_its_travel_is_not_switched_on(bench: Bench) -> None:
    q = [0.0] * 6
    q[0] = bench.spec.joints[0].high + 0.04
    bench.twin.place(q)
    bench.arm.connect()
    with pytest.raises(EnableError, match="outside its calibrated travel"):
        bench.arm.enable()


def test_release_tells_everybody_whatever_one_of_them_does(bench: Bench) -> None:
    bench.arm.connect()
    bench.arm.enable()
    bench.twin.servo(1).silent()
    with pytest.raises(TorqueOffError, match=r"servo 1\) does not answer"):
        bench.arm.stop(StopKind.RELEASE)
    assert [on for i, on in bench.twin.torque_flags().items() if i != 1] == [False] * 5
    with pytest.raises(TorqueOffError):
        bench.arm.disconnect()
    assert bench.link.opened is None
    with pytest.raises(BusError, match="not connected"):
        bench.arm.read()


def test_store_refuses_an_arm_under_torque(bench: Bench) -> None:
    bench.arm.connect()
    bench.arm.enable()
    with pytest.raises(BusError, match="limp arm only"):
        bench.arm.store(bench.arm.calibration)
    assert bench.twin.monitor.num_eeprom_writes == 0


def test_shadow() -> None:
    shadow = RegisterShadow()
    shadow.expect(1, {"torque_limit": 800})
    assert shadow.differences(1, {"torque_limit": 800, "goal_speed": 3}) == []
    assert shadow.differences(1, {"torque_limit": 1000}) == ["torque_limit is 1000, expected 800"]
    shadow.clear()
    assert shadow.differences(1, {"torque_limit": 1000}) == []
