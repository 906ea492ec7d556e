"""Distances in a MuJoCo model of the arm: between its links, to the table and to the walls of the workspace.

What is special: links are the convex hulls of the model's meshes, also those that the model draws but does not
collide (the base). Pairs of links that are joined are left out, and neighbours of neighbours that cannot meet or are
always near. Bounding spheres sort the rest, so that most ticks measure a handful of pairs exactly. MuJoCo 3.8's fast
distance returns exactly 0 for about one pair in a hundred that is far apart; such answers are asked again of its slow
one. The only module of `real_robot.core` that imports MuJoCo.
"""

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from real_robot.core.types import ArmSpec, Array
from vla.core.errors import MissingAssetError, unknown_name

STOP_M, SLOW_M = 0.015, 0.05
_SAMPLES = 300  # postures that decide which neighbours can meet
_SLOW_CCD = int(mujoco.mjtDisableBit.mjDSBL_NATIVECCD)


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A box, in the model's frame, that the tool point must not leave, and the table's height [m] (None: no table)."""

    low: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    high: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    table_z: float | None = 0.0


class CollisionScene:
    """The `Scene` of one arm.

    Args:
        spec: with `mjcf` and `mjcf_joints`.
        tool_site: the model's site that is the tool point.
        workspace: box and table.
        stop_m: the arm must not come to rest nearer than this.
        slow_m: its speed falls from here on.
    """

    def __init__(
        self,
        spec: ArmSpec,
        *,
        tool_site: str = "gripperframe",
        workspace: Workspace | None = None,
        stop_m: float = STOP_M,
        slow_m: float = SLOW_M,
    ) -> None:
        if spec.mjcf is None or not spec.mjcf.exists():
            raise MissingAssetError(f"{spec.name}: no MJCF model at {spec.mjcf} (pip install 'graspline[robot]')")
        if not 0.0 <= stop_m < slow_m:
            raise ValueError(f"stop_m {stop_m} must be at least 0 and below slow_m {slow_m}")
        self.stop_m, self.slow_m = stop_m, slow_m
        self._box = workspace or Workspace()
        self.model = _compile(spec, self._box.table_z)
        self._data = mujoco.MjData(self.model)
        self._site = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_SITE, tool_site)
        if self._site < 0:
            raise unknown_name("site", tool_site, [self.model.site(i).name for i in range(self.model.nsite)])
        self._qpos_J, self._dof_J = _joints(self.model, spec)
        self._jacobian_3V = np.zeros((3, self.model.nv))
        self._fromto = np.zeros(6)
        self.pairs_P2 = _candidates(self.model)
        self.pairs_P2 = self.pairs_P2[self._prune(spec)]
        self._plane_P = self.model.geom_type[self.pairs_P2[:, 0]] == mujoco.mjtGeom.mjGEOM_PLANE
        self._reach_P = self.model.geom_rbound[self.pairs_P2].sum(axis=1)  # a plane's radius is 0

    def clearance(self, q_J: Array) -> float:
        """Smallest distance [m], exact up to `slow_m` and at least that beyond; negative when links overlap."""
        self._place(q_J)
        x_G3 = self._data.geom_xpos
        a_P3, b_P3 = x_G3[self.pairs_P2[:, 0]], x_G3[self.pairs_P2[:, 1]]
        apart_P = np.where(self._plane_P, b_P3[:, 2] - a_P3[:, 2], np.linalg.norm(b_P3 - a_P3, axis=1)) - self._reach_P
        best = min(self.slow_m, self._walls())
        for i in np.argsort(apart_P):
            if apart_P[i] >= best:
                break
            best = min(best, self._distance(i, best))
        return best

    def nearest(self, q_J: Array) -> tuple[str, str]:
        """The two links that are nearest to each other, for messages."""
        self._place(q_J)
        i = int(np.argmin([self._distance(i, 1.0) for i in range(len(self.pairs_P2))]))
        bodies = self.model.geom_bodyid[self.pairs_P2[i]]
        return self.model.body(bodies[0]).name, self.model.body(bodies[1]).name

    def tcp(self, q_J: Array) -> Array:
        """Position (3,) of the tool point [m]."""
        self._place(q_J)
        return self._data.site_xpos[self._site].copy()

    def tcp_speed(self, q_J: Array, dq_J: Array) -> float:
        """Speed of the tool point [m/s]."""
        self._place(q_J)
        mujoco.mj_comPos(self.model, self._data)
        mujoco.mj_jacSite(self.model, self._data, self._jacobian_3V, None, self._site)
        return float(np.linalg.norm(self._jacobian_3V[:, self._dof_J] @ dq_J))

    def _place(self, q_J: Array) -> None:
        self._data.qpos[self._qpos_J] = q_J
        mujoco.mj_kinematics(self.model, self._data)

    def _walls(self) -> float:
        x_3 = self._data.site_xpos[self._site]
        return float(min(np.min(x_3 - self._box.low), np.min(self._box.high - x_3)))

    def _distance(self, pair: int, most_m: float) -> float:
        a, b = self.pairs_P2[pair]
        distance_m = mujoco.mj_geomDistance(self.model, self._data, int(a), int(b), most_m, self._fromto)
        if distance_m == 0.0:
            self.model.opt.disableflags |= _SLOW_CCD
            distance_m = mujoco.mj_geomDistance(self.model, self._data, int(a), int(b), most_m, self._fromto)
            self.model.opt.disableflags &= ~_SLOW_CCD
        return distance_m

    def _prune(self, spec: ArmSpec) -> NDArray[np.bool_]:
        """(P,) False for neighbours of neighbours that never come within `stop_m`, or are never out of `slow_m`."""
        model, pairs_P2 = self.model, self.pairs_P2
        near_P = np.array([_steps_apart(model, a, b) == 2 for a, b in model.geom_bodyid[pairs_P2]])
        least_P, most_P = np.full(len(pairs_P2), np.inf), np.full(len(pairs_P2), -np.inf)
        for q_J in np.random.default_rng(0).uniform(spec.low_J, spec.high_J, (_SAMPLES, len(spec.joints))):
            self._place(q_J)
            for i in np.flatnonzero(near_P):
                distance_m = self._distance(i, 2.0 * self.slow_m)
                least_P[i], most_P[i] = min(least_P[i], distance_m), max(most_P[i], distance_m)
        return ~near_P | ((least_P < self.stop_m) & (most_P > self.slow_m))


def _compile(spec: ArmSpec, table_z: float | None) -> mujoco.MjModel:
    """The arm's own model with hulls for all its meshes, and the table."""
    model = mujoco.MjSpec.from_file(str(spec.mjcf))
    drawn_only = {body.name for body in model.bodies if all(geom.contype == 0 for geom in body.geoms)}
    for body in model.bodies:
        for geom in list(body.geoms):
            if body.name in drawn_only:
                geom.contype, geom.conaffinity = 1, 1
            elif geom.contype == 0:
                model.delete(geom)
    if table_z is not None:
        model.worldbody.add_geom(
            name="table",
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[0, 0, 0.1],
            pos=[0, 0, table_z],
            contype=1,
            conaffinity=1,
        )
    return model.compile()


def _joints(model: mujoco.MjModel, spec: ArmSpec) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each joint of the arm stands in the model's positions and velocities."""
    valid = [model.joint(i).name for i in range(model.njnt)]
    qpos, dof = [], []
    for name in spec.names:
        theirs = spec.mjcf_joints.get(name, name)
        if theirs not in valid:
            raise unknown_name("joint of the model", theirs, valid)
        joint = model.joint(theirs)
        qpos.append(int(joint.qposadr[0]))
        dof.append(int(joint.dofadr[0]))
    return np.array(qpos, np.intp), np.array(dof, np.intp)


def _candidates(model: mujoco.MjModel) -> NDArray[np.intp]:
    """Pairs of geoms on links that are not joined to each other; the table pairs with all but what stands on it."""
    parent, body = model.body_parentid, model.geom_bodyid
    fixed = {0} | {b for b in range(model.nbody) if model.body_weldid[b] == 0}
    pairs = []
    for i in range(model.ngeom):
        for j in range(i + 1, model.ngeom):
            a, b = body[i], body[j]
            if (a in fixed and b in fixed) or _steps_apart(model, a, b) < 2:
                continue
            if (a == 0 or b == 0) and parent[max(a, b)] in fixed:
                continue  # the first moving link turns in its base, however near the table
            plane_last = model.geom_type[j] == mujoco.mjtGeom.mjGEOM_PLANE
            pairs.append((j, i) if plane_last else (i, j))
    return np.array(pairs, np.intp)


def _steps_apart(model: mujoco.MjModel, a: int, b: int) -> int:
    """Number of joints-between-links from body `a` to body `b`; the world counts as far from everything."""
    if a == 0 or b == 0:
        return model.nbody
    above_a, above_b = _ancestors(model, a), _ancestors(model, b)
    common = next(body for body in above_a if body in above_b)
    return above_a.index(common) + above_b.index(common)


def _ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    """The body, its parent, and so on to the world."""
    line = [body]
    while line[-1] != 0:
        line.append(int(model.body_parentid[line[-1]]))
    return line
