"""The plants against mechanics, and the SO-101 behind its registers."""

import math

import mujoco
import numpy as np
import pytest

from real_robot.protocols import sts
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink
from real_robot.twin.motor import COUNTS_PER_RAD
from real_robot.twin.physics import SO101_JOINTS, SO101_LIMITS_RAD, FreePlant, so101_plant

IDS = [1, 2, 3, 4, 5, 6]


def test_a_free_joint_accelerates_by_torque_over_inertia() -> None:
    plant = FreePlant(1, inertia_kg_m2=0.05, friction_nm=0.0)
    for _ in range(100):
        plant.step([0.1], 1e-3)
    assert plant.speeds_rad_s[0] == pytest.approx(0.1 / 0.05 * 0.1, rel=0.03)


def test_friction_holds_what_is_weaker() -> None:
    plant = FreePlant(1, friction_nm=0.05)
    for _ in range(100):
        plant.step([0.04], 1e-3)
    assert plant.positions_rad == [0.0]


def test_stops_and_blocks() -> None:
    plant = FreePlant(2, limits_rad=[(-0.1, 0.1), (-1, 1)])
    plant.block(1, True)
    for _ in range(1000):
        plant.step([1.0, 1.0], 1e-3)
    assert plant.positions_rad == [0.1, 0.0]
    assert plant.speeds_rad_s == [0.0, 0.0]


def test_limits_are_those_of_the_model() -> None:
    plant = so101_plant()
    for name, limits in zip(SO101_JOINTS, SO101_LIMITS_RAD):
        assert plant.model.joint(name).range == pytest.approx(np.array(limits), abs=1e-4)


def test_the_models_own_actuators_are_off() -> None:
    plant = so101_plant(table=False)
    plant.data.ctrl[:] = 1.0
    before = plant.data.qacc.copy()
    mujoco.mj_forward(plant.model, plant.data)
    assert plant.data.qfrc_actuator == pytest.approx(0.0)
    assert plant.data.qacc == pytest.approx(before)


def test_torques_go_to_their_joints() -> None:
    """At rest, qacc differs by M^-1 tau: MuJoCo's own inverse is the oracle."""
    plant = so101_plant(table=False)
    plant.model.dof_frictionloss[:] = 0.0
    plant.place([0.1] * 6)
    before = plant.data.qacc.copy()
    torque = np.zeros(6)
    torque[3] = 0.2
    plant.data.qfrc_applied[plant._v] = torque
    mujoco.mj_forward(plant.model, plant.data)
    expected = np.zeros((1, plant.model.nv))
    full = np.zeros((1, plant.model.nv))
    full[0, plant._v] = torque
    mujoco.mj_solveM(plant.model, plant.data, expected, full)
    assert plant.data.qacc - before == pytest.approx(expected[0], rel=1e-6, abs=1e-9)


@pytest.fixture
def arm(clock):
    twin = so101(clock=clock, plant="mujoco")
    return twin, VirtualLink(twin, sleep_until=clock.sleep_until).open()


def command(port, address: int, values: dict[int, int], width: int = 2) -> None:
    port.write(sts.sync_write(address, {i: value.to_bytes(width, "little") for i, value in values.items()}))


def test_the_so101_holds_against_gravity_and_falls_without_torque(clock, arm) -> None:
    twin, port = arm
    command(port, 40, dict.fromkeys(IDS, 1), 1)
    clock.sleep(1.0)
    twin.advance()
    held = list(twin.plant.positions_rad)
    assert max(abs(q) for q in held) < math.radians(3), "a stretched arm sags by its stiffness"
    assert held[1] > 1e-3, "and it does sag"
    port.write(sts.torque_off_all())
    clock.sleep(0.5)
    twin.advance()
    assert max(abs(a - b) for a, b in zip(held, twin.plant.positions_rad)) > 0.2


def test_the_so101_follows_its_goals(clock, arm) -> None:
    twin, port = arm
    command(port, 40, dict.fromkeys(IDS, 1), 1)
    command(port, 46, dict.fromkeys(IDS, 600))
    goals = {1: 2300, 2: 1700, 3: 2200, 4: 2200, 5: 1900, 6: 2400}
    command(port, 42, goals)
    twin.peaks.reset()
    clock.sleep(2.0)
    twin.advance()
    for i, goal in goals.items():
        angle = (goal - 2048) / COUNTS_PER_RAD
        assert twin.plant.positions_rad[i - 1] == pytest.approx(angle, abs=math.radians(4)), i
    assert max(twin.peaks.speed_rad_s) < 1.3 * 600 / COUNTS_PER_RAD
    assert twin.peaks.contact_n == 0.0
    twin.monitor.check()


def test_driving_into_the_table_is_felt(clock, arm) -> None:
    """Shoulder forward and down: contact, current, and no joint through the table."""
    twin, port = arm
    command(port, 40, dict.fromkeys(IDS, 1), 1)
    command(port, 42, {2: 3100, 3: 2048})
    clock.sleep(1.5)
    twin.advance()
    assert twin.peaks.contact_n > 5.0
    assert abs(twin.servo(2).motor.duty) > 0.5


def test_a_blocked_joint_stays(clock, arm) -> None:
    twin, port = arm
    command(port, 40, dict.fromkeys(IDS, 1), 1)
    twin.servo(1).stall(for_=0.5)
    command(port, 42, {1: 2400})
    clock.sleep(0.45)
    twin.advance()
    assert twin.plant.positions_rad[0] == pytest.approx(0.0, abs=0.01)
    clock.sleep(1.0)
    twin.advance()
    assert twin.plant.positions_rad[0] > 0.4
