"""A leader twin moved by hand, a follower twin behind the daemon: rows 46 to 48 of the conformance table."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

from real_robot.conformance.bench import Bench, stored_calibration
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.drivers.build import so101 as so101_arm
from real_robot.errors import LinkLost
from real_robot.teleop.drive import Drive
from real_robot.teleop.leader import Leader, same_names
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink


class Cell:
    """A bench whose follower is led; `hand` puts the limp leader somewhere."""

    def __init__(self, *, relative: bool = False) -> None:
        self.bench = Bench("sts")
        clock = self.bench.clock
        self.twin = so101(clock=clock.now, seed=7)
        self.link = VirtualLink(self.twin, sleep_until=clock.sleep_until)
        arm = so101_arm(calibration=stored_calibration(self.twin, so101_spec()), open_port=self.link.open, clock=clock)
        arm.connect()
        joints = same_names(arm.spec, self.bench.spec)
        self.leader = Leader(arm, self.bench.spec, joints, relative=relative)
        self.bench.start()
        self.drive = Drive(self.bench.daemon, self.leader, token=self.bench.daemon.lease("hand").token)

    def hand(self, q_J: np.ndarray) -> None:
        self.twin.advance()
        for joint, q in enumerate(q_J):
            self.twin.plant.positions_rad[joint] = float(q)
            self.twin.plant.speeds_rad_s[joint] = 0.0

    def start(self, *, align: bool = False) -> "Cell":
        self.leader.engage()
        self.drive.start(align=align)
        return self

    def run(self, seconds: float, path=None) -> None:
        start_s = self.bench.now
        for _ in range(round(seconds * 100)):
            if path is not None:
                self.hand(path(self.bench.now - start_s))
            self.drive.step()
            self.bench.tick()

    @property
    def state(self) -> State:
        return self.bench.state


def swing(t: float) -> np.ndarray:
    return 0.4 * (1.0 - np.cos(2.0 * t)) * np.array([1.0, -0.5, 0.5, 0.3, 0.2, 0.5])


def test_the_follower_follows() -> None:
    cell = Cell().start()
    cell.run(2.0, swing)
    assert cell.state == State.ACTIVE
    np.testing.assert_allclose(cell.bench.positions, swing(2.0), atol=0.1)
    commanded = np.array([report.tick.command.q_J for report in cell.bench.reports if report.tick.command][-20:])
    lag = np.abs(commanded - np.array([swing(2.0 - 0.01 * k) for k in range(20)][::-1]))
    assert lag[:, :5].max() < 0.03
    cell.bench.bounded()
    cell.bench.check_invariants()


def test_an_unplugged_leader_pauses_and_only_the_clutch_goes_on() -> None:
    cell = Cell().start()
    cell.run(1.0, swing)
    cell.link.unplug()
    cell.run(0.05)
    assert cell.state == State.PAUSED and "leader is lost" in cell.bench.supervisor.pause_reason
    cell.bench.rested(0.4)
    cell.link.replug()
    with contextlib.suppress(LinkLost):
        cell.leader._arm.disconnect()
    cell.leader._arm.connect()
    cell.run(0.5)
    assert cell.state == State.PAUSED  # by itself, nothing moves
    cell.start()
    cell.run(0.3)
    assert cell.state == State.ACTIVE


@pytest.mark.parametrize("fault", ["jump", "silent"])
def test_a_leader_that_cannot_be_believed_pauses(fault: str) -> None:
    cell = Cell().start()
    cell.run(1.0, swing)
    before_J = cell.bench.positions
    if fault == "jump":
        cell.hand(swing(1.0) + np.array([1.2, 0, 0, 0, 0, 0]))
    else:
        cell.twin.servo(3).silent()
    cell.run(0.4)
    assert cell.state == State.PAUSED
    assert cell.bench.supervisor.pause_reason.startswith("leader: the leader's")
    assert abs(cell.bench.positions[0] - before_J[0]) < 0.25  # of the 1.2 rad
    assert not cell.leader.engaged


def test_a_mismatch_at_the_start_is_refused_or_aligned() -> None:
    cell = Cell()
    away = np.array([0.5, -0.4, 0.3, 0.0, 0.0, 0.2])
    cell.hand(away)
    cell.start()
    cell.run(0.3, lambda _: away)
    assert np.abs(cell.bench.positions).max() < 0.02
    assert cell.bench.controller.admission.counts["admitted"] > 0  # they were well formed, and still not played
    cell.run(2.2, lambda _: away)
    assert cell.state == State.PAUSED
    cell.start(align=True)
    cell.run(4.0, lambda _: away)
    assert cell.state == State.ACTIVE
    np.testing.assert_allclose(cell.bench.positions, away, atol=0.03)
    arm_N = cell.bench.spec.arm_N  # a gripper needs no alignment
    speeds = [np.abs(report.tick.command.dq_J[arm_N]).max() for report in cell.bench.reports if report.tick.command]
    assert max(speeds) < 0.35


def test_relative_needs_no_alignment() -> None:
    cell = Cell(relative=True)
    away = np.array([0.5, -0.4, 0.3, 0.0, 0.0, 0.2])
    cell.hand(away)
    cell.start()
    cell.run(0.3, lambda _: away)
    assert cell.state == State.ACTIVE and np.abs(cell.bench.positions).max() < 0.02
    cell.run(1.0, lambda t: away + 0.5 * swing(t))
    np.testing.assert_allclose(cell.bench.positions, 0.5 * swing(1.0), atol=0.08)


def test_takeover_from_a_policy_at_speed_is_bumpless() -> None:
    cell = Cell(relative=True)
    bench = cell.bench
    bench.token = cell.drive._token
    bench.activate("policy")
    bench.run(0.8, driven=True)
    assert np.abs(bench.speeds).max() > 0.3
    cell.start()
    cell.run(0.6, lambda _: np.zeros(6))
    assert cell.state == State.ACTIVE
    bench.bounded()


def test_the_clutch_stops_what_it_releases() -> None:
    cell = Cell().start()
    cell.run(1.0, swing)
    cell.leader.disengage()
    cell.run(0.5, lambda t: swing(1.0 + t))
    assert np.abs(cell.bench.speeds).max() < 0.05
    cell.run(2.2, lambda t: swing(1.5 + t))
    assert cell.state == State.PAUSED
    with pytest.raises(RefusedError):
        cell.bench.daemon.activate("wrong", "leader")


def test_what_stops_the_follower_releases_the_clutch() -> None:
    cell = Cell().start()
    cell.run(1.0, swing)
    cell.bench.daemon.pause("the operator wants to look")
    cell.run(0.5, lambda t: swing(1.0 + t))
    assert cell.state == State.PAUSED and not cell.leader.engaged
    before_J = cell.bench.positions
    cell.drive.start()  # active again, and still nothing follows without the clutch
    cell.run(0.5, lambda t: swing(1.5 + t))
    np.testing.assert_allclose(cell.bench.positions, before_J, atol=0.02)


def test_grippers_of_other_travel_are_mapped() -> None:
    joints = same_names(koch_spec(), so101_spec())
    q_J = np.array([0.1, 0.2, 0.3, 0.4, 0.5, -0.14])
    np.testing.assert_allclose(joints(q_J), [0.1, 0.2, 0.3, 0.4, 0.5, -0.12])
    q_J[5] = 1.34
    assert joints(q_J)[5] == pytest.approx(1.69)
    with pytest.raises(ValueError, match="wrist_roll"):
        spec = koch_spec()
        same_names(replace(spec, joints=spec.joints[:4], gripper=None), so101_spec())
