"""The pick task's physics: what lies where, what counts as delivered, what the cameras see."""

import mujoco
import numpy as np
import pytest

from real_robot.core.arms import so101_spec
from real_robot.twin.pick_scene import (
    CUBE_HIGH_M,
    CUBE_LOW_M,
    EDGE_M,
    HELD_OUT_STATES,
    TRAIN_STATES,
    TRAY_M,
    PickScene,
    clustered,
    layout,
)


@pytest.fixture(scope="module")
def scene() -> PickScene:
    return PickScene(image_size=64)


def put(scene: PickScene, x: float, y: float, z: float) -> None:
    scene.data.joint("cube").qpos[:3] = (x, y, z)
    scene.data.qvel[:] = 0.0
    mujoco.mj_forward(scene.model, scene.data)


def settle(scene: PickScene, seconds: float) -> None:
    """The arm held where it is, as a hand would."""
    for joint in range(6):
        scene.block(joint, True)
    for _ in range(round(seconds / 0.002)):
        scene.step([0.0] * 6, 0.002)
    for joint in range(6):
        scene.block(joint, False)


def test_layouts_are_numbered_and_apart() -> None:
    assert layout(3) == layout(3) != layout(4)
    assert not set(TRAIN_STATES) & set(HELD_OUT_STATES)
    cubes = np.array([layout(i).cube_m for i in range(200)])
    assert (cubes >= CUBE_LOW_M).all() and (cubes <= CUBE_HIGH_M).all()
    assert len(np.unique(cubes, axis=0)) == 200
    with pytest.raises(ValueError, match="from 0 on"):
        layout(-1)


def test_the_cube_lies_on_the_table(scene: PickScene) -> None:
    scene.reset(0)
    settle(scene, 1.0)
    assert scene.cube_m == pytest.approx([*layout(0).cube_m, EDGE_M / 2], abs=5e-4)
    assert not scene.held and not scene.delivered
    assert scene.contact_n == pytest.approx(0.03 * 9.81 / 4, rel=0.5), "a quarter of its weight on each corner"


def test_delivered_is_in_the_tray_at_rest_and_let_go(scene: PickScene) -> None:
    scene.reset(0)
    put(scene, *TRAY_M, EDGE_M / 2 + 0.003)
    settle(scene, 0.5)
    assert scene.delivered
    scene.data.joint("cube").qvel[0] = 0.1
    assert not scene.delivered, "it still moves"
    put(scene, TRAY_M[0], TRAY_M[1] + 0.06, EDGE_M / 2 + 0.003)
    assert not scene.delivered, "beside it"
    put(scene, *TRAY_M, 0.06)
    assert not scene.delivered, "above it"


def test_a_cube_in_the_jaws_is_held_and_not_delivered(scene: PickScene) -> None:
    scene.reset(0)
    scene.place([*scene.positions_rad[:5], 0.36])
    put(scene, *scene.data.site("grasp").xpos)
    for joint in range(5):
        scene.block(joint, True)
    for _ in range(200):
        scene.step([0, 0, 0, 0, 0, -1.0], 0.002)
    assert scene.held and scene.contact_n > 5.0 and scene.cube_m[2] > 0.05, "friction carries it"
    scene.reset(0)
    assert not scene.held


@pytest.mark.parametrize("name", ["moving_jaw_so101_v1", "sts3215_03a_no_horn_v1", "base_so101_v2"])
def test_coarse_links_have_the_size_of_the_originals(scene: PickScene, name: str) -> None:
    """MuJoCo's own reader of the file is the oracle."""
    path = so101_spec().mjcf
    assert path is not None
    spec = mujoco.MjSpec()
    spec.add_mesh(
        name=name, file=str(path.parent / "assets" / f"{name}.stl"), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    )
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, contype=0, conaffinity=0)
    original = spec.compile()
    assert scene.model.mesh(name).facenum[0] < original.nmeshface / 4
    assert _extent(scene.model, name) == pytest.approx(_extent(original, name), abs=4e-3)


def test_clustering_joins_what_shares_a_cell() -> None:
    """Two triangles of a square: nothing to join in fine cells; one corner's twin goes in coarse ones."""
    square = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]], float)
    vertices, faces = clustered(square, 0.1)
    assert len(vertices) == 4 and len(faces) == 2
    assert {tuple(vertices[i]) for i in faces[0]} in [{tuple(row) for row in triangle} for triangle in square]
    vertices, faces = clustered(square, 10.0)
    assert len(vertices) == 1 and len(faces) == 0


def _extent(model: mujoco.MjModel, name: str) -> np.ndarray:
    """Size along the mesh file's own axes."""
    i, turn_9 = model.mesh(name).id, np.zeros(9)
    mujoco.mju_quat2Mat(turn_9, model.mesh_quat[i])
    first = model.mesh_vertadr[i]
    return np.ptp(model.mesh_vert[first : first + model.mesh_vertnum[i]] @ turn_9.reshape(3, 3).T, axis=0)


def test_the_same_torques_give_the_same_motion_to_the_bit(scene: PickScene) -> None:
    def ended() -> np.ndarray:
        scene.reset(5)
        for k in range(100):
            scene.step([0.3 * np.sin(0.1 * k)] * 6, 0.002)
        return scene.data.qpos.copy()

    first = ended()
    scene.reset(6)
    settle(scene, 0.1)
    assert np.array_equal(first, ended())


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_a_camera_sees_the_cube_where_it_is(scene: PickScene, camera: str) -> None:
    scene.reset(0)

    def red(x: float, y: float) -> np.ndarray:
        put(scene, x, y, EDGE_M / 2)
        image = scene.draw(camera).astype(int)
        assert image.shape == (64, 64, 3)
        return np.argwhere((image[..., 0] > 100) & (image[..., 1] < 60) & (image[..., 2] < 60))

    here, there = red(0.22, 0.02), red(0.25, 0.06)
    assert len(here) > 8 and len(there) > 8
    assert np.linalg.norm(here.mean(axis=0) - there.mean(axis=0)) > 4.0
