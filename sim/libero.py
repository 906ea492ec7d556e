"""LIBERO's five suites (Liu et al. 2023, arXiv 2306.03310) behind our `Env`; the only file that imports `libero`.

Published conventions: OSC_POSE deltas at 20 Hz, gripper -1 open and +1 close, images turned by 180 degrees, ten
settle steps, `np.random.seed(0)` (or another) before the scene is built, success ends an episode.

What is special: a scene is compiled once and reset by restoring its state, and every episode is bit for bit the one
that stock LIBERO runs first after `env.seed(0); env.reset(); env.set_init_state(...)`. Stock LIBERO draws the places
of fixtures anew at each reset, so that there an outcome depends on the episodes before. `step` renders nothing.
"""

import contextlib
import io
import json
import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # robosuite does the same, but too late for `import mujoco`

import numpy as np

from sim.libero_scene import Scene
from sim.libero_setup import (
    bddl_file,
    ensure_config,
    find_assets,
    init_states_file,
    load_init_states,
    suite_tasks,
)
from sim.perturb_stage import Stage
from sim.render import Look
from vla.core.errors import CorruptFileError, MissingAssetError, unknown_name
from vla.core.protocols import Task
from vla.core.se3 import axis_angle_of_quat
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Observation, Step

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}  # our name -> LIBERO's
_IDLE = np.array([0, 0, 0, 0, 0, 0, -1], np.float64)


def libero_panda(image_size: int) -> Embodiment:
    """The Panda of LIBERO: end-effector position, rotation vector, two finger joints; seven action axes."""
    position = tuple(Axis(name=f"eef_{axis}", unit="m") for axis in "xyz")
    rotation = tuple(Axis(name=f"eef_r{axis}", unit="rad") for axis in "xyz")
    fingers = tuple(Axis(name=f"finger_{side}", unit="m") for side in ("left", "right"))
    deltas = tuple(Axis(name=name, unit="1", low=-1, high=1) for name in ("dx", "dy", "dz", "drx", "dry", "drz"))
    return Embodiment(
        name="libero_panda",
        state=position + rotation + fingers,
        action=(*deltas, Axis(name="gripper", unit="1", low=-1, high=1, binary=True)),
        cameras=tuple(Camera(name=name, height=image_size, width=image_size) for name in CAMERAS),
        control_hz=20.0,
    )


class LiberoEnv:
    """One LIBERO scene at a time.

    Args:
        suite: libero_spatial, libero_object, libero_goal, libero_10 or libero_90.
        assets: folder of LIBERO's meshes and textures; None looks for them (`sim.libero_setup.find_assets`).
        image_size: height and width of both cameras [pixels].
        look: "original" draws what LIBERO draws; "fast" draws decimated meshes without reflections, shadows, smooth
            edges and lamps, several times as fast on a CPU. Physics is the same; scores are not comparable.
        settle_steps: idle control steps after a reset, in which objects come to rest.
        train_states: how many of the 50 initial states, counted from 0, may be used in training.
        horizon: control steps after which an episode is truncated; None takes `sim.libero_setup.HORIZONS`.
        scene_seed: seed of the places of fixtures, which the stored initial states do not hold; None takes each
            episode's own, and builds the scene anew for every seed [seconds].
    """

    def __init__(
        self,
        *,
        suite: str,
        assets: str | None = None,
        image_size: int = 256,
        look: str = "original",
        settle_steps: int = 10,
        train_states: int = 40,
        horizon: int | None = None,
        scene_seed: int | None = 0,
    ) -> None:
        if look not in list(Look):
            raise ValueError(f"look is '{look}', expected one of {', '.join(Look)}")
        if image_size < 1 or settle_steps < 0:
            raise ValueError(f"image_size {image_size} must be at least 1, settle_steps {settle_steps} at least 0")
        if horizon is not None and horizon < 1:
            raise ValueError(f"horizon is {horizon}, expected at least 1")
        self.suite = suite
        self._assets = assets
        self._look = Look(look)
        self._settle_steps = settle_steps
        self._spec = libero_panda(image_size)
        self._tasks = suite_tasks(suite, train_states)
        if horizon is not None:
            self._tasks = {name: replace(task, horizon=horizon) for name, task in self._tasks.items()}
        self._scene_seed = scene_seed
        self._scene: Scene | None = None
        self._built_with: int | None = None
        self._steps = 0

    @property
    def spec(self) -> Embodiment:
        return self._spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode; `seed` changes nothing unless `scene_seed` is None, as LIBERO draws nothing else.

        Raises:
            UnknownNameError: no such task in this suite.
            ValueError: `init_state` out of range.
            MissingAssetError: the assets are not there or incomplete.
            CorruptFileError: the stored initial states are damaged.
        """
        self.place(task, init_state, seed)
        self.settle()

    def place(self, task: str, init_state: int, seed: int) -> None:
        """The first half of `reset`: everything where it starts, nothing has come to rest."""
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        if not 0 <= init_state < self._tasks[task].num_init_states:
            raise ValueError(f"init_state is {init_state}, expected 0 to {self._tasks[task].num_init_states - 1}")
        scene = self._load(task, seed if self._scene_seed is None else self._scene_seed)
        scene.start(init_state)
        self._steps = 0

    def settle(self) -> None:
        """The second half of `reset`; positions written to `stage().data` in between are part of the start."""
        scene = self._started()
        scene.accept_moves()
        for _ in range(self._settle_steps):
            scene.control(_IDLE)

    def stage(self) -> Stage:
        """What `sim.perturb` may touch of the running episode."""
        return self._started().stage(CAMERAS, self._spec.cameras[0].width)

    def step(self, action_A: np.ndarray) -> Step:
        scene = self._started()
        executed_A = self._spec.clip(action_A)
        scene.control(executed_A)
        self._steps += 1
        success = scene.success
        truncated = not success and self._steps >= self._tasks[scene.task].horizon
        return Step(executed_A=executed_A, terminated=success, truncated=truncated, success=success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation.

        Images and positions are those that stock LIBERO returns from its `step`; `success` is that of `step`.

        privileged: `<object>_pos` (3,) [m] and `<object>_quat` (4,) w,x,y,z of each object and fixture by its LIBERO
        name; `grasp_<object>` () bool, both fingers touch it; `base_pos` (3,) [m] of the robot; `eef_pos` (3,),
        `eef_quat` (4,) w,x,y,z, `gripper_qpos` (2,) [m], `success` () bool, `goal` (n,) bool: which predicates of the
        task's goal hold, in the order of its bddl file. `<joint>` () [m] or [rad] of each drawer, door and knob;
        `<region>_pos` (3,) [m] of each region that a predicate may name.
        """
        scene = self._started()
        names = self._spec.camera_names if cameras is None else cameras
        for name in names:
            if name not in CAMERAS:
                raise unknown_name("camera", name, CAMERAS)
        scene.look()
        privileged = scene.privileged()
        rotation = axis_angle_of_quat(privileged["eef_quat"])
        state_S = np.concatenate([privileged["eef_pos"], rotation, privileged["gripper_qpos"]]).astype(np.float32)
        size = self._spec.cameras[0].width
        return Observation(
            images={name: scene.render(CAMERAS[name], size) for name in names},
            state_S=state_S,
            instruction=self._tasks[scene.task].instruction,
            time_s=float(scene.data.time),
            privileged=privileged,
        )

    def snapshot(self) -> bytes:
        scene = self._started()
        header = {"suite": self.suite, "task": scene.task, "scene_seed": self._built_with, "steps": self._steps}
        header |= scene.flags()
        arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **scene.arrays()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot of this suite, also one that another `LiberoEnv` took.

        Raises:
            CorruptFileError: damaged, or a snapshot of another suite or of another version of a scene.
        """
        try:
            with np.load(io.BytesIO(snapshot), allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(arrays.pop("header").tobytes())
            suite, task, steps = header.pop("suite"), header.pop("task"), int(header.pop("steps"))
            scene_seed = int(header.pop("scene_seed"))
        except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise CorruptFileError(f"snapshot: {type(error).__name__}: {error}") from error
        if suite != self.suite or task not in self._tasks:
            raise CorruptFileError(f"snapshot is of {suite}/{task}, this env runs {self.suite}")
        self._load(task, scene_seed).resume(header, arrays)
        self._steps = steps

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
            self._scene = None

    def _started(self) -> Scene:
        if self._scene is None:
            raise ValueError("no episode: call reset first")
        return self._scene

    def _load(self, task: str, scene_seed: int) -> Scene:
        """The compiled scene of a task. Only the last one is kept: each takes several hundred megabytes."""
        if self._scene is None or (self._scene.task, self._built_with) != (task, scene_seed):
            self.close()
            self._built_with = scene_seed
            self._scene = Scene(
                env=_build(self.suite, task, self._assets, scene_seed),
                task=task,
                init_states=load_init_states(init_states_file(self.suite, task)),
                look=self._look,
            )
        return self._scene


def _build(suite: str, task: str, assets: str | None, scene_seed: int) -> Any:
    """Stock LIBERO's environment without observations and windows, as it is after `seed(scene_seed)`, `reset()`."""
    folder = find_assets(assets)
    ensure_config()
    with _quiet():
        import libero.libero as libero_package
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite.utils.errors import RandomizationError

        libero_package._assets_path_cache = str(folder)  # what its loaders ask for first; nothing is written
        random_state = np.random.get_state()
        np.random.seed(scene_seed)
        try:
            env = None
            while env is None:
                with contextlib.suppress(RandomizationError):  # as LIBERO's own reset: draw again
                    env = ControlEnv(
                        bddl_file_name=str(bddl_file(suite, task)),
                        use_camera_obs=False,
                        has_offscreen_renderer=False,
                        ignore_done=True,
                    ).env
        except (FileNotFoundError, ValueError) as error:  # an MJCF, mesh or texture that is not there
            raise MissingAssetError(f"LIBERO task {task} cannot be built from assets in {folder}: {error}") from error
        finally:
            np.random.set_state(random_state)
    env.sim.forward()
    env.visualize(vis_settings=dict.fromkeys(env._visualizations, False))
    return env


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without robosuite's advice about its private macro file, and without LIBERO's prints."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # in robosuite's sources
            yield
    finally:
        logging.disable(before)
