"""Two tasks of one scene, each of which undoes the other: a robot that practises by turns and is hardly ever reset.

An attempt begins where the last one left the things. Between attempts the arm drives home by itself, by ordinary
control steps; nothing is put back. A true reset, on a robot a person's work, comes when `reset_every` steps have passed
since the last one, or when the thing has left the table or the arm's reach; its cause is told.

Special: `success` is what holds after a step, not what once held, so a judge of pictures that lets an attempt go on can
be checked against it. What follows a true reset is a function of it and of the tasks and actions since.
Source: the alternation of RoboFuME (arXiv 2310.15145).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sim.tabletop import HAND_DOWN, NUM_EXTRA_STATES
from sim.tabletop_poses import TabletopPosesEnv
from sim.tabletop_tasks import TABLE_Z, TASKS
from vla.core.errors import GrasplineError, unknown_name
from vla.core.types import Float, Step

CAUSES = ("first", "due", "stuck")  # of true resets
REACH_M = (0.30, 0.80)  # from the arm's base, seen from above: where the hand comes down on a cube
FALLEN_M = 0.03  # below the table's top
SAFE_M = 0.12  # above the table's top: the hand travels home no lower
HOME_GAIN, HOME_TURN_GAIN = 50.0, 3.0  # action per metre and per radian of error, as the expert's
HOME_M = 0.01


class ResetFreeEnv(TabletopPosesEnv):
    """`TabletopPosesEnv` with the two tasks of `pair` alone; implements `vla.rl.reset_free.PracticeEnv`."""

    def __init__(
        self,
        *,
        pair: Sequence[str] = ("goal_push", "goal_place"),
        horizon: int = 150,
        reset_every: int = 1000,
        home_steps: int = 40,
        image_size: int = 128,
        look: str = "fast",
        train_states: int = 20,
    ) -> None:
        """Compiles nothing yet.

        Args:
            pair: two tasks that move the same thing in the same scene.
            horizon: control steps of an attempt.
            reset_every: control steps between true resets, driving home included.
            home_steps: control steps that driving home may take.
            image_size: side of the pictures [px].
            look: "fast" or "full" (see sim/render.py).
            train_states: as of TabletopEnv; the rest of the fixed ones is held out.

        Raises:
            UnknownNameError: a task that does not move one thing to one place.
            GrasplineError: tasks of two scenes or of two things, or not two tasks.
        """
        super().__init__(image_size=image_size, look=look, train_states=train_states, extra_states=NUM_EXTRA_STATES)
        for name in pair:
            if name not in self.tasks:
                raise unknown_name("task", name, self.tasks)
        things = {self._moves[name][0] for name in pair}
        if len(set(pair)) != 2 or len(things) != 1 or len({TASKS[name].things for name in pair}) != 1:
            raise GrasplineError(f"pair is {list(pair)}, expected two tasks that move one thing in one scene")
        self.tasks = {name: replace(self.tasks[name], horizon=horizon) for name in pair}
        [self._thing] = things
        self._horizon, self._reset_every, self._home_steps = horizon, reset_every, home_steps
        self._since: int | None = None  # control steps since the last true reset

    def go_on(self, task: str, init_state: int) -> tuple[str, int]:
        """Begins an attempt where the last one ended.

        Returns:
            One of CAUSES, why the scene was reset for it, or "" where it was not; and the control steps that driving
            home took.
        """
        cause, home = ("first" if self._since is None else "stuck" if self.stuck() else ""), 0
        if self._since is not None and not cause:
            home = self._drive_home()
            cause = "due" if self._since >= self._reset_every else "stuck" if self.stuck() else ""
        if cause:
            self.reset(task, init_state, 0)
        else:
            self.switch(task)
        return cause, home

    def reset(self, task: str, init_state: int, seed: int) -> None:
        if task not in self.tasks:
            raise unknown_name("task", task, self.tasks)
        super().reset(task, init_state, seed)
        self._since = 0
        self._home = self._eef_pos().copy()

    def switch(self, task: str) -> None:
        """From here on `task` is what is asked; physics is not touched."""
        if task not in self.tasks:
            raise unknown_name("task", task, self.tasks)
        self._name, self._task = task, TASKS[task]
        self._stage = self._steps = 0

    def step(self, action_A: np.ndarray) -> Step:
        self._stage = 0  # so that success is what holds now
        step = super().step(action_A)
        assert self._since is not None
        self._since += 1
        return replace(step, truncated=not step.success and self._steps >= self._horizon)

    def holds(self, task: str) -> bool:
        """Whether this task's predicate is true now."""
        [goal] = TASKS[task].goals
        return goal(self._state())

    def where(self) -> Float:
        """Position (3,) [m] of what is moved, world frame with the table's centre as origin."""
        position = self._data.xpos[self._bodies[self._thing]]
        return (position - [0, 0, TABLE_Z]).astype(np.float32)

    def stuck(self) -> bool:
        """Whether only a person can help: the thing fell, or lies where the hand does not come down."""
        x, y, z = self.where()
        base_x, base_y, _ = self._model.body("robot0_base").pos
        near, far = REACH_M
        return bool(z < -FALLEN_M or not near <= np.hypot(x - base_x, y - base_y) <= far)

    def _drive_home(self) -> int:
        """Opens the hand where it is, then rises, travels and levels it. Returns the control steps that took."""
        assert self._since is not None
        for steps in range(self._home_steps):
            here = self._eef_pos()
            turn = 0.5 * np.cross(self._data.site_xmat[self._eef].reshape(3, 3), HAND_DOWN, axis=0).sum(axis=1)
            open_ = self._gripper <= -1.0
            if np.linalg.norm(self._home - here) < HOME_M and np.linalg.norm(turn) < 0.05 and open_:
                return steps
            target = self._home.copy()
            if here[2] < TABLE_Z + SAFE_M:
                target[:2] = here[:2]
            move = HOME_GAIN * (target - here)
            move *= min(1.0, 1.0 / max(float(np.linalg.norm(move)), 1e-9))
            turn = np.clip(HOME_TURN_GAIN * turn, -0.6, 0.6)
            self._advance(np.concatenate([move, turn]) if open_ else np.zeros(6), -1.0)
            self._since += 1
        return self._home_steps
