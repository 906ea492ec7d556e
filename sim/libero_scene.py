"""One compiled LIBERO scene with robosuite's controller around it, and all that it takes to start it anew.

Knows robosuite's objects (`sim.libero` builds them), imports only MuJoCo.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from sim.perturb_stage import Stage
from sim.render import GL_HINT, Look, Renderer, fast_meshes
from vla.core.errors import CorruptFileError, MissingAssetError
from vla.core.types import Image

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
# What the operational-space controller remembers between calls (robosuite 1.4, controllers/osc.py).
_CONTROLLER_FIELDS = (
    "goal_pos",
    "goal_ori",
    "relative_ori",
    "initial_joint",
    "initial_ee_pos",
    "initial_ee_ori_mat",
    "ee_pos",
    "ee_ori_mat",
    "ee_pos_vel",
    "ee_ori_vel",
    "joint_pos",
    "joint_vel",
    "J_pos",
    "J_ori",
    "J_full",
    "mass_matrix",
)


class Scene:
    """A task that runs.

    env          LIBERO's environment for it, just built and seeded
    init_states  (N, 1 + nq + nv) float64

    What is seen is a little old: robosuite samples its sensors and cameras in the last but one of the 25 physics steps
    of a control step, and there sees the bodies where that physics step began. Policies were trained on such data, so
    the state before that physics step is kept, and taken again in a second `MjData` when somebody looks.
    """

    def __init__(self, *, env: Any, task: str, init_states: np.ndarray, look: Look) -> None:
        self.task = task
        self._look = look
        self._env = env
        self._sim = env.sim
        self.model: mujoco.MjModel = self._sim.model._model
        self.data: mujoco.MjData = self._sim.data._data
        self._view = mujoco.MjData(self.model)
        self._robot = self._env.robots[0]
        self._pictures: _OriginalPictures | _FastPictures | None = None
        self._init_states = init_states
        if init_states.shape[1] != 1 + self.model.nq + self.model.nv:
            raise CorruptFileError(f"initial states of {task}: {init_states.shape[1]} numbers do not fit the scene")
        fingers = [self._robot.gripper.important_geoms[f"{side}_finger"] for side in ("left", "right")]
        self._fingers = [{self.model.geom(name).id for name in names} for names in fingers]
        self._fixture_joints = [joint for fixture in self._env.fixtures_dict.values() for joint in fixture.joints]
        self._dofs = np.array(self._robot.controller.qvel_index)
        self._arm = self._robot._ref_joint_actuator_indexes
        self._torque_limits = self._robot.torque_limits
        self._hand = [self.model.actuator(name).id for name in self._robot.gripper.actuators]
        low, high = self.model.actuator_ctrlrange[self._hand].T
        self._hand_middle, self._hand_reach = 0.5 * (high + low), 0.5 * (high - low)
        self._substeps = int(self._env.control_timestep / self._env.model_timestep)
        self._goal = self._env.parsed_problem["goal_state"]
        self.reached = [False] * len(self._goal)
        self._see(moving=False)
        self._fresh = (self.flags(), self.arrays())

    @property
    def success(self) -> bool:
        return all(self.reached)

    def start(self, init_state: int) -> None:
        """The stored state, reached as `set_init_state` reaches it in a new environment."""
        mujoco.mj_resetData(self.model, self.data)
        self.resume(*self._fresh)
        self._sim.set_state_from_flattened(self._init_states[init_state])
        self._sim.forward()
        self._check()
        self._see(moving=False)

    def control(self, action_A: np.ndarray) -> None:
        """One control step: robosuite's `MujocoEnv.step` without its observations and its spare `mj_forward`s.

        Of the three times that robosuite computes the same physics step, this keeps one, cut where the controller needs
        positions and velocities and MuJoCo needs torques. The result is the same to the last bit.
        """
        for substep in range(self._substeps):
            mujoco.mj_step1(self.model, self.data)
            self._drive(action_A, new=substep == 0)
            if substep == self._substeps - 2:
                self._see(moving=True)
            mujoco.mj_step2(self.model, self.data)
        self._check()

    def look(self) -> None:
        """Brings the second `MjData` to what the sensors saw."""
        mujoco.mj_setState(self.model, self._view, self._seen, _INTEGRATION)
        (mujoco.mj_step if self._moving else mujoco.mj_forward)(self.model, self._view)

    def privileged(self) -> dict[str, np.ndarray]:
        """Simulator truth at the last `look`; see `LiberoEnv.observe`."""
        view, robot = self._view, self._robot
        truth = {
            "eef_pos": view.site_xpos[robot.eef_site_id].copy(),
            "eef_quat": view.body(robot.robot_model.eef_name).xquat.copy(),
            "gripper_qpos": view.qpos[robot._ref_gripper_joint_pos_indexes],
            "base_pos": view.body(robot.robot_model.root_body).xpos.copy(),
            "success": np.array(self.success),
            "goal": np.array(self.reached),
        }
        for joint in self._fixture_joints:
            truth[joint] = view.joint(joint).qpos.copy().reshape(())
        for region in self._env.object_sites_dict:
            truth[f"{region}_pos"] = view.site(region).xpos.copy()
        left, right = self._touched()
        for name, body in self._env.obj_body_id.items():
            truth[f"{name}_pos"] = view.xpos[body].copy()
            truth[f"{name}_quat"] = view.xquat[body].copy()
            truth[f"grasp_{name}"] = np.array(self.model.body_rootid[body] in left & right)
        return truth

    def render(self, camera: str, size: int) -> Image:
        """A (size, size, 3) picture of the last `look` in the published orientation."""
        pictures = self._open_pictures(size)
        if isinstance(pictures, _FastPictures):
            upright = pictures.draw(self._seen, camera)
        else:
            upright = pictures.draw(self._view, self._seen_lamps, camera)
        # robosuite's rows run from bottom to top, so turning its pictures by 180 degrees leaves them mirrored.
        return np.ascontiguousarray(upright[:, ::-1])

    def stage(self, cameras: Mapping[str, str], size: int) -> Stage:
        """What a perturbation may touch; `cameras` {our name: MuJoCo's}, `size` of their pictures [pixels]."""
        env, robot = self._env, self._robot
        loose = {name: env.obj_body_id[name] for name in env.objects_dict}
        mentioned = [[str(word) for word in predicate[1:]] for predicate in self._goal]
        second = [word for words in mentioned for word in words[1:]]
        return Stage(
            model=self.model,
            data=self.data,
            pictures=lambda: (self._open_pictures(size).model, self._open_pictures(size).renderer),
            cameras=cameras,
            movable=loose,
            fixtures={name: env.obj_body_id[name] for name in env.fixtures_dict},
            targets=tuple(dict.fromkeys(words[0] for words in mentioned if words[0] in loose)),
            containers=tuple(name for name in env.obj_body_id if any(word.startswith(name) for word in second)),
            arm=np.array(robot._ref_joint_pos_indexes),
            base_xy=self.data.body(robot.robot_model.root_body).xpos[:2].copy(),
            hand=int(robot.eef_site_id),
        )

    def accept_moves(self) -> None:
        """Takes over positions that were written to `data.qpos` since `start`; does nothing if none were."""
        before = self._seen[1 : 1 + self.model.nq]  # an integration state begins with the time
        if np.array_equal(before, self.data.qpos):
            return
        self._sim.forward()
        arm = self._robot._ref_joint_pos_indexes
        if not np.array_equal(before[arm], self.data.qpos[arm]):
            self._robot.controller.update(force=True)  # else it turns the hand back to where it was
            self._robot.controller.reset_goal()
        self._check()
        self._see(moving=False)

    def _open_pictures(self, size: int) -> "_OriginalPictures | _FastPictures":
        if self._pictures is None:
            if self._look is Look.FAST:
                self._pictures = _FastPictures(self.model, self._env.model.get_xml(), size)
            else:
                self._pictures = _OriginalPictures(self.model, size)
        return self._pictures

    def flags(self) -> dict[str, Any]:
        return {"moving": self._moving, "reached": self.reached, "new_update": self._robot.controller.new_update}

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of everything that what follows depends on, and of what is seen now."""
        controller = self._robot.controller
        return {
            "physics": self._state(),
            "lamps": self.model.site_rgba.copy(),  # LIBERO lights a stove by the alpha of its sites
            "seen": self._seen.copy(),
            "seen_lamps": self._seen_lamps.copy(),
            "gripper": np.broadcast_to(self._robot.gripper.current_action, 2).copy(),  # one number until the first step
            **{name: np.array(getattr(controller, name)) for name in _CONTROLLER_FIELDS},
        }

    def resume(self, flags: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Inverse of `flags` and `arrays`. Raises CorruptFileError when they do not fit this scene."""
        present = self.arrays()
        wrong = [name for name in present if name not in arrays or arrays[name].shape != present[name].shape]
        if wrong or not flags.keys() >= self.flags().keys():
            raise CorruptFileError(f"snapshot of {self.task}: {wrong or 'its header'} does not fit this scene")
        mujoco.mj_setState(self.model, self.data, arrays["physics"], _INTEGRATION)
        self.model.site_rgba[:] = arrays["lamps"]
        self._seen, self._seen_lamps = arrays["seen"].copy(), arrays["seen_lamps"].copy()
        self._robot.gripper.current_action = arrays["gripper"].copy()
        controller = self._robot.controller
        for name in _CONTROLLER_FIELDS:
            setattr(controller, name, arrays[name].copy(order="K"))  # BLAS rounds by memory order
        controller.new_update = flags["new_update"]
        self._moving, self.reached = flags["moving"], list(flags["reached"])

    def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        self._env.close()

    def _drive(self, action_A: np.ndarray, *, new: bool) -> None:
        """Torques and gripper for a physics step: robosuite's `SingleArm.control`, whose records nobody reads."""
        controller, gripper = self._robot.controller, self._robot.gripper
        if controller.new_update:
            self._measure()
        if new:
            controller.set_goal(action_A[: controller.control_dim])
        self.data.ctrl[self._arm] = np.clip(controller.run_controller(), *self._torque_limits)
        opening = gripper.format_action(action_A[controller.control_dim :])
        self.data.ctrl[self._hand] = self._hand_middle + self._hand_reach * opening

    def _measure(self) -> None:
        """Robosuite's `Controller.update` without its `mj_forward`. BLAS rounds by memory order, so that is kept."""
        controller, model, data = self._robot.controller, self.model, self.data
        dofs, site = self._dofs, self._robot.eef_site_id
        jacobian, inertia = np.zeros((2, 3, model.nv)), np.empty((model.nv, model.nv))
        mujoco.mj_jacSite(model, data, *jacobian, site)
        mujoco.mj_fullM(model, inertia, data.qM)
        controller.ee_pos = data.site_xpos[site].copy()
        controller.ee_ori_mat = data.site_xmat[site].reshape(3, 3).copy()
        controller.ee_pos_vel, controller.ee_ori_vel = (np.dot(part, data.qvel) for part in jacobian)
        controller.joint_pos, controller.joint_vel = data.qpos[controller.qpos_index], data.qvel[dofs]
        controller.J_pos, controller.J_ori = (np.array(part[:, dofs]) for part in jacobian)
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = inertia[dofs, :][:, dofs]
        controller.new_update = False

    def _see(self, *, moving: bool) -> None:
        """Keeps what the sensors see now; `moving`: a physics step is about to be taken."""
        self._seen, self._seen_lamps, self._moving = self._state(), self.model.site_rgba.copy(), moving

    def _state(self) -> np.ndarray:
        state = np.empty(mujoco.mj_stateSize(self.model, _INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, _INTEGRATION)
        return state

    def _check(self) -> None:
        """The goal's predicates, then the lamps that show an appliance is on: LIBERO's order."""
        self.reached = [bool(self._env._eval_predicate(predicate)) for predicate in self._goal]
        self._env._post_process()

    def _touched(self) -> tuple[set[int], set[int]]:
        """Roots of the bodies that touch the left and the right finger."""
        sides: tuple[set[int], set[int]] = (set(), set())
        for pair in self._view.contact.geom.tolist():
            for finger, touched in zip(self._fingers, sides, strict=True):
                for mine, other in (pair, pair[::-1]):
                    if mine in finger:
                        touched.add(int(self.model.body_rootid[self.model.geom_bodyid[other]]))
        return sides


class _OriginalPictures:
    """What LIBERO's own offscreen renderer draws, sites included."""

    def __init__(self, model: mujoco.MjModel, size: int) -> None:
        self.model = model
        screen = model.vis.global_
        screen.offwidth, screen.offheight = max(size, screen.offwidth), max(size, screen.offheight)
        try:
            self.renderer = mujoco.Renderer(model, size, size)
        except (RuntimeError, AttributeError, ImportError, mujoco.FatalError) as error:
            raise MissingAssetError(f"no OpenGL back end renders here ({error}). Install one: {GL_HINT}") from error
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # robosuite's collision geometry

    def draw(self, data: mujoco.MjData, lamps: np.ndarray, camera: str) -> Image:
        """One upright picture, with the sites coloured as `lamps` (nsite, 4)."""
        present = self.model.site_rgba.copy()
        self.model.site_rgba[:] = lamps
        self.renderer.update_scene(data, camera, self._option)
        self.model.site_rgba[:] = present
        return self.renderer.render()

    def close(self) -> None:
        self.renderer.close()


class _FastPictures:
    """The same scene with decimated meshes, in a model of its own, so that physics cannot depend on the look."""

    def __init__(self, model: mujoco.MjModel, xml: str, size: int) -> None:
        self.model = mujoco.MjModel.from_xml_string(_fast_xml(xml))
        self.model.body_pos[:], self.model.body_quat[:] = model.body_pos, model.body_quat  # LIBERO places fixtures so
        self._data = mujoco.MjData(self.model)
        self._renderer = Renderer(self.model, height=size, width=size, look=Look.FAST)
        self.renderer = self._renderer._renderer

    def draw(self, seen: np.ndarray, camera: str) -> Image:
        """One upright picture of an integration state."""
        mujoco.mj_setState(self.model, self._data, seen, _INTEGRATION)
        mujoco.mj_kinematics(self.model, self._data)
        mujoco.mj_comPos(self.model, self._data)
        mujoco.mj_camlight(self.model, self._data)
        return self._renderer.draw(self._data, camera)

    def close(self) -> None:
        self._renderer.close()


def _fast_xml(xml: str) -> str:
    """Decimates the meshes that carry no picture: the robot's, above all. Labels tell LIBERO's objects apart."""
    root = ET.fromstring(xml)
    pictured = {material.get("name") for material in root.iter("material") if material.get("texture")}
    kept = {geom.get("mesh") for geom in root.iter("geom") if geom.get("material") in pictured}
    meshes = [mesh for mesh in root.iter("mesh") if mesh.get("name") in kept]
    files = {mesh.get("name"): mesh.attrib.pop("file") for mesh in meshes}  # without a file they are left alone
    root = ET.fromstring(fast_meshes(ET.tostring(root, encoding="unicode")))
    for mesh in root.iter("mesh"):
        if mesh.get("name") in files:
            mesh.set("file", files[mesh.get("name")])
    return ET.tostring(root, encoding="unicode")
