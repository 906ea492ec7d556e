"""A tiny numpy suite: a point mass that reaches a coloured target and closes its gripper. For fast tests everywhere.

Special: no physics engine and no OpenGL, two cameras drawn in numpy (0.25 ms a picture), and yet the shape of the real
suites: 7-D actions with a binary gripper, fixed initial states, a held-out range, exact snapshots.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vla.core.errors import CorruptFileError, MissingAssetError, unknown_name
from vla.core.protocols import Task
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import ActionChunk, Float, Image, Observation, Step

CONTROL_HZ = 20.0
SPEED_M_S = 0.2  # at full command
TABLE_M = 0.2  # the hand moves within +-TABLE_M in x and y
REACH_M = 0.025  # success: the hand this near the target, horizontally,
LOW_M = 0.06  # below this height
CLOSED_M = 0.01  # and with its fingers this far closed
OPEN_M = 0.04
COLOURS = {"red": (220, 50, 40), "green": (40, 170, 70), "blue": (50, 90, 220)}

_VIEW_M = {"agentview": 0.24, "wrist": 0.08}  # half the width of what a camera sees
_SNAPSHOT_SIZE = 11 + 3 * len(COLOURS)

FAKE = Embodiment(
    name="fake",
    state=(
        *(Axis(name=name, unit="m") for name in ("x", "y", "z")),
        *(Axis(name=name, unit="rad") for name in ("roll", "pitch", "yaw")),
        *(Axis(name=name, unit="m", low=0.0, high=OPEN_M) for name in ("finger_left", "finger_right")),
    ),
    action=(
        *(Axis(name=name, unit="1", low=-1.0, high=1.0) for name in ("x", "y", "z", "roll", "pitch", "yaw")),
        Axis(name="gripper", unit="1", low=-1.0, high=1.0, binary=True),
    ),
    cameras=(Camera(name="agentview", height=64, width=64), Camera(name="wrist", height=64, width=64)),
    control_hz=CONTROL_HZ,
)


class FakeEnv:
    """Three tasks, `reach_red`, `reach_green` and `reach_blue`, over 50 initial states.

    An initial state places the three targets; `seed` shifts the hand's start by up to 2 cm. Positive gripper closes.
    """

    def __init__(self, *, horizon: int = 40, num_train_states: int = 40) -> None:
        self._tasks = {
            f"reach_{colour}": Task(
                name=f"reach_{colour}",
                instruction=f"move to the {colour} target and close the gripper",
                horizon=horizon,
                num_init_states=50,
                num_train_states=num_train_states,
            )
            for colour in COLOURS
        }
        self._task: Task | None = None
        self._steps = 0
        self._position, self._velocity, self._rotation = np.zeros(3), np.zeros(3), np.zeros(3)
        self._finger = OPEN_M
        self._targets = np.zeros((len(COLOURS), 3))

    @property
    def spec(self) -> Embodiment:
        return FAKE

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode. Raises UnknownNameError for a task, ValueError for a state out of range."""
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        self._task = self._tasks[task]
        if not 0 <= init_state < self._task.num_init_states:
            raise ValueError(f"init_state {init_state} of task '{task}' is not in 0..{self._task.num_init_states - 1}")
        self._targets = _place_targets(np.random.default_rng([1, init_state]))
        self._position = np.array([0.0, 0.0, 0.15])
        self._position[:2] += np.random.default_rng([2, seed]).uniform(-0.02, 0.02, 2)
        self._velocity, self._rotation = np.zeros(3), np.zeros(3)
        self._finger, self._steps = OPEN_M, 0

    def step(self, action_A: np.ndarray) -> Step:
        """Moves the hand by up to 1 cm along each axis. Raises NonFiniteError on NaN, before anything moves."""
        task = self._running()
        executed_A = FAKE.clip(action_A)
        self._velocity = 0.5 * self._velocity + 0.5 * SPEED_M_S * executed_A[:3].astype(np.float64)
        low, high = np.array([-TABLE_M, -TABLE_M, 0.02]), np.array([TABLE_M, TABLE_M, 0.3])
        self._position = np.clip(self._position + self._velocity / CONTROL_HZ, low, high)
        self._rotation = self._rotation + 0.05 * executed_A[3:6]
        self._finger = float(np.clip(self._finger - np.sign(executed_A[6]) * 0.02, 0.0, OPEN_M))
        self._steps += 1
        success = self._success()
        return Step(
            executed_A=executed_A,
            terminated=success,
            truncated=not success and self._steps >= task.horizon,
            success=success,
        )

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation. Raises UnknownNameError for a camera."""
        task = self._running()
        names = FAKE.camera_names if cameras is None else cameras
        state_S = np.concatenate([self._position, self._rotation, [self._finger, self._finger]]).astype(np.float32)
        return Observation(
            images={name: self._draw(name) for name in names},
            state_S=state_S,
            instruction=task.instruction,
            time_s=self._steps / CONTROL_HZ,
            privileged={"target": self._target().copy(), "hand": self._position.copy()},
        )

    def snapshot(self) -> bytes:
        """Everything that `restore` needs to continue bit for bit, within the same task."""
        scalars = [self._finger, float(self._steps)]
        numbers = [self._position, self._velocity, self._rotation, scalars, self._targets.ravel()]
        return np.concatenate(numbers).astype("<f8").tobytes()

    def restore(self, snapshot: bytes) -> None:
        if len(snapshot) != 8 * _SNAPSHOT_SIZE:
            raise CorruptFileError(f"snapshot: {len(snapshot)} bytes, expected {8 * _SNAPSHOT_SIZE}")
        numbers = np.frombuffer(snapshot, "<f8").copy()
        self._position, self._velocity, self._rotation = numbers[0:3], numbers[3:6], numbers[6:9]
        self._finger, self._steps = float(numbers[9]), int(numbers[10])
        self._targets = numbers[11:].reshape(len(COLOURS), 3)

    def close(self) -> None:
        self._task = None

    def _running(self) -> Task:
        if self._task is None:
            raise ValueError("no episode is running: call reset first")
        return self._task

    def _target(self) -> np.ndarray:
        return self._targets[list(self._tasks).index(self._running().name)]

    def _success(self) -> bool:
        near = np.linalg.norm(self._position[:2] - self._target()[:2]) < REACH_M
        return bool(near and self._position[2] < LOW_M and self._finger < CLOSED_M)

    def _draw(self, camera: str) -> Image:
        """Top view of the whole table, or of what is under the hand: targets as discs, the hand as a ring."""
        if camera not in _VIEW_M:
            raise unknown_name("camera", camera, _VIEW_M)
        size = next(c.height for c in FAKE.cameras if c.name == camera)
        centre = np.zeros(2) if camera == "agentview" else self._position[:2]
        across = np.linspace(-_VIEW_M[camera], _VIEW_M[camera], size)
        x, y = np.meshgrid(centre[0] + across, centre[1] - across)
        image = np.full((size, size, 3), (236, 232, 224), np.uint8)
        image[(np.abs(x) > TABLE_M) | (np.abs(y) > TABLE_M)] = (150, 150, 155)
        for target, colour in zip(self._targets, COLOURS.values(), strict=True):
            image[np.hypot(x - target[0], y - target[1]) < REACH_M] = colour
        distance = np.hypot(x - self._position[0], y - self._position[1])
        hollow = 0.3 * self._finger  # the ring fills as the fingers close
        ring = (distance < 0.012 + 0.08 * (self._position[2] - 0.02)) & (distance >= hollow)
        image[ring] = (45, 45, 50)
        return image


class FakeExpert:
    """Solves FakeEnv from privileged state: goes above the target and down, then closes. Horizon 1, no cameras."""

    horizon = 1
    cameras: tuple[str, ...] = ()

    def __init__(self, *, spec: Embodiment = FAKE) -> None:
        self.spec = spec

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return [
            ActionChunk(actions_HA=_towards_target(each)[None], start_s=each.time_s, dt_s=FAKE.dt_s)
            for each in observations
        ]


class FaultyEnv(FakeEnv):
    """Breaks on purpose, for the tests of whoever must survive it.

    Args:
        faults: {init_state: what happens there}. `missing`: reset raises MissingAssetError; `raise`: the third step
            raises RuntimeError; `kill`: the third step kills the process; `hang`: the third step takes 3 seconds.
    """

    def __init__(
        self,
        *,
        faults: Mapping[int, Literal["missing", "raise", "kill", "hang"]],
        horizon: int = 40,
        num_train_states: int = 40,
    ) -> None:
        super().__init__(horizon=horizon, num_train_states=num_train_states)
        self._faults = faults
        self._fault: str | None = None

    def reset(self, task: str, init_state: int, seed: int) -> None:
        super().reset(task, init_state, seed)
        self._fault = self._faults.get(init_state)
        if self._fault == "missing":
            raise MissingAssetError("no OpenGL: install libegl1")

    def step(self, action_A: np.ndarray) -> Step:
        step = super().step(action_A)
        if self._steps == 3 and self._fault == "raise":
            raise RuntimeError("the physics exploded")
        if self._steps == 3 and self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._steps == 3 and self._fault == "hang":
            time.sleep(3)
        return step


def _towards_target(observation: Observation) -> Float:
    offset = observation.privileged["target"] - observation.privileged["hand"]
    action_A = np.zeros(FAKE.action_dim, np.float32)
    action_A[:3] = np.clip(offset / 0.02, -1.0, 1.0)
    there = np.hypot(offset[0], offset[1]) < 0.6 * REACH_M and -offset[2] < 0.5 * LOW_M
    action_A[6] = 1.0 if there else -1.0
    return action_A


def _place_targets(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) positions [m] on the table, at least 10 cm apart and 6 cm from the start."""
    while True:
        targets = np.zeros((len(COLOURS), 3))
        targets[:, :2] = rng.uniform(-0.16, 0.16, (len(COLOURS), 2))
        targets[:, 2] = 0.02
        apart = [np.linalg.norm(targets[i] - targets[j]) for i in range(len(COLOURS)) for j in range(i)]
        if min(apart) > 0.1 and np.hypot(targets[:, 0], targets[:, 1]).min() > 0.06:
            return targets
