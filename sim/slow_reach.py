"""A point on a table that must reach a goal and stay there; the shortest time is known in closed form.

For offline reinforcement learning whose gain can be checked: whoever imitates slow demonstrations stays slow, whoever
learns values can be faster, and `optimal_steps` says how fast at best. Numpy alone, 20 us a step. What is left to the
goal is part of the state, so no picture is needed to act; the one camera is there because every suite has one.

Per axis p' = p + STEP_M a, with a in [-1, 1]. An episode succeeds at the HOLD-th step in a row after which the point is
within REACH_M of the goal on both axes. REACH_M < STEP_M: whoever does not slow down in time runs over it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vla.core.errors import CorruptFileError, unknown_name
from vla.core.protocols import Task
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import ActionChunk, Image, Observation, Step

CONTROL_HZ = 20.0
STEP_M = 0.02  # in one control step at full command, each axis
TABLE_M = 0.2  # the point moves within +-TABLE_M
REACH_M = 0.018
HOLD = 3
NUM_INIT_STATES, NUM_TRAIN_STATES, NUM_EXTRA_STATES = 50, 30, 1_000_000
NAME, INSTRUCTION = "reach", "move to the goal and stay there"

_SNAPSHOT_SIZE = 6

SLOW_REACH = Embodiment(
    name="slow_reach",
    state=(
        *(Axis(name=name, unit="m", low=-TABLE_M, high=TABLE_M) for name in ("x", "y")),
        *(Axis(name=name, unit="m", low=-2 * TABLE_M, high=2 * TABLE_M) for name in ("to_goal_x", "to_goal_y")),
        Axis(name="held", unit="steps", low=0, high=HOLD),
    ),
    action=tuple(Axis(name=name, unit=f"{STEP_M * CONTROL_HZ:g} m/s", low=-1, high=1) for name in ("vx", "vy")),
    cameras=(Camera(name="top", height=32, width=32),),
    control_hz=CONTROL_HZ,
)


def optimal_steps(start_2: np.ndarray, goal_2: np.ndarray, speed: float = 1.0) -> int:
    """The fewest control steps to success without ever commanding more than `speed`, from outside the goal.

    Each axis is on its own, so the farther one decides: n steps cover n speed STEP_M, and the goal's near edge is
    REACH_M closer than its centre. The step that arrives is the first of the HOLD that count.
    """
    far_m = float(np.abs(np.asarray(goal_2) - np.asarray(start_2)).max())
    return max(1, math.ceil((far_m - REACH_M) / (speed * STEP_M) - 1e-9)) + HOLD - 1


class SlowReachEnv:
    """One task, `reach`. An initial state places start and goal, at least 0.1 m apart; `seed` shifts the start by 1 cm.

    Initial states 0..49 are the suite's, of which the first `train_states` may be trained on; from 50 on there are
    `extra_states` further ones for training.
    """

    def __init__(
        self, *, horizon: int = 60, train_states: int = NUM_TRAIN_STATES, extra_states: int = NUM_EXTRA_STATES
    ) -> None:
        task = Task(
            name=NAME,
            instruction=INSTRUCTION,
            horizon=horizon,
            num_init_states=NUM_INIT_STATES,
            num_train_states=train_states,
            num_extra_states=extra_states,
        )
        self._tasks, self._task = {NAME: task}, task
        self._running = False
        self._point, self._goal = np.zeros(2), np.zeros(2)
        self._held = self._steps = 0

    @property
    def spec(self) -> Embodiment:
        return SLOW_REACH

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode. Raises UnknownNameError for a task, ValueError for a state out of range."""
        if task not in self._tasks:
            raise unknown_name("task", task, self._tasks)
        last = self._task.num_init_states + self._task.num_extra_states - 1
        if not 0 <= init_state <= last:
            raise ValueError(f"init_state {init_state} of task '{task}' is not in 0..{last}")
        self._point, self._goal = _place(np.random.default_rng([1, init_state]))
        self._point = self._point + np.random.default_rng([2, seed]).uniform(-0.01, 0.01, 2)
        self._held = self._steps = 0
        self._running = True

    def step(self, action_A: np.ndarray) -> Step:
        """Moves the point. Raises NonFiniteError on NaN, before anything moves."""
        self._check_running()
        executed_A = SLOW_REACH.clip(action_A)
        self._point = np.clip(self._point + STEP_M * executed_A.astype(np.float64), -TABLE_M, TABLE_M)
        inside = np.abs(self._point - self._goal).max() <= REACH_M + 1e-9  # rounding is not a miss
        self._held = min(self._held + 1, HOLD) if inside else 0
        self._steps += 1
        success = self._held == HOLD
        truncated = not success and self._steps >= self._task.horizon
        return Step(executed_A=executed_A, terminated=success, truncated=truncated, success=success)

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        """The present observation. Raises UnknownNameError for a camera."""
        self._check_running()
        names = SLOW_REACH.camera_names if cameras is None else cameras
        return Observation(
            images={name: self._draw(name) for name in names},
            state_S=np.array([*self._point, *(self._goal - self._point), self._held], np.float32),
            instruction=self._task.instruction,
            time_s=self._steps / CONTROL_HZ,
            privileged={"point": self._point.copy(), "goal": self._goal.copy()},
        )

    def snapshot(self) -> bytes:
        """Everything that `restore` needs to continue bit for bit."""
        numbers = [*self._point, *self._goal, self._held, self._steps]
        return np.array(numbers, "<f8").tobytes()

    def restore(self, snapshot: bytes) -> None:
        if len(snapshot) != 8 * _SNAPSHOT_SIZE:
            raise CorruptFileError(f"snapshot: {len(snapshot)} bytes, expected {8 * _SNAPSHOT_SIZE}")
        numbers = np.frombuffer(snapshot, "<f8").copy()
        self._point, self._goal = numbers[:2], numbers[2:4]
        self._held, self._steps = int(numbers[4]), int(numbers[5])
        self._running = True

    def close(self) -> None:
        self._running = False

    def _check_running(self) -> None:
        if not self._running:
            raise ValueError("no episode is running: call reset first")

    def _draw(self, camera: str) -> Image:
        """From above: the goal as a green square, the point as a dark disc."""
        if camera not in SLOW_REACH.camera_names:
            raise unknown_name("camera", camera, SLOW_REACH.camera_names)
        across = np.linspace(-TABLE_M, TABLE_M, SLOW_REACH.cameras[0].width)
        x, y = np.meshgrid(across, -across)
        image = np.full((*x.shape, 3), (236, 232, 224), np.uint8)
        image[np.maximum(np.abs(x - self._goal[0]), np.abs(y - self._goal[1])) < 2 * REACH_M] = (40, 170, 70)
        image[np.hypot(x - self._point[0], y - self._point[1]) < 1.5 * REACH_M] = (45, 45, 50)
        return image


class SlowReachExpert:
    """Straight to the goal at `speed` times the full one, with Gaussian noise on every command. Horizon 1, no cameras.

    At speed 1 without noise its episodes take `optimal_steps`.
    """

    horizon = 1
    cameras: tuple[str, ...] = ()

    def __init__(self, *, spec: Embodiment = SLOW_REACH, speed: float = 1.0, noise: float = 0.0) -> None:
        """Moves at `speed`, in (0, 1]; `noise` is the standard deviation of what is added to each axis's command."""
        if not 0 < speed <= 1 or noise < 0:
            raise ValueError(f"speed {speed} must be in (0, 1] and noise {noise} >= 0")
        self.spec, self.speed, self.noise = spec, speed, noise

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return [self._chunk(observation, seed) for observation, seed in zip(observations, seeds, strict=True)]

    def _chunk(self, observation: Observation, seed: int) -> ActionChunk:
        wanted_A = (observation.privileged["goal"] - observation.privileged["point"]) / STEP_M
        action_A = wanted_A * min(1.0, self.speed / max(float(np.abs(wanted_A).max()), 1e-12))
        if self.noise:
            action_A = action_A + self.noise * np.random.default_rng(seed).standard_normal(len(action_A))
        return ActionChunk(actions_HA=self.spec.clip(action_A)[None], start_s=observation.time_s, dt_s=self.spec.dt_s)


def _place(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Start and goal (2,) [m], at least 0.1 m apart on one axis."""
    while True:
        start_2, goal_2 = rng.uniform(-0.17, 0.17, (2, 2))
        if np.abs(goal_2 - start_2).max() > 0.1:
            return start_2, goal_2
