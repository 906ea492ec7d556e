"""The scripted teleoperator against MuJoCo's own kinematics, and against servos that give under the arm's weight."""

import numpy as np
import pytest

from real_robot.core.arms import so101_spec
from real_robot.core.clock import VirtualClock
from real_robot.e2e.expert import DT_S, OPEN_RAD, SPEED_M_S, Reach, _offsets, plan, waypoints
from real_robot.protocols import sts
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink
from real_robot.twin.motor import COUNTS_PER_RAD
from real_robot.twin.pick_scene import HOME, TRAY_M, PickScene, layout
from vla.core.errors import GrasplineError


@pytest.fixture(scope="module")
def reach() -> Reach:
    return Reach(so101_spec())


@pytest.fixture(scope="module")
def scene() -> PickScene:
    return PickScene()


@pytest.mark.parametrize("init_state", range(8))
def test_the_hand_gets_where_it_should_jaws_down(reach: Reach, scene: PickScene, init_state: int) -> None:
    start = layout(init_state)
    for at in ((*start.cube_m, 0.02), (*start.cube_m, 0.09), (*TRAY_M, 0.04)):
        q_J = reach.solve(at, start.yaw_rad, np.array(HOME), steps=200)
        scene.place(q_J.tolist())
        site = scene.data.site("grasp")
        assert site.xpos == pytest.approx(at, abs=2e-3)
        down, jaws = site.xmat.reshape(3, 3)[:, 0], site.xmat.reshape(3, 3)[:, 2]
        assert down[2] < -0.98, "within 11 degrees of straight down"
        assert jaws[:2] @ [np.cos(start.yaw_rad), np.sin(start.yaw_rad)] > 0.97
        assert (q_J >= reach.spec.low_J - 1e-6).all() and (q_J <= reach.spec.high_J + 1e-6).all()


def test_what_is_out_of_reach_is_said(reach: Reach) -> None:
    with pytest.raises(GrasplineError, match="cannot reach"):
        reach.solve((0.6, 0.0, 0.1), 0.0, np.array(HOME))


def test_sag_is_what_the_servos_give(reach: Reach, scene: PickScene) -> None:
    """Servos told the goals rest `sag` below them; the physics behind the registers is the oracle."""
    clock = VirtualClock(start_s=10.0)
    twin = so101(clock=clock.now)
    twin.plant = scene
    scene.reset(0)
    goal_J = reach.solve((0.24, 0.05, 0.09), 0.0, np.array(HOME), steps=200)
    twin.place(goal_J.tolist())
    port = VirtualLink(twin, sleep_until=clock.sleep_until).open()
    counts = {i + 1: round(2048 + q * COUNTS_PER_RAD) for i, q in enumerate(goal_J)}
    port.write(sts.sync_write(42, {i: count.to_bytes(2, "little") for i, count in counts.items()}))
    port.write(sts.sync_write(40, dict.fromkeys(counts, b"\x01")))
    clock.advance(2.0)
    twin.advance()
    seen_J = goal_J - np.array(twin.plant.positions_rad)
    sag_J = reach.sag(goal_J)
    assert abs(sag_J[1]) > 0.01, "the shoulder carries the arm"
    assert seen_J[1:4] == pytest.approx(sag_J[1:4], abs=4e-3)  # dry friction holds up to 1.5 mrad


def test_a_way_is_slow_and_whole(reach: Reach) -> None:
    here_J = np.array(HOME)
    way = plan(reach, here_J, waypoints(layout(2), 0.33), rng=np.random.default_rng(0))
    assert np.array_equal(way.clean_TJ, way.noisy_TJ)
    assert way.clean_TJ[0] == pytest.approx(here_J)
    assert 4.0 < way.seconds < 12.0
    hands_T3 = np.array([reach.hand(q_J - reach.sag(q_J)) for q_J in way.clean_TJ])
    assert np.linalg.norm(np.diff(hands_T3[20:], axis=0), axis=1).max() / DT_S < 1.3 * SPEED_M_S
    assert way.clean_TJ[-1, 5] == pytest.approx(OPEN_RAD)
    assert hands_T3[-1][:2] == pytest.approx(TRAY_M, abs=3e-3)


def test_offsets_push_where_the_hand_is_free_and_nowhere_else(reach: Reach) -> None:
    ways = [
        plan(reach, np.array(HOME), waypoints(layout(2), 0.33), rng=np.random.default_rng(i), noise_rad=0.03)
        for i in range(3)
    ]
    off_RTJ = np.array([way.noisy_TJ - way.clean_TJ for way in ways])
    assert np.array_equal(ways[0].clean_TJ, ways[1].clean_TJ)
    assert (off_RTJ[..., 5] == 0.0).all()
    grip_T = ways[0].clean_TJ[:, 5]
    closing = np.abs(np.diff(grip_T, append=grip_T[-1])) > 1e-3
    closing[: len(closing) // 4] = False  # on its way to the cube the gripper moves too
    assert np.abs(off_RTJ[:, closing]).max() == 0.0
    assert 0.005 < off_RTJ[:, :, 0].std() < 0.04
    assert np.abs(np.diff(off_RTJ, axis=1)).max() < 0.01, "no jumps"


def test_offsets_have_the_deviation_that_was_asked_for() -> None:
    off_TJ = _offsets(np.ones(50_000), 3, np.random.default_rng(0))
    assert off_TJ[:, :2].std() == pytest.approx(1.0, rel=0.03)
    assert (off_TJ[:, 2] == 0.0).all(), "the last one is the gripper"
    lag = round(1.0 / DT_S)
    assert abs(np.corrcoef(off_TJ[:-lag, 0], off_TJ[lag:, 0])[0, 1]) < 0.2, "forgotten after a second"
    assert np.corrcoef(off_TJ[:-1, 0], off_TJ[1:, 0])[0, 1] > 0.98, "slow"
