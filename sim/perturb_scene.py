"""Camera, light, textures, distractors and the arm's posture: changes of a scene that leave its objects in place.

Each takes a severity in 0..1, which is the size of the change, and draws its direction from `rng`: the same draw at
two severities gives the same direction.
"""

from collections.abc import Callable

import mujoco
import numpy as np

from sim.perturb_placement import Table
from sim.perturb_stage import Changes, Stage, bodies_under, upload
from vla.core.errors import GrasplineError
from vla.core.se3 import quat_from_yaw, quat_mul, rotate

ORBIT_RAD, RISE_RAD, ZOOM = np.radians(25.0), np.radians(12.0), 0.15  # of a camera, at severity 1
DIM, BRIGHTEN, TINT, SWING_RAD = 0.65, 1.0, 0.35, np.radians(45.0)  # of a light
POSTURE_RAD = 0.35  # length of the change of the seven joint angles
DISTRACTORS = 6
_ROBOT = ("robot", "mount", "gripper")  # how robosuite's bodies of the robot begin


def move_cameras(stage: Stage, severity: float, rng: np.random.Generator, changes: Changes) -> None:
    """Carries each camera that stands in the room round the point that it looks at, and nearer or farther."""
    model, _ = stage.pictures()
    still = stage.still()
    height_m = float(np.mean([still.xpos[body, 2] for body in (stage.movable or stage.fixtures).values()]))
    for name in stage.cameras.values():
        camera = model.camera(name).id
        direction, nearer = rng.uniform(-np.pi, np.pi), rng.choice([-1.0, 1.0])
        if model.cam_bodyid[camera] != 0:
            continue
        position, quat = changes.of(model.cam_pos[camera]), changes.of(model.cam_quat[camera])
        ahead = rotate(quat, np.array([0.0, 0.0, -1.0]))
        away_m = (height_m - position[2]) / ahead[2] if ahead[2] < -0.1 else 1.0
        target = position + away_m * ahead
        about = rotate(quat, np.array([1.0, 0.0, 0.0]))  # the picture's horizontal
        turn = _about(about, severity * RISE_RAD * np.sin(direction))
        turn = quat_mul(quat_from_yaw(severity * ORBIT_RAD * np.cos(direction)), turn)
        position[:] = target + (1 + severity * ZOOM * nearer) * rotate(turn, position - target)
        quat[:] = quat_mul(turn, quat)


def change_lights(stage: Stage, severity: float, rng: np.random.Generator, changes: Changes) -> None:
    """Makes the light dimmer or brighter, tints it and lets it fall from elsewhere."""
    model, _ = stage.pictures()
    brightness = 1 - DIM * severity if rng.uniform() < 0.5 else 1 + BRIGHTEN * severity
    colour_3 = brightness * (1 + TINT * severity * rng.uniform(-1, 1, 3))
    headlight = model.vis.headlight
    for light in (headlight.ambient, headlight.diffuse, headlight.specular):
        changes.of(light)[:] *= colour_3
    for lights in (model.light_ambient, model.light_diffuse, model.light_specular):
        changes.of(lights)[:] *= colour_3
    angle = rng.uniform(-np.pi, np.pi)
    swing = _about(np.array([np.cos(angle), np.sin(angle), 0.0]), severity * SWING_RAD)
    for direction in changes.of(model.light_dir):
        direction[:] = rotate(swing, direction)


def change_textures(stage: Stage, severity: float, rng: np.random.Generator, changes: Changes) -> None:
    """Blends table, floor and walls with random patterns; what has no texture gets another colour."""
    model, renderer = stage.pictures()
    own = {body for root in (*stage.movable.values(), *stage.fixtures.values()) for body in bodies_under(model, root)}
    done: set[int] = set()
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        if model.body_weldid[body] != 0 or body in own or _is_robot(model, body):
            continue
        material = int(model.geom_matid[geom])
        texture = _texture(model, material)
        if texture >= 0 and texture not in done:
            done.add(texture)
            pixels = changes.texture(model, renderer, texture)
            pattern = _pattern(pixels.shape[0], pixels.shape[1], rng)
            pixels[..., :3] = (1 - severity) * pixels[..., :3] + severity * pattern
            upload(model, renderer, texture)
        elif texture < 0:
            paint = model.geom_rgba[geom] if material < 0 else model.mat_rgba[material]
            colour_3 = rng.uniform(0.05, 0.95, 3)
            changes.of(paint)[:3] = (1 - severity) * paint[:3] + severity * colour_3


def add_distractors(stage: Stage, severity: float, rng: np.random.Generator, changes: Changes) -> None:
    """Puts up to DISTRACTORS bright shapes on free places of the table.

    They are drawn and not simulated: the hand passes through them, and they cannot get in an object's way.

    Raises:
        GrasplineError: no room on the table.
    """
    _, renderer = stage.pictures()
    table = Table(stage)
    taken = np.array([*table.discs.values()]).reshape(-1, 3)
    kinds = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_ELLIPSOID)
    shapes = []
    for _ in range(int(np.ceil(DISTRACTORS * severity))):
        kind, size_3 = kinds[rng.integers(3)], rng.uniform(0.015, 0.04, 3)
        yaw, colour_3 = rng.uniform(-np.pi, np.pi), rng.uniform(0, 1, 3)
        colour_3[rng.permutation(3)[:2]] = rng.permutation([0.1, 0.9])  # never grey
        disc = _free_disc(stage, table, taken, float(np.hypot(*size_3[:2])), rng)
        taken = np.concatenate([taken, disc[None]])
        half_height = size_3[1] if kind == mujoco.mjtGeom.mjGEOM_CYLINDER else size_3[2]
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, quat_from_yaw(yaw))
        shapes.append(
            {
                "type": kind,
                "size": size_3,
                "pos": np.array([*disc[:2], table.height_m + half_height]),
                "mat": matrix,
                "rgba": np.array([*colour_3, 1.0], np.float32),
            }
        )
    changes.decorate(renderer, shapes)


def move_arm(stage: Stage, severity: float, rng: np.random.Generator) -> None:
    """Starts the arm in another posture: the same way off in joint space, touching nothing, inside its limits.

    Raises:
        GrasplineError: no such posture was found.
    """
    model, start = stage.model, stage.data.qpos[stage.arm].copy()
    joints = np.array([int(np.flatnonzero(model.jnt_qposadr == address)[0]) for address in stage.arm])
    low, high = model.jnt_range[joints].T
    touching = _robot_contacts(stage, joints)
    for _ in range(100):
        direction = rng.standard_normal(len(start))
        posture = start + severity * POSTURE_RAD * direction / np.linalg.norm(direction)
        stage.data.qpos[stage.arm] = posture
        if (posture > low).all() and (posture < high).all() and _robot_contacts(stage, joints) <= touching:
            return
    stage.data.qpos[stage.arm] = start
    raise GrasplineError("the arm has no other posture here that touches nothing")


DRAWN: dict[str, Callable[[Stage, float, np.random.Generator, Changes], None]] = {
    "camera": move_cameras,
    "light": change_lights,
    "texture": change_textures,
    "distractors": add_distractors,
}


def _about(axis: np.ndarray, angle_rad: float) -> np.ndarray:
    """The rotation by an angle about a unit vector."""
    return np.array([np.cos(angle_rad / 2), *(np.sin(angle_rad / 2) * axis)])


def _is_robot(model: mujoco.MjModel, body: int) -> bool:
    return model.body(int(model.body_rootid[body])).name.startswith(_ROBOT)


def _texture(model: mujoco.MjModel, material: int) -> int:
    """The colour texture of a material, -1 for none."""
    if material < 0:
        return -1
    return int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB])


def _pattern(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) patches of four colours, 4 to 12 a side."""
    side = int(rng.integers(4, 13))
    colours = rng.uniform(0, 255, (4, 3))
    patches = colours[rng.integers(0, 4, (side, side))]
    return patches[np.arange(height) * side // height][:, np.arange(width) * side // width]


def _free_disc(stage: Stage, table: Table, taken: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    for _ in range(2000):
        xy = stage.base_xy + np.array([rng.uniform(0.3, 0.8), rng.uniform(-0.6, 0.6)])
        disc = np.array([*xy, radius])
        if table.clearance_m(disc, taken) >= 0:
            return disc
    raise GrasplineError("no room on the table for a distractor")


def _robot_contacts(stage: Stage, joints: np.ndarray) -> int:
    """How many contacts there are between the robot and anything else."""
    still = stage.still()
    root = stage.model.body_rootid[stage.model.jnt_bodyid[joints[0]]]
    roots = stage.model.body_rootid[stage.model.geom_bodyid[still.contact.geom]].reshape(-1, 2)
    return int((np.sum(roots == root, axis=1) == 1).sum())
