"""A tabletop scene: MJCF from robosuite's Panda, table and objects plus a few fixtures, and random starts.

Everything comes from robosuite's wheel or is made of boxes and cylinders here; nothing is downloaded.
"""

import contextlib
import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # robosuite 1.4 prints a warning about a file it does not need
    from robosuite.models.arenas import TableArena
    from robosuite.models.grippers import gripper_factory
    from robosuite.models.mounts import mount_factory
    from robosuite.models.objects import (
        BoxObject,
        BreadObject,
        CanObject,
        LemonObject,
        MilkObject,
        MujocoObject,
    )
    from robosuite.models.robots import Panda
    from robosuite.models.tasks import ManipulationTask

from sim.tabletop_tasks import TABLE_Z, Thing
from vla.core.se3 import quat_from_yaw, quat_mul, rotate, wrap_angle

CUBE_HALF = 0.022  # [m]
LYING = np.array([np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0])  # upright things laid down along x
UPRIGHT = np.array([1.0, 0.0, 0.0, 0.0])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the scene and the expert must know of a kind of thing.

    radius      [m] room it needs on the table, seen from above
    rest_z      [m] height of its origin above the table at rest
    rest        orientation at rest, before yaw
    grasp_axis  body axis along which it is long; the fingers close across it. None: any way will do
    grasp_turns  equal grasps per full turn about the vertical (4 for a cube, 2 for a carton)
    """

    radius: float
    rest_z: float = 0.0
    rest: tuple[float, ...] = tuple(UPRIGHT)
    grasp_axis: tuple[float, float, float] | None = None
    grasp_turns: int = 4


KINDS = {
    "red_cube": Kind(radius=0.035, rest_z=CUBE_HALF, grasp_axis=(1, 0, 0)),
    "green_cube": Kind(radius=0.035, rest_z=CUBE_HALF, grasp_axis=(1, 0, 0)),
    "blue_cube": Kind(radius=0.035, rest_z=CUBE_HALF, grasp_axis=(1, 0, 0)),
    "bread": Kind(radius=0.037, rest_z=0.024, grasp_axis=(1, 0, 0), grasp_turns=2),
    "can": Kind(radius=0.032, rest_z=0.041),
    "lemon": Kind(radius=0.040, rest_z=0.021, grasp_axis=(1, 0, 0), grasp_turns=2),
    "milk": Kind(radius=0.075, rest_z=0.021, rest=tuple(LYING), grasp_axis=(0, 0, 1), grasp_turns=2),
    "plate": Kind(radius=0.075),
    "zone": Kind(radius=0.07),
    "bin": Kind(radius=0.10),
    "cabinet": Kind(radius=0.10),
    "button": Kind(radius=0.045),
}


def long_axis(quat: np.ndarray, kind: str) -> np.ndarray | None:
    """Direction (2,) on the table along which a thing is long; None where it is round from above."""
    axis = KINDS[kind].grasp_axis
    if axis is None:
        return None
    along = rotate(quat, np.array(axis))[:2]
    return along if np.hypot(*along) >= 0.5 else None


def grasp_turn(quat: np.ndarray, kind: str, yaw: float) -> float:
    """How far the hand at `yaw` has to turn [rad] to close across a thing: to the nearest of its equal grasps."""
    along = long_axis(quat, kind)
    if along is None:
        return 0.0
    period = 2 * np.pi / KINDS[kind].grasp_turns
    return wrap_angle((float(np.arctan2(along[1], along[0])) - yaw) * 2 * np.pi / period) * period / (2 * np.pi)


COLOURS = {"red_cube": (0.85, 0.12, 0.1, 1), "green_cube": (0.15, 0.65, 0.2, 1), "blue_cube": (0.12, 0.3, 0.85, 1)}

_BOX = '<geom type="box" group="1" pos="{pos}" size="{size}" rgba="{rgba}"/>'


def _box(pos: str, size: str, rgba: str) -> str:
    return _BOX.format(pos=pos, size=size, rgba=rgba)


_WOOD, _DARK = "0.62 0.45 0.28 1", "0.35 0.24 0.15 1"
# Bodies that move name their inertia: robosuite's models derive it from group 0, and what is seen is group 1.
FIXTURES = {
    "plate": '<geom type="cylinder" group="1" pos="0 0 0.003" size="0.068 0.003" rgba="0.96 0.96 0.93 1"/>'
    '<geom type="cylinder" group="1" pos="0 0 0.0065" size="0.05 0.0005" rgba="0.75 0.8 0.9 1" '
    'contype="0" conaffinity="0"/>',
    "zone": '<geom type="box" group="1" pos="0 0 0.0005" size="0.05 0.05 0.0005" rgba="0.95 0.8 0.1 1" '
    'contype="0" conaffinity="0"/>',
    "bin": _box("0 0 0.003", "0.08 0.08 0.003", _WOOD)
    + _box("0.08 0 0.028", "0.004 0.084 0.028", _DARK)
    + _box("-0.08 0 0.028", "0.004 0.084 0.028", _DARK)
    + _box("0 0.08 0.028", "0.084 0.004 0.028", _DARK)
    + _box("0 -0.08 0.028", "0.084 0.004 0.028", _DARK),
    # The drawer's front faces the robot (-x); its handle is a loop into which the closed fingers fit.
    "cabinet": _box("0 0 0.005", "0.08 0.08 0.005", _WOOD)
    + _box("0 0 0.085", "0.08 0.08 0.005", _WOOD)
    + _box("0 0.075 0.045", "0.08 0.005 0.035", _WOOD)
    + _box("0 -0.075 0.045", "0.08 0.005 0.035", _WOOD)
    + _box("0.075 0 0.045", "0.005 0.07 0.035", _WOOD)
    + '<body name="drawer"><joint name="drawer" type="slide" axis="-1 0 0" range="0 0.13" limited="true" '
    'damping="8" frictionloss="1.0"/><inertial pos="0 0 0.04" mass="0.4" diaginertia="0.001 0.001 0.001"/>'
    + _box("-0.075 0 0.045", "0.005 0.066 0.032", _DARK)
    + _box("0 0 0.018", "0.06 0.06 0.004", _DARK)
    + _box("-0.13 0 0.045", "0.006 0.046 0.008", "0.8 0.8 0.85 1")
    + _box("-0.103 0.04 0.045", "0.023 0.006 0.008", "0.8 0.8 0.85 1")
    + _box("-0.103 -0.04 0.045", "0.023 0.006 0.008", "0.8 0.8 0.85 1")
    + "</body>",
    "button": _box("0 0 0.012", "0.04 0.04 0.012", "0.3 0.3 0.33 1")
    + '<body name="cap" pos="0 0 0.036"><joint name="button" type="slide" axis="0 0 1" range="-0.012 0" limited="true" '
    'stiffness="150" damping="3"/><inertial pos="0 0 0" mass="0.05" diaginertia="1e-5 1e-5 1e-5"/>'
    '<geom type="cylinder" group="1" size="0.026 0.012" rgba="0.9 0.1 0.45 1"/></body>',
}


def _movable(thing: Thing) -> MujocoObject:
    meshes = {"bread": BreadObject, "can": CanObject, "lemon": LemonObject, "milk": MilkObject}
    if thing.kind in meshes:
        return meshes[thing.kind](name=thing.name)
    size = [CUBE_HALF] * 3
    return BoxObject(name=thing.name, size=size, rgba=COLOURS[thing.kind], density=300, friction=(1.0, 0.005, 0.0001))


def build_xml(things: Sequence[Thing]) -> str:
    """MJCF of the table, the Panda and `things`; fixtures are bodies of their own name, placed at reset."""
    arena = TableArena(table_full_size=(0.8, 0.8, 0.05), table_offset=(0, 0, TABLE_Z))
    arena.set_origin([0, 0, 0])
    robot = Panda(idn=0)
    robot.add_mount(mount_factory("RethinkMount", idn=0))
    robot.add_gripper(gripper_factory("PandaGripper", idn=0))
    robot.set_base_xpos(robot.base_xpos_offset["table"](0.8))
    movable = [_movable(thing) for thing in things if thing.kind not in FIXTURES]
    model = ManipulationTask(mujoco_arena=arena, mujoco_robots=[robot], mujoco_objects=movable)
    root = ET.fromstring(model.get_xml())
    world = root.find("worldbody")
    assert world is not None
    for thing in things:
        if thing.kind in FIXTURES:
            world.append(ET.fromstring(f'<body name="{thing.name}">{FIXTURES[thing.kind]}</body>'))
    _dress(world)
    return ET.tostring(root, encoding="unicode")


def _dress(world: ET.Element) -> None:
    """Looks at the workspace from the front, and gives the table a tone on which white things show."""
    for camera in world.iter("camera"):
        if camera.get("name") == "agentview":
            # looking at (-0.05, 0, 0.88)
            camera.set("pos", "0.72 0 1.40")
            camera.set("xyaxes", "0 1 0 -0.560 0 0.829")
            camera.attrib.pop("quat")
            camera.set("fovy", "40")
    for geom in world.iter("geom"):
        if geom.get("name") == "table_visual":
            geom.attrib.pop("material")
            geom.set("rgba", "0.40 0.42 0.44 1")


def sample_layout(things: Sequence[Thing], rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Positions (3,) and orientations (4,) of all things, none too close to another.

    Rejection sampling: a whole layout is drawn until one fits, so every thing is uniform over what the others allow.
    """
    for _ in range(20_000):
        layout: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if all(_place(thing, things, layout, rng) for thing in things):
            return layout
    raise AssertionError(f"no room on the table for {[thing.name for thing in things]}")


def _place(
    thing: Thing,
    things: Sequence[Thing],
    layout: dict[str, tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
) -> bool:
    kind = KINDS[thing.kind]
    xy = np.array([rng.uniform(*thing.x), rng.uniform(*thing.y)])
    if thing.beside is not None:
        angle = rng.uniform(-np.pi, np.pi)
        xy = layout[thing.beside][0][:2] + 0.12 * np.array([np.cos(angle), np.sin(angle)])
        if not (thing.x[0] <= xy[0] <= thing.x[1] and thing.y[0] <= xy[1] <= thing.y[1]):
            return False
    for other in things:
        if other.name in layout:
            gap = np.hypot(*(layout[other.name][0][:2] - xy))
            if gap < KINDS[other.kind].radius + kind.radius + 0.005 or (thing.apart_from == other.name and gap < 0.2):
                return False
    quat = quat_mul(quat_from_yaw(rng.uniform(*thing.yaw)), np.array(kind.rest))
    layout[thing.name] = (np.array([*xy, TABLE_Z + kind.rest_z]), quat)
    return True
