"""Clock, leases, latency, specifications, imports."""

import subprocess
import sys

import numpy as np
import pytest

from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.clock import RealClock, VirtualClock
from real_robot.core.faults import REACTIONS, FaultCode, RefusedError
from real_robot.core.latency import LatencyWindow
from real_robot.core.leases import Leases
from real_robot.core.types import ArmSpec, Clock, Gripper, JointSpec
from vla.core.errors import UnknownNameError


def test_virtual_time_takes_the_plants_with_it() -> None:
    clock, seen = VirtualClock(step_s=0.004), []
    clock.attach(seen.append)
    clock.sleep_until(0.01)
    np.testing.assert_allclose(seen, [0.004, 0.008, 0.01])
    clock.sleep_until(0.005)
    assert clock.now() == 0.01 and len(seen) == 3
    clock.advance(0.002)
    np.testing.assert_allclose(seen[3:], [0.012])
    for _ in range(100_000):
        clock.advance(0.001)
    assert clock.now() == pytest.approx(100.012, abs=1e-6)


def test_real_time_goes_on() -> None:
    clock: Clock = RealClock()
    begin = clock.now()
    clock.sleep_until(begin + 0.02)
    clock.sleep_until(begin)
    assert clock.now() - begin >= 0.02


def test_one_controller_at_a_time() -> None:
    leases = Leases()
    first = leases.acquire("policy", 0.0)
    with pytest.raises(RefusedError, match="policy"):
        leases.acquire("teleop", 0.2)
    leases.heartbeat(first.token, 0.29)
    leases.heartbeat(first.token, 0.58)
    assert not leases.expired(0.87) and leases.expired(0.89)
    with pytest.raises(RefusedError, match="ran out"):
        leases.heartbeat(first.token, 0.9)
    second = leases.acquire("teleop", 0.9)
    assert second.generation == first.generation + 1 and second.token != first.token
    with pytest.raises(RefusedError, match="token"):
        leases.heartbeat(first.token, 0.95)
    for guess in ("", "é", second.token[:-1], second.token + "0"):
        with pytest.raises(RefusedError):
            leases.check(guess, 0.95)
    with pytest.raises(RefusedError):
        leases.release(first.token)
    leases.release(second.token)
    assert leases.holder is None and not leases.expired(9.0)


def test_latency_forgets_a_spike() -> None:
    window = LatencyWindow()
    for latency_s in [2.0, *[0.1] * 49]:
        window.add(latency_s)
    assert window.quantile(1.0) == 2.0 and window.p95 == pytest.approx(0.1)
    window.add(0.1)
    assert window.quantile(1.0) == pytest.approx(0.1) and len(window) == 50


def test_latency_against_numbers_by_hand() -> None:
    window = LatencyWindow()
    for k in range(1, 21):
        window.add(0.01 * k)
    assert window.p95 == pytest.approx(0.2)  # rank 18.05 of 0..19, the higher one: errs to the safe side
    assert window.delay_steps(0.05) == 5
    assert window.feasible(5, 0.05) and not window.feasible(4, 0.05)
    window.require(5, 0.05)
    with pytest.raises(RefusedError, match=r"200 ms.*150 ms"):
        window.require(4, 0.05)
    assert "p95 200 ms" in window.report(8, 0.05)
    with pytest.raises(ValueError, match="latency_s"):
        window.add(float("nan"))


def test_each_code_has_a_reaction() -> None:
    assert set(REACTIONS) == set(FaultCode)


@pytest.mark.parametrize("make", [so101_spec, koch_spec])
def test_arms_are_consistent(make) -> None:
    spec, normal = make(), make(normal_speed=True)
    assert spec.max_tcp_speed_m_s == 0.25 and normal.max_tcp_speed_m_s is None
    assert spec.gripper_index == 5 and spec.arm_N.tolist() == [0, 1, 2, 3, 4]
    assert (spec.low_J < spec.high_J).all() and spec.dt_s == pytest.approx(0.01)
    gripper = spec.gripper
    assert spec.low_J[5] <= min(gripper.closed, gripper.open) <= max(gripper.closed, gripper.open) <= spec.high_J[5]
    if spec.park is not None:
        assert (spec.park >= spec.low_J).all() and (spec.park <= spec.high_J).all()


def test_wrong_specifications_name_the_field() -> None:
    fields = {"margin": 0.0, "max_velocity": 1.0, "max_acceleration": 1.0, "max_jerk": 1.0, "max_effort": 1.0}
    with pytest.raises(ValueError, match=r"'a'.*margin"):
        JointSpec(name="a", low=0.0, high=0.1, **fields | {"margin": 0.05})
    with pytest.raises(ValueError, match="max_jerk"):
        JointSpec(name="a", low=0.0, high=0.1, **fields | {"max_jerk": float("nan")})
    joint = JointSpec(name="a", low=0.0, high=0.1, **fields)
    with pytest.raises(UnknownNameError, match="jaw"):
        ArmSpec(
            name="x", joints=(joint,), control_hz=1.0, gripper=Gripper(joint="jaw", closed=0, open=1, grip_margin=0)
        )


def test_the_daemon_starts_without_torch_and_without_mujoco() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['mujoco'] = None; import real_robot.core.controller"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
