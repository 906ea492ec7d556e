"""A simulated robot behind the hardware's safety filter: limits seen on the arm are seen in simulation.

What is filtered: the axes of an action that are absolute joint positions, which is to say those in rad (or m) that
the state measures under the same name, as in `sim/aloha.py`. Grippers in shares and other axes pass as they are.
Actions that are not positions (small motions of a hand, as in LIBERO or Meta-World) have nothing that this filter
could bound, and are refused.
"""

from collections.abc import Mapping, Sequence

import msgpack
import numpy as np

from real_robot.core.braking import Stop
from real_robot.core.filter import Filter, FilterState
from real_robot.core.limiter import JointMotion
from real_robot.core.types import ArmSpec, JointSpec, Verdict
from vla.core.errors import CorruptFileError, NonFiniteError, SpecMismatchError
from vla.core.protocols import Env, Task
from vla.core.spec import Embodiment
from vla.core.types import Observation, Step


class FilteredEnv:
    """An `Env` whose joint positions pass the filter before they reach it.

    `Step.executed_A` is what the inner environment executed, and that is what the filter let through. `verdict` tells
    what the filter did in the last step.

    Args:
        env: the inner environment.
        max_velocity: of every filtered axis [rad/s or m/s].
        max_acceleration: [rad/s^2 or m/s^2].
        max_jerk: [rad/s^3 or m/s^3].
        margin: kept to the bounds of the action axes [rad or m].
    """

    def __init__(
        self,
        env: Env,
        *,
        max_velocity: float = 3.0,
        max_acceleration: float = 15.0,
        max_jerk: float = 500.0,
        margin: float = 0.0,
    ) -> None:
        self._env = env
        self._axes, self._sensed = _joint_axes(env.spec)
        actions = env.spec.action
        joints = tuple(
            JointSpec(
                name=actions[i].name,
                low=actions[i].low,
                high=actions[i].high,
                margin=margin,
                max_velocity=max_velocity,
                max_acceleration=max_acceleration,
                max_jerk=max_jerk,
                max_effort=np.inf,
            )
            for i in self._axes
        )
        self._filter = Filter(ArmSpec(name=env.spec.name, joints=joints, control_hz=env.spec.control_hz))
        self._motion: FilterState | None = None
        self.verdict = Verdict.NONE

    @property
    def spec(self) -> Embodiment:
        return self._env.spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self._env.tasks

    @property
    def filtered_axes(self) -> tuple[str, ...]:
        """Names of the action axes that the filter bounds."""
        return tuple(self.spec.action[i].name for i in self._axes)

    def reset(self, task: str, init_state: int, seed: int) -> None:
        """Starts an episode; the commanded motion begins at rest where the joints are."""
        self._env.reset(task, init_state, seed)
        self._motion = self._filter.rest(self._env.observe(()).state_S[self._sensed].astype(np.float64))
        self.verdict = Verdict.NONE

    def step(self, action_A: np.ndarray) -> Step:
        """Executes the filtered action. Raises NonFiniteError on NaN, before anything moves."""
        if self._motion is None:
            raise ValueError("no episode is running: call reset first")
        action_A = np.array(action_A, np.float32)
        if action_A.shape != (self.spec.action_dim,):
            raise SpecMismatchError(f"action has shape {action_A.shape}, expected ({self.spec.action_dim},)")
        if not np.isfinite(action_A).all():
            raise NonFiniteError("action is not finite")
        filtered = self._filter.step(self._motion, action_A[self._axes].astype(np.float64))
        action_A[self._axes] = filtered.command.q_J
        step = self._env.step(action_A)
        self._motion, self.verdict = filtered.state, filtered.command.verdict
        return step

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        return self._env.observe(cameras)

    def snapshot(self) -> bytes:
        if self._motion is None:
            raise ValueError("no episode is running: call reset first")
        joints = [[*joint[:4], list(joint.stop), joint.played] for joint in self._motion.joints]
        packed = msgpack.packb([joints, self._env.snapshot()])
        assert packed is not None
        return packed

    def restore(self, snapshot: bytes) -> None:
        """Goes back to a snapshot, with the commanded motion. Raises CorruptFileError."""
        try:
            joints, inner = msgpack.unpackb(snapshot)
            motions = tuple(
                JointMotion(p, v, a, target, Stop(*stop), played) for p, v, a, target, stop, played in joints
            )
        except (ValueError, TypeError, IndexError) as error:
            raise CorruptFileError(f"snapshot is not one of a filtered environment: {error}") from error
        if len(motions) != len(self._axes):
            raise CorruptFileError(f"snapshot has {len(motions)} joints, this environment filters {len(self._axes)}")
        self._env.restore(inner)
        self._motion = FilterState(joints=motions)

    def close(self) -> None:
        self._env.close()
        self._motion = None


def _joint_axes(spec: Embodiment) -> tuple[list[int], list[int]]:
    """Indices of the joint positions among the actions, and of the same joints in the state.

    Raises SpecMismatchError where there are none, or where one has no finite bounds.
    """
    sensed = {(axis.name, axis.unit): i for i, axis in enumerate(spec.state)}
    axes = [i for i, axis in enumerate(spec.action) if axis.unit in ("rad", "m") and (axis.name, axis.unit) in sensed]
    if not axes:
        listed = [f"{axis.name} [{axis.unit}]" for axis in spec.action]
        raise SpecMismatchError(
            f"{spec.name}: no action axis is an absolute joint position (in rad or m, measured in the state under the "
            f"same name); its actions are {listed}"
        )
    if loose := [spec.action[i].name for i in axes if not np.isfinite([spec.action[i].low, spec.action[i].high]).all()]:
        raise SpecMismatchError(f"{spec.name}: action axes {loose} have no finite bounds")
    return axes, [sensed[spec.action[i].name, spec.action[i].unit] for i in axes]
