"""ALOHA's two simulated tasks for two arms (Zhao et al. 2023, arXiv 2304.13705) behind our `Env`; the only door to
gym_aloha.

Two ViperX arms under joint position control at 50 Hz: 14 absolute positions, grippers from 0 (closed) to 1 (open).
Initial state n is gym-aloha's own `reset(seed=n)`.

What is special: gym-aloha renders three pictures in each step; here physics steps alone, through the same dm_control
calls, and pictures are drawn when asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from sim.pictures import Pictures
from sim.snapshots import pack, read_physics, unpack, write_physics
from vla.core.errors import CorruptFileError, MissingAssetError, unknown_name
from vla.core.protocols import Task
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Image, Observation, Step

INSTALL = "pip install 'graspline[suites]'"
NUM_INIT_STATES = 50
CONTROL_HZ, PHYSICS_STEPS = 50.0, 10  # 2 ms each
CAMERAS = ("top", "angle", "front_close", "left_wrist", "right_wrist")  # those of its scenes
TASKS = {
    "transfer_cube": "pick up the cube with the right arm and hand it over to the left arm",
    "insertion": "insert the peg into the socket",
}
SUCCESS_REWARD = 4  # cube in the left gripper, off the table; or the pin in the socket touched by the peg
_OBJECTS = {"transfer_cube": ("box",), "insertion": ("peg", "socket")}
_LIMITS_RAD = {
    "waist": (-3.14158, 3.14158),
    "shoulder": (-1.85005, 1.25664),
    "elbow": (-1.76278, 1.6057),
    "forearm_roll": (-3.14158, 3.14158),
    "wrist_angle": (-1.8675, 2.23402),
    "wrist_rotate": (-3.14158, 3.14158),
}


def aloha_spec(height: int, width: int, cameras: Sequence[str] = ("top",)) -> Embodiment:
    """Two ViperX arms: joint angles and gripper openings, measured and commanded alike, left before right."""
    axes = []
    for side in ("left", "right"):
        axes += [Axis(name=f"{side}_{j}", unit="rad", low=low, high=high) for j, (low, high) in _LIMITS_RAD.items()]
        axes += [Axis(name=f"{side}_gripper", unit="1", low=0.0, high=1.0)]
    return Embodiment(
        name="aloha_bimanual",
        state=tuple(Axis(name=axis.name, unit=axis.unit) for axis in axes),
        action=tuple(axes),
        cameras=tuple(Camera(name=name, height=height, width=width) for name in cameras),
        control_hz=CONTROL_HZ,
    )


class AlohaEnv:
    """`transfer_cube` and `insertion`, one scene at a time.

    Args:
        cameras: some of `CAMERAS`; gym-aloha shows `top` alone.
        image_height: of all cameras [px]; 480 is published.
        image_width: of all cameras [px]; 640 is published.
        train_states: how many of the 50 initial states, counted from 0, may be used in training.
        extra_states: further placements for demonstrations, numbered from 50 on.
        horizon: control steps after which an episode is truncated; 400 is published.
    """

    def __init__(
        self,
        *,
        cameras: Sequence[str] = ("top",),
        image_height: int = 480,
        image_width: int = 640,
        train_states: int = 30,
        extra_states: int = 1_000_000,
        horizon: int = 400,
    ) -> None:
        for camera in cameras:
            if camera not in CAMERAS:
                raise unknown_name("camera", camera, CAMERAS)
        self._spec = aloha_spec(image_height, image_width, cameras)
        self._tasks = {
            name: Task(
                name=name,
                instruction=instruction,
                horizon=horizon,
                num_init_states=NUM_INIT_STATES,
                num_train_states=train_states,
                num_extra_states=extra_states,
            )
            for name, instruction in TASKS.items()
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
        """Starts an episode; `seed` is unused.

        Raises:
            UnknownNameError: no such task.
            ValueError: `init_state` out of range.
            MissingAssetError: gym-aloha is not installed.
        """
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        last = NUM_INIT_STATES + self._tasks[task].num_extra_states - 1
        if not 0 <= init_state <= last:
            raise ValueError(f"init_state is {init_state}, expected 0 to {last}")
        self._load(task)
        self._place(init_state)
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        self._steps, self._reward = 0, 0

    def step(self, action_A: np.ndarray) -> Step:
        task = self._running()
        executed_A = self._spec.clip(action_A)
        self._task.before_step(executed_A, self._physics)
        self._physics.step(nstep=PHYSICS_STEPS)
        self._steps = (self._steps or 0) + 1
        self._reward = int(self._task.get_reward(self._physics))
        success = self._reward == SUCCESS_REWARD
        truncated = not success and self._steps >= task.horizon
        return Step(executed_A=executed_A, terminated=success, truncated=truncated, success=success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation.

        privileged: `<object>_pos` (3,) [m] and `<object>_quat` (4,) w,x,y,z of box, or of peg and socket; `velocity`
        (14,) of the state's axes [per s]; `reward` () 0 to 4, gym-aloha's count of what is done (4: success).
        """
        task = self._running()
        names = self._spec.camera_names if cameras is None else cameras
        truth = {"velocity": self._task.get_qvel(self._physics), "reward": np.array(self._reward)}
        for i, name in enumerate(_OBJECTS[task.name]):
            pose = self._data.qpos[16 + 7 * i : 23 + 7 * i]
            truth |= {f"{name}_pos": pose[:3].copy(), f"{name}_quat": pose[3:].copy()}
        return Observation(
            images={name: self._draw(name) for name in names},
            state_S=self._task.get_qpos(self._physics).astype(np.float32),
            instruction=task.instruction,
            time_s=(self._steps or 0) / CONTROL_HZ,
            privileged=truth,
        )

    def snapshot(self) -> bytes:
        task = self._running()
        header = {"suite": "aloha", "task": task.name, "steps": self._steps, "reward": self._reward}
        return pack(header, {"physics": read_physics(self._model, self._data)})

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot, also one that another `AlohaEnv` took. Raises CorruptFileError."""
        header, arrays = unpack(snapshot, "aloha")
        if header.get("task") not in self._tasks or "physics" not in arrays:
            raise CorruptFileError(f"snapshot of task '{header.get('task')}' is not one of ALOHA's or is incomplete")
        self._load(header["task"])
        write_physics(self._model, self._data, arrays["physics"])
        # dm_control's steps begin with forces and end with positions and velocities: so it found the state
        mujoco.mj_step1(self._model, self._data)
        self._steps, self._reward = header["steps"], header["reward"]

    def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        self._built = self._pictures = self._steps = None

    def _running(self) -> Task:
        if self._steps is None or self._built is None:
            raise ValueError("no episode is running: call reset first")
        return self._tasks[self._built]

    def _draw(self, camera: str) -> Image:
        if camera not in self._spec.camera_names:
            raise unknown_name("camera", camera, self._spec.camera_names)
        assert self._pictures is not None
        return self._pictures.draw(self._data, camera)

    def _load(self, task: str) -> None:
        """Compiles the scene of a task, unless it is the one at hand."""
        if self._built == task:
            return
        self.close()
        self._physics, self._task, self._place = _build(task)
        self._model: mujoco.MjModel = self._physics.model.ptr
        self._data: mujoco.MjData = self._physics.data.ptr
        camera = self._spec.cameras[0]
        self._pictures = Pictures(self._model, height=camera.height, width=camera.width)
        self._built = task


def _build(task: str) -> tuple[Any, Any, Any]:
    """dm_control's physics, gym-aloha's task, and what places the objects of an initial state."""
    try:
        from dm_control.mujoco import Physics
        from gym_aloha.constants import ASSETS_DIR
        from gym_aloha.tasks import sim as published
        from gym_aloha.utils import sample_box_pose, sample_insertion_pose
    except ImportError as error:
        raise MissingAssetError(f"gym-aloha is not installed ({error}): {INSTALL}") from error

    placed: Any = published.BOX_POSE  # a global list, where its tasks look when an episode starts

    def place(init_state: int) -> None:
        poses = [sample_box_pose(init_state)] if task == "transfer_cube" else sample_insertion_pose(init_state)
        placed[0] = np.concatenate(poses)

    kind = published.TransferCubeTask if task == "transfer_cube" else published.InsertionTask
    return Physics.from_xml_path(str(ASSETS_DIR / f"bimanual_viperx_{task}.xml")), kind(), place
