"""robosuite's own tasks for one arm (Zhu et al. 2020, arXiv 2009.12293; version 1.4) behind our `Env`.

A Panda under OSC_POSE at 20 Hz with LIBERO's seven actions (three moves, three turns, gripper -1 open, +1 close).
Initial state n is drawn by robosuite's own samplers, seeded with (task, n).

What is special: robosuite draws from numpy's global generator and keeps the gripper's opening over a reset; both are
put in order here. A scene is compiled once. `step` computes neither observations nor rewards. Success ends an episode.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

with contextlib.redirect_stderr(io.StringIO()):  # robosuite 1.4 prints a warning about a file it does not need
    import robosuite
    from robosuite.utils.errors import RandomizationError

from sim.pictures import Pictures
from sim.snapshots import pack, read_physics, unpack, write_physics
from vla.core.errors import CorruptFileError, unknown_name
from vla.core.protocols import Task
from vla.core.se3 import axis_angle_of_quat
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Image, Observation, Step

NUM_INIT_STATES = 50
CONTROL_HZ, PHYSICS_STEPS = 20.0, 25  # 2 ms each
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}  # our name -> robosuite's
_MOVED = ("body_pos", "body_quat")  # of the model, where robosuite writes the places of fixtures


@dataclass(frozen=True)
class _Published:
    """robosuite's name of a task, and what a policy is told."""

    name: str
    instruction: str


TASKS = {
    "lift": _Published("Lift", "lift the red cube"),
    "stack": _Published("Stack", "stack the red cube on the green cube"),
    "door": _Published("Door", "turn the handle and open the door"),
    "nut_assembly_square": _Published("NutAssemblySquare", "put the square nut on the square peg"),
    "nut_assembly_round": _Published("NutAssemblyRound", "put the round nut on the round peg"),
    "nut_assembly": _Published("NutAssembly", "put each nut on its peg"),
    "pick_place_milk": _Published("PickPlaceMilk", "put the milk into its bin"),
    "pick_place_bread": _Published("PickPlaceBread", "put the bread into its bin"),
    "pick_place_cereal": _Published("PickPlaceCereal", "put the cereal into its bin"),
    "pick_place_can": _Published("PickPlaceCan", "put the can into its bin"),
    "pick_place": _Published("PickPlace", "put each object into its bin"),
}


def robosuite_panda(image_size: int) -> Embodiment:
    """A Panda under OSC_POSE: hand position, rotation vector, two finger joints; seven action axes."""
    pose = [Axis(name=f"eef_{a}", unit="m") for a in "xyz"] + [Axis(name=f"eef_r{a}", unit="rad") for a in "xyz"]
    fingers = [Axis(name=f"finger_{side}", unit="m") for side in ("left", "right")]
    moves = [Axis(name=f"d{a}", unit="0.05 m", low=-1, high=1) for a in "xyz"]
    turns = [Axis(name=f"dr{a}", unit="0.5 rad", low=-1, high=1) for a in "xyz"]
    return Embodiment(
        name="robosuite_panda",
        state=(*pose, *fingers),
        action=(*moves, *turns, Axis(name="gripper_close", unit="1", low=-1, high=1, binary=True)),
        cameras=tuple(Camera(name=name, height=image_size, width=image_size) for name in CAMERAS),
        control_hz=CONTROL_HZ,
    )


class RobosuiteEnv:
    """One robosuite scene at a time.

    Args:
        image_size: height and width of both cameras [px].
        train_states: how many of the 50 initial states, counted from 0, may be used in training.
        extra_states: further placements for demonstrations, numbered from 50 on.
        horizon: control steps after which an episode is truncated.
    """

    def __init__(
        self, *, image_size: int = 128, train_states: int = 30, extra_states: int = 1_000_000, horizon: int = 500
    ) -> None:
        self._spec = robosuite_panda(image_size)
        self._tasks = {
            name: Task(
                name=name,
                instruction=published.instruction,
                horizon=horizon,
                num_init_states=NUM_INIT_STATES,
                num_train_states=train_states,
                num_extra_states=extra_states,
            )
            for name, published in TASKS.items()
        }
        self._built: str | None = None
        self._pictures: Pictures | None = None
        self._steps: int | None = None

    @property
    def spec(self) -> Embodiment:
        return self._spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode; `seed` is unused. Raises UnknownNameError for a task, ValueError for a state."""
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        last = NUM_INIT_STATES + self._tasks[task].num_extra_states - 1
        if not 0 <= init_state <= last:
            raise ValueError(f"init_state is {init_state}, expected 0 to {last}")
        self._load(task)
        for name in _MOVED:
            getattr(self._model, name)[:] = self._fresh[name]
        with _drawing_from([init_state, *task.encode()]):
            _until_placed(self._scene.reset)
        self._robot.gripper.current_action = np.zeros(self._robot.gripper.dof)
        self._steps = 0
        self._success = bool(self._scene._check_success())

    def step(self, action_A: np.ndarray) -> Step:
        task = self._running()
        executed_A = self._spec.clip(action_A)
        for substep in range(PHYSICS_STEPS):
            if substep:
                self._scene.sim.forward()
            self._scene._pre_action(executed_A, substep == 0)
            self._scene.sim.step()
        self._scene.sim.forward()  # what is seen and judged is the present, and the first substep needs no other
        self._steps = (self._steps or 0) + 1
        self._success = bool(self._scene._check_success())
        truncated = not self._success and self._steps >= task.horizon
        return Step(executed_A=executed_A, terminated=self._success, truncated=truncated, success=self._success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation.

        privileged: `<object>_pos` (3,) [m] and `<object>_quat` (4,) w,x,y,z by robosuite's name of the object, and
        `grasp_<object>` () bool, held between the fingers (`Visual<object>` marks an object's place in a bin);
        `eef_pos` (3,) [m], `eef_quat` (4,) w,x,y,z; `success` () bool.
        """
        task, robot, data = self._running(), self._robot, self._data
        names = self._spec.camera_names if cameras is None else cameras
        hand = data.body(robot.robot_model.eef_name)
        quat = hand.xquat if hand.xquat[0] >= 0 else -hand.xquat
        position = data.site_xpos[robot.eef_site_id].copy()
        truth = {"eef_pos": position, "eef_quat": quat.copy(), "success": np.array(self._success)}
        for thing in self._scene.model.mujoco_objects:
            body = data.body(thing.root_body)
            truth |= {f"{thing.name}_pos": body.xpos.copy(), f"{thing.name}_quat": body.xquat.copy()}
            if thing.contact_geoms:
                held = self._scene._check_grasp(gripper=robot.gripper, object_geoms=thing.contact_geoms)
                truth[f"grasp_{thing.name}"] = np.array(bool(held))
        fingers = data.qpos[robot._ref_gripper_joint_pos_indexes]
        return Observation(
            images={name: self._draw(name) for name in names},
            state_S=np.concatenate([position, axis_angle_of_quat(quat), fingers]).astype(np.float32),
            instruction=task.instruction,
            time_s=(self._steps or 0) / CONTROL_HZ,
            privileged=truth,
        )

    def snapshot(self) -> bytes:
        task, controller = self._running(), self._robot.controller
        header = {
            "suite": "robosuite",
            "task": task.name,
            "steps": self._steps,
            "success": self._success,
            "new_update": controller.new_update,
        }
        arrays = {name: getattr(self._model, name) for name in _MOVED}
        arrays |= {f"controller:{name}": v for name, v in vars(controller).items() if isinstance(v, np.ndarray)}
        arrays |= {"physics": read_physics(self._model, self._data), "gripper": self._robot.gripper.current_action}
        return pack(header, arrays)

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot, also one that another `RobosuiteEnv` took. Raises CorruptFileError."""
        header, arrays = unpack(snapshot, "robosuite")
        if header.get("task") not in self._tasks or not {"physics", "gripper", *_MOVED} <= arrays.keys():
            raise CorruptFileError(
                f"snapshot of task '{header.get('task')}' is not one of robosuite's or is incomplete"
            )
        self._load(header["task"])
        for name in _MOVED:
            getattr(self._model, name)[:] = arrays[name]
        write_physics(self._model, self._data, arrays["physics"])
        controller = self._robot.controller
        for name, value in arrays.items():
            if name.startswith("controller:"):
                setattr(controller, name.removeprefix("controller:"), value)
        controller.new_update = header["new_update"]
        self._robot.gripper.current_action = arrays["gripper"]
        self._steps, self._success = header["steps"], header["success"]

    def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        if self._built is not None:
            self._scene.close()
        self._built = self._pictures = self._steps = None

    def _running(self) -> Task:
        if self._steps is None or self._built is None:
            raise ValueError("no episode is running: call reset first")
        return self._tasks[self._built]

    def _draw(self, camera: str) -> Image:
        if camera not in CAMERAS:
            raise unknown_name("camera", camera, CAMERAS)
        assert self._pictures is not None
        return self._pictures.draw(self._data, CAMERAS[camera])

    def _load(self, task: str) -> None:
        """Compiles the scene of a task, unless it is the one at hand."""
        if self._built == task:
            return
        self.close()
        self._scene = _build(TASKS[task].name)
        self._built = task
        self._robot = self._scene.robots[0]
        self._model: mujoco.MjModel = self._scene.sim.model._model
        self._data: mujoco.MjData = self._scene.sim.data._data
        self._fresh = {name: getattr(self._model, name).copy() for name in _MOVED}
        shown = mujoco.MjvOption()
        shown.geomgroup[0] = 0  # robosuite's collision geometry
        size = self._spec.cameras[0].width
        self._pictures = Pictures(self._model, height=size, width=size, shown=shown)


def _build(name: str) -> Any:
    """A robosuite environment without observations and windows; what its constructor draws is the same each time."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), _drawing_from([0]):
            return _until_placed(
                lambda: robosuite.make(
                    name,
                    robots="Panda",
                    controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
                    has_renderer=False,
                    has_offscreen_renderer=False,
                    use_camera_obs=False,
                    ignore_done=True,
                    hard_reset=False,
                    control_freq=CONTROL_HZ,
                )
            )
    finally:
        logging.disable(before)


def _until_placed(draw: Any) -> Any:
    """Calls `draw` until robosuite's samplers find a place for everything."""
    while True:
        with contextlib.suppress(RandomizationError):
            return draw()


@contextlib.contextmanager
def _drawing_from(seed: Sequence[int]) -> Iterator[None]:
    """Seeds numpy's global generator, which robosuite draws from; afterwards it is as it was."""
    before = np.random.get_state()
    np.random.set_state(np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed))).get_state())
    try:
        yield
    finally:
        np.random.set_state(before)
