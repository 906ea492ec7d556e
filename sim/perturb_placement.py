"""Other places for the objects of a task: anywhere on the free table, nothing on top of anything, all within reach.

LIBERO's stored initial states move the object to be grasped by 0 to 4 cm, so a policy can score by remembering places.
Special: objects that rest on each other move as one, what stands on a fixture or is brought something stays, and where
the instruction speaks of places ("between the plate and the ramekin") all objects, also what is brought something, are
shifted together and not turned, so that it stays true.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from sim.perturb_stage import SceneEnv, Stage, bodies_under, boxes
from vla.core.errors import GrasplineError
from vla.core.se3 import quat_from_yaw, quat_mul

REACH_M = (0.35, 0.75)  # from the robot's base, seen from above
AHEAD_M = 0.3  # at least, in front of the base, which looks along x
MARGIN_M = 0.04  # from the table's edge
GAP_M = 0.01  # between two things
FRAME = 0.88  # share of the picture, from its centre, in which an object must show
MOVED_M, TILTED_RAD = 0.03, np.radians(20.0)  # beyond this an object has fallen or been pushed
_PART = r"(?! (drawer|compartment|burner))"  # "the middle drawer" says nothing of where objects are
_RELATIONS = re.compile(
    rf"\b(between|next to|beside|center|centre|left|right|front|back|rear|middle|nearest|farthest|closest)\b{_PART}"
)
_TRIES = 400
_RANKS = re.compile(r"\b(nearest|farthest|closest|front|back|rear)\b" + _PART)


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Objects that move as one: their names, and the discs (N, 3) x, y, radius [m] that they cover."""

    names: tuple[str, ...]
    discs: np.ndarray


class Table:
    """The surface on which the loose objects stand, and where on it there is room.

    Raises:
        GrasplineError: nothing stands on it.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        model = stage.model
        self._data = data = stage.still()
        self._owner = {body: name for name, root in stage.movable.items() for body in bodies_under(model, root)}
        self._fixed = {body for root in stage.fixtures.values() for body in bodies_under(model, root)}
        pairs = model.geom_bodyid[data.contact.geom].reshape(-1, 2).tolist()
        under = [geom for body in stage.movable.values() if (geom := self._surface(data.xpos[body])) is not None]
        if not under:
            raise GrasplineError("no loose object of this task stands on the table, so none can be moved on it")
        low, high = self._box(max(set(under), key=under.count))
        self.low_xy, self.high_xy, self.height_m = low[:2] + MARGIN_M, high[:2] - MARGIN_M, float(high[2])
        self.discs = {name: self._disc(body) for name, body in stage.movable.items()}
        self.rectangles = np.array([self._swept(body) for body in stage.fixtures.values()]).reshape(-1, 2, 2)
        self._stacks, self._on_fixtures = self._stand(pairs)

    def _surface(self, position: np.ndarray) -> int | None:
        """The geom of the room, highest first, that a place is above."""
        model, best = self._stage.model, None
        for geom in range(model.ngeom):
            body = int(model.geom_bodyid[geom])
            if model.body_weldid[body] != 0 or body in self._fixed or not model.geom_contype[geom]:
                continue
            low, high = self._box(geom)
            if (low[:2] < position[:2]).all() and (position[:2] < high[:2]).all() and high[2] < position[2] + 0.03:
                best = geom if best is None or high[2] > self._box(best)[1][2] else best
        return best

    def _box(self, geom: int) -> np.ndarray:
        """A geom's world box (2, 3) [m], low and high corner; a plane has no sides."""
        model, data = self._stage.model, self._data
        rotation = data.geom_xmat[geom].reshape(3, 3)
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE:
            return np.array([[-np.inf, -np.inf, -np.inf], [np.inf, np.inf, data.geom_xpos[geom, 2]]])
        centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        return data.geom_xpos[geom] + rotation @ centre + np.outer([-1, 1], np.abs(rotation) @ half)

    def _disc(self, body: int) -> np.ndarray:
        """x, y, radius [m] of the circle round a body's origin that covers it, seen from above."""
        model, data = self._stage.model, self._data
        xy = data.xpos[body, :2]
        corners = boxes(model, data, body)[..., :2].reshape(-1, 2)
        low, high = (corners.min(0), corners.max(0)) if len(corners) else (xy, xy)
        return np.array([*xy, np.hypot(*np.maximum(high - xy, xy - low)) * 0.85])  # a box's corners are mostly empty

    def _swept(self, root: int) -> np.ndarray:
        """The rectangle (2, 2) [m], low and high, over which a fixture stands or its drawers and doors move."""
        model, scratch = self._stage.model, mujoco.MjData(self._stage.model)
        corners = []
        joints = [j for body in bodies_under(model, root) for j in np.flatnonzero(model.jnt_bodyid == body)]
        for end in (0, 1):
            scratch.qpos[:] = self._data.qpos
            for joint in joints:
                if model.jnt_limited[joint]:
                    scratch.qpos[model.jnt_qposadr[joint]] = model.jnt_range[joint, end]
            mujoco.mj_kinematics(model, scratch)
            corners.append(boxes(model, scratch, root, seen=True)[..., :2].reshape(-1, 2))
        every = np.concatenate([*corners, self._data.xpos[root, None, :2]])
        return np.array([every.min(0), every.max(0)])

    def _stand(self, pairs: Sequence[Sequence[int]]) -> tuple[list[set[str]], set[str]]:
        """Sets of objects that touch each other, and the objects that touch a fixture; `pairs` of bodies touch."""
        stack_of = {name: {name} for name in self._stage.movable}
        on_fixtures = set()
        for pair in pairs:
            for one, other in (pair, pair[::-1]):
                if one in self._owner and other in self._owner:
                    merged = stack_of[self._owner[one]] | stack_of[self._owner[other]]
                    stack_of.update(dict.fromkeys(merged, merged))
                if one in self._owner and other in self._fixed:
                    on_fixtures.add(self._owner[one])
        return [stack for name, stack in stack_of.items() if name == min(stack)], on_fixtures

    def groups(self, *, containers: bool) -> list[Group]:
        """What may move: stacks that stand on no fixture, and those with a container only if `containers`."""
        staying = self._on_fixtures | (set() if containers else set(self._stage.containers))
        free = [sorted(stack) for stack in self._stacks if not stack & staying]
        return [Group(names=tuple(names), discs=np.array([self.discs[name] for name in names])) for names in free]

    def clearance_m(self, disc: np.ndarray, others: np.ndarray) -> float:
        """How well a disc (3,) x, y, radius lies on the table, within reach and sight, clear of `others` (N, 3).

        The smallest of all distances [m] that are wanted; negative where the disc has no room.
        """
        xy, radius = disc[:2], disc[2]
        away = np.hypot(*(xy - self._stage.base_xy))
        nearest = np.clip(xy, self.rectangles[:, 0], self.rectangles[:, 1])
        distances = [
            [away - REACH_M[0], REACH_M[1] - away, xy[0] - self._stage.base_xy[0] - AHEAD_M, self._in_sight_m(xy)],
            xy - radius - self.low_xy,
            self.high_xy - xy - radius,
            np.hypot(*(nearest - xy).T) - radius - GAP_M,
            np.hypot(*(others[:, :2] - xy).T) - others[:, 2] - radius - GAP_M,
        ]
        return float(np.concatenate(distances).min())

    def ranks(self, discs: np.ndarray) -> np.ndarray:
        """The order (N,) of discs by distance from the robot and, alike, by how far forward they are."""
        offsets = discs[:, :2] - self._stage.base_xy
        return np.concatenate([np.argsort(np.hypot(*offsets.T)), np.argsort(offsets[:, 0])])

    def _in_sight_m(self, xy: np.ndarray) -> float:
        """How far a place on the table is inside the picture of every camera that does not move with the robot."""
        model, data = self._stage.model, self._data
        inside = np.inf
        for name in self._stage.cameras.values():
            camera = model.camera(name).id
            if model.cam_bodyid[camera] == 0:
                offset = np.array([*xy, self.height_m]) - data.cam_xpos[camera]
                x, y, z = data.cam_xmat[camera].reshape(3, 3).T @ offset
                edge = FRAME * -z * np.tan(np.radians(model.cam_fovy[camera]) / 2)
                inside = min(inside, edge - max(abs(x), abs(y)))
        return inside


type Motions = Mapping[str, tuple[np.ndarray, float]]  # {object: (shift (2,) [m], yaw [rad])}


def draw_layout(
    table: Table, reach_m: float, yaw_rad: float, instruction: str, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, float]]:
    """Where the loose objects may stand instead, as motions for `move`.

    Rejection sampling: a whole layout is drawn until it fits, each group uniform over the disc of `reach_m` round
    its own place and turned by up to `yaw_rad` either way.

    Args:
        table: of an episode that has settled.
        reach_m: how far at most; a metre is the whole table.
        yaw_rad: how much at most.
        instruction: of the task; if it speaks of relations between places, all objects move as one.
        rng: where the draws come from.

    Raises:
        GrasplineError: nothing may move, or there is no room for all.
    """
    together = bool(_RELATIONS.search(instruction.lower()))
    ranked = bool(_RANKS.search(instruction.lower()))
    groups = table.groups(containers=together)
    if together and groups:
        names = tuple(name for group in groups for name in group.names)
        groups, yaw_rad = [Group(names=names, discs=np.concatenate([group.discs for group in groups]))], 0.0
    if not groups:
        raise GrasplineError("all objects of this task stand on fixtures or are containers, so none can be moved")
    for _ in range(_TRIES):
        motions = _draw(table, groups, reach_m, yaw_rad, rng, ranked=ranked)
        if motions is not None:
            return motions
    raise GrasplineError(f"no room on the table for {sum(len(group.names) for group in groups)} objects elsewhere")


def _draw(
    table: Table,
    groups: Sequence[Group],
    reach_m: float,
    yaw_rad: float,
    rng: np.random.Generator,
    *,
    ranked: bool,
) -> dict[str, tuple[np.ndarray, float]] | None:
    """Motions of every object; None where something does not fit. `ranked`: who is nearer to the robot stays nearer.

    A layout may be as tight as the one it comes from: what had too little room there may have as little again.
    """
    moving = {name for group in groups for name in group.names}
    taken = np.array([disc for name, disc in table.discs.items() if name not in moving]).reshape(-1, 3)
    motions: dict[str, tuple[np.ndarray, float]] = {}
    for group in groups:
        others = [disc for name, disc in table.discs.items() if name not in group.names]
        before = [table.clearance_m(disc, np.array(others).reshape(-1, 3)) for disc in group.discs]
        for _ in range(50):
            angle, radius = rng.uniform(-np.pi, np.pi), reach_m * np.sqrt(rng.uniform())
            shift_xy, yaw = radius * np.array([np.cos(angle), np.sin(angle)]), rng.uniform(-yaw_rad, yaw_rad)
            discs = _turned(group.discs, shift_xy, yaw)
            if ranked and (table.ranks(discs) != table.ranks(group.discs)).any():
                continue
            if all(table.clearance_m(disc, taken) >= min(0.0, old) for disc, old in zip(discs, before, strict=True)):
                break
        else:
            return None
        taken = np.concatenate([taken, discs])
        shifts = discs[:, :2] - group.discs[:, :2]
        motions |= {name: (shift, yaw) for name, shift in zip(group.names, shifts, strict=True)}
    return motions


def _turned(discs: np.ndarray, shift_xy: np.ndarray, yaw: float) -> np.ndarray:
    centre = discs[:, :2].mean(0)
    rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    return np.column_stack([(discs[:, :2] - centre) @ rotation.T + centre + shift_xy, discs[:, 2]])


def move(poses: Mapping[str, np.ndarray], motions: Motions) -> None:
    """Applies motions to poses (7,) by name, in place. Other objects stay."""
    for name, (shift_xy, yaw) in motions.items():
        poses[name][:2] += shift_xy
        poses[name][3:] = quat_mul(quat_from_yaw(yaw), poses[name][3:])


def disturbed(poses: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> list[str]:
    """The objects that fell, tilted or were pushed: whose pose (7,) is not nearly the expected one, yaw aside."""
    found = []
    for name, pose in poses.items():
        tilt = np.arccos(np.clip(np.dot(_up(pose[3:]), _up(expected[name][3:])), -1, 1))
        if np.abs(pose[:3] - expected[name][:3]).max() > MOVED_M or tilt > TILTED_RAD:
            found.append(name)
    return found


def _up(quat: np.ndarray) -> np.ndarray:
    """The world's vertical in a body's frame: yaw does not change it."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)[2]


def spread_cm(env: SceneEnv, task: str, rows: Sequence[tuple[int, int]]) -> dict[str, tuple[float, float]]:
    """How far apart an object's starts lie in x and y [cm], over rows of (initial state, seed): {object: (x, y)}.

    Measured after settling; `sim.perturb.Perturbed` is such an env too. Objects that the goal is about come first.
    """
    seen: dict[str, list[np.ndarray]] = {}
    for init_state, seed in rows:
        env.reset(task, init_state, seed)
        stage = env.stage()
        for name in sorted(stage.movable, key=lambda name: (name not in stage.targets, name)):
            seen.setdefault(name, []).append(stage.poses()[name][:2].copy())
    spans = {name: 100 * np.ptp(places, axis=0) for name, places in seen.items()}
    return {name: (float(span[0]), float(span[1])) for name, span in spans.items()}
