"""Push-T (Chi et al. 2023, arXiv 2303.04137) behind our `Env`; the only door to gym_pusht.

A disc in the plane pushes a T-shaped block onto a drawn outline, at 10 Hz. Initial state n is gym-pusht's own
`reset(seed=n)`. The state is the disc's place, as in the published datasets; the block's pose is privileged.

What is special: the physics engine (pymunk) keeps contact forces that cannot be read out whole, so a snapshot holds the
actions since the reset and `restore` plays them again: exact to the bit, a few milliseconds a step.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sim.snapshots import pack, unpack
from vla.core.errors import CorruptFileError, MissingAssetError, unknown_name
from vla.core.protocols import Task
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Observation, Step

INSTALL = "pip install 'graspline[suites]'"
NUM_INIT_STATES = 50
CONTROL_HZ = 10.0
SIDE_PX = 512.0  # of the square in which everything happens


def pusht_spec(image_size: int) -> Embodiment:
    """The disc: where it is, and where it is told to go [pixels of the 512 x 512 square, y downwards]."""
    return Embodiment(
        name="pusht",
        state=tuple(Axis(name=f"disc_{axis}", unit="px", low=0.0, high=SIDE_PX) for axis in "xy"),
        action=tuple(Axis(name=f"target_{axis}", unit="px", low=0.0, high=SIDE_PX) for axis in "xy"),
        cameras=(Camera(name="top", height=image_size, width=image_size),),
        control_hz=CONTROL_HZ,
    )


class PushTEnv:
    """The one task of the suite, `push_t`.

    Args:
        image_size: height and width of the picture [px]; 96 is published.
        train_states: how many of the 50 initial states, counted from 0, may be used in training.
        extra_states: further placements for demonstrations, numbered from 50 on.
        horizon: control steps after which an episode is truncated.
    """

    def __init__(
        self, *, image_size: int = 96, train_states: int = 30, extra_states: int = 1_000_000, horizon: int = 300
    ) -> None:
        self._spec = pusht_spec(image_size)
        task = Task(
            name="push_t",
            instruction="push the T-shaped block onto the T-shaped outline",
            horizon=horizon,
            num_init_states=NUM_INIT_STATES,
            num_train_states=train_states,
            num_extra_states=extra_states,
        )
        self._tasks = {task.name: task}
        self._scene: Any = None
        self._init_state: int | None = None

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
            MissingAssetError: gym-pusht is not installed.
        """
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        last = NUM_INIT_STATES + self._tasks[task].num_extra_states - 1
        if not 0 <= init_state <= last:
            raise ValueError(f"init_state is {init_state}, expected 0 to {last}")
        if self._scene is None:
            self._scene = _build(self._spec.cameras[0].width)
        self._scene.reset(seed=init_state)
        self._init_state = init_state
        self._played: list[np.ndarray] = []
        self._coverage = float(self._scene._get_coverage())

    def step(self, action_A: np.ndarray) -> Step:
        task = self._running()
        executed_A = self._spec.clip(action_A)
        _, _, success, _, info = self._scene.step(executed_A)
        self._coverage = float(info["coverage"])
        self._played.append(executed_A.copy())
        truncated = not success and len(self._played) >= task.horizon
        return Step(executed_A=executed_A, terminated=bool(success), truncated=truncated, success=bool(success))

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation.

        privileged: `block` and `goal` (3,) x [px], y [px], angle [rad]; `disc_velocity` (2,) [px/s]; `coverage` () of
        the outline by the block, 0 to 1 (success: above 0.95).
        """
        task, scene = self._running(), self._scene
        names = self._spec.camera_names if cameras is None else cameras
        for name in names:
            if name not in self._spec.camera_names:
                raise unknown_name("camera", name, self._spec.camera_names)
        return Observation(
            images={name: np.ascontiguousarray(scene._render()) for name in names},
            state_S=np.array(scene.agent.position, np.float32),
            instruction=task.instruction,
            time_s=len(self._played) / CONTROL_HZ,
            privileged={
                "block": np.array([*scene.block.position, scene.block.angle]),
                "goal": np.array(scene.goal_pose),
                "disc_velocity": np.array(scene.agent.velocity),
                "coverage": np.array(self._coverage),
            },
        )

    def snapshot(self) -> bytes:
        self._running()
        played_TA = np.array(self._played, np.float32).reshape(-1, self._spec.action_dim)
        return pack({"suite": "pusht", "init_state": self._init_state}, {"played_TA": played_TA})

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot, also one that another `PushTEnv` took. Raises CorruptFileError."""
        header, arrays = unpack(snapshot, "pusht")
        played_TA = arrays.get("played_TA")
        if played_TA is None or played_TA.shape[1:] != (self._spec.action_dim,):
            raise CorruptFileError("snapshot of suite 'pusht' without its actions")
        self.reset(next(iter(self._tasks)), header["init_state"], 0)
        for action_A in played_TA:
            self.step(action_A)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.close()
        self._scene = self._init_state = None

    def _running(self) -> Task:
        if self._init_state is None:
            raise ValueError("no episode is running: call reset first")
        return next(iter(self._tasks.values()))


def _build(image_size: int) -> Any:
    """gym-pusht's environment; it draws without a window."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs import PushTEnv as Published
    except ImportError as error:
        raise MissingAssetError(f"Push-T is not installed ({error}): {INSTALL}") from error
    return Published(obs_type="state", observation_width=image_size, observation_height=image_size)
