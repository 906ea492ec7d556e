"""Operational-space control of a Panda: end-effector deltas to joint torques.

The law of robosuite 1.4's OSC_POSE (Khatib 1987; fixed impedance, position and orientation decoupled), evaluated at
every physics step. Written out here because robosuite's own needs its whole environment around it and calls
`mj_forward` twice a step; a test holds the torques equal to robosuite's.
"""

import mujoco
import numpy as np

KP = 150.0  # [1/s^2], all six axes
KD = 2.0 * np.sqrt(KP)  # [1/s], critical damping
POSITION_SCALE = 0.05  # [m] a full action moves the goal so far
ROTATION_SCALE = 0.5  # [rad]
POSTURE_KP = 10.0  # [1/s^2] pull towards the first posture within the null space
SCALE_6 = np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)


class OperationalSpaceController:
    """Tracks a goal pose of one site. State: the goal pose and the posture that the null space is pulled to."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, *, site: str, joints: list[str]) -> None:
        self._model, self._data = model, data
        self._site = model.site(site).id
        self._qpos = np.array([model.joint(name).qposadr[0] for name in joints])
        self._dof = np.array([model.joint(name).dofadr[0] for name in joints])
        self._jacobian = np.zeros((6, model.nv))
        self._inertia = np.zeros((model.nv, model.nv))
        actuators = [int(np.flatnonzero(model.actuator_trnid[:, 0] == model.joint(name).id)[0]) for name in joints]
        self.actuators = np.array(actuators)
        self._low, self._high = model.actuator_ctrlrange[self.actuators].T
        self.posture = np.zeros(len(joints))
        self.goal_pos = np.zeros(3)
        self.goal_mat = np.eye(3)

    def reset(self) -> None:
        """Makes the present pose the goal and the present joints the posture."""
        self.posture = self._data.qpos[self._qpos].copy()
        self.goal_pos = self._data.site_xpos[self._site].copy()
        self.goal_mat = self._data.site_xmat[self._site].reshape(3, 3).copy()

    def set_goal(self, delta_6: np.ndarray) -> None:
        """Moves the goal to the present pose plus `delta_6` in [-1, 1]: metres/0.05, then a world rotation vector/0.5.

        As in robosuite, a rotation of exactly zero keeps the former goal orientation.
        """
        delta_6 = delta_6 * SCALE_6
        self.goal_pos = self._data.site_xpos[self._site] + delta_6[:3]
        if np.any(np.abs(delta_6[3:]) > 0.0):
            self.goal_mat = _rotation(delta_6[3:]) @ self._data.site_xmat[self._site].reshape(3, 3)

    def torques(self) -> np.ndarray:
        """Joint torques [Nm] for the present state, within the actuators' limits, gravity compensated."""
        model, data = self._model, self._data
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        mujoco.mj_fullM(model, self._inertia, data.qM)
        jacobian = self._jacobian[:, self._dof]
        inertia = self._inertia[np.ix_(self._dof, self._dof)]
        qpos, qvel = data.qpos[self._qpos], data.qvel[self._dof]
        twist = jacobian @ qvel

        force = KP * (self.goal_pos - data.site_xpos[self._site]) - KD * twist[:3]
        moment = KP * _orientation_error(self.goal_mat, data.site_xmat[self._site].reshape(3, 3)) - KD * twist[3:]

        mobility_7x6 = np.linalg.solve(inertia, jacobian.T)  # M^-1 J^T
        mobility = jacobian @ mobility_7x6
        wrench = np.concatenate([np.linalg.solve(mobility[:3, :3], force), np.linalg.solve(mobility[3:, 3:], moment)])
        posture = inertia @ (POSTURE_KP * (self.posture - qpos) - 2 * np.sqrt(POSTURE_KP) * qvel)
        # null-space projection: N^T tau = tau - J^T (J M^-1 J^T)^-1 J M^-1 tau
        posture -= jacobian.T @ np.linalg.solve(mobility, mobility_7x6.T @ posture)
        torques = jacobian.T @ wrench + posture + data.qfrc_bias[self._dof]
        return np.clip(torques, self._low, self._high)

    def state(self) -> np.ndarray:
        """Goal and posture in one vector, for snapshots."""
        return np.concatenate([self.posture, self.goal_pos, self.goal_mat.ravel()])

    def set_state(self, state: np.ndarray) -> None:
        """Inverse of `state`."""
        posture, pos, mat = np.split(state, [len(self.posture), len(self.posture) + 3])
        self.posture, self.goal_pos, self.goal_mat = posture.copy(), pos.copy(), mat.reshape(3, 3).copy()


def _rotation(vector: np.ndarray) -> np.ndarray:
    """The rotation matrix (3, 3) of a rotation vector [rad]."""
    quat, mat = np.zeros(4), np.zeros(9)
    angle = float(np.linalg.norm(vector))
    mujoco.mju_axisAngle2Quat(quat, vector / angle, angle)
    mujoco.mju_quat2Mat(mat, quat)
    return mat.reshape(3, 3)


def _orientation_error(desired: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Half the sum of the columns' cross products: the rotation vector for small errors (Khatib 1987)."""
    c, d = current, desired
    return 0.5 * np.array(
        [
            c[1] @ d[2] - c[2] @ d[1],
            c[2] @ d[0] - c[0] @ d[2],
            c[0] @ d[1] - c[1] @ d[0],
        ]
    )
