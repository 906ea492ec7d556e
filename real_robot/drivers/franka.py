"""Franka FR3 through franky: libfranka's 1 kHz loop in a thread of its own, setpoints from ours.

Special: franky plans from wherever the arm is to a point of rest. Aimed at the command itself it would brake before
each one; so it is aimed at where the commanded motion would come to rest, q + dq |dq| / 2a, and passes q at speed dq.
If we fall silent it ends there, at rest. The arm's own reflexes stay on; only an operator's reset recovers from them.

    pip install franky-control        its simulator, the peer of the tests: pip install franky-sim
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np

from real_robot.core.arms_franka import fr3_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.types import ArmSpec, ArmState, Array, Clock, JointCommand, StopKind
from real_robot.drivers.errors import BusError, EnableError
from real_robot.errors import LinkLost
from vla.core.errors import MissingAssetError

FRANKY_ACCELERATION = 2.0  # x ours: what franky may use to end where our command does
HELD_RAD, HELD_S = np.radians(1.0), 0.2
SILENT_S = 0.05
NOT_READY, ERRORS = 0x1, 0x2  # of `status`


def fr3(
    *,
    host: str,
    clock: Clock | None = None,
    normal_speed: bool = False,
    control_hz: float = 100.0,
    realtime: bool = True,
) -> "FrankaArm":
    """FR3 at `host`, with FCI active and brakes open. realtime: insist on a kernel that can do it."""
    spec = fr3_spec(normal_speed=normal_speed, control_hz=control_hz)
    return FrankaArm(spec, host=host, clock=clock or RealClock(), realtime=realtime)


class FrankaArm:
    """See the module; satisfies `core.types.Arm`.

    Args:
        spec: seven joints.
        host: address of the arm's controller.
        clock: the daemon's; real.
        realtime: insist on a kernel that can do it.
    """

    def __init__(self, spec: ArmSpec, *, host: str, clock: Clock, realtime: bool = True) -> None:
        self._spec, self._host, self._clock, self._realtime = spec, host, clock, realtime
        self._robot: Any = None
        self._state: Any = None  # of the last reading
        self._driven = False
        self._seen: tuple[float, float] | None = None  # the controller's time [s] and ours when it last went on
        self._ended = ""  # why the last motion was broken off

    @property
    def spec(self) -> ArmSpec:
        return self._spec

    def connect(self) -> None:
        """Opens the control interface and sets the limits that franky keeps. Raises LinkLost."""
        franky = _franky()
        self.disconnect()
        config = franky.RealtimeConfig.Enforce if self._realtime else franky.RealtimeConfig.Ignore
        try:
            robot = franky.Robot(self._host, realtime_config=config)
        except franky.Exception as error:
            raise LinkLost(f"{self._spec.name} at {self._host}: {error}") from error
        joints = self._spec.joints
        robot.joint_velocity_limit.set([1.1 * joint.max_velocity for joint in joints])
        robot.joint_acceleration_limit.set([FRANKY_ACCELERATION * joint.max_acceleration for joint in joints])
        self._robot, self._state, self._driven, self._seen, self._ended = robot, None, False, None, ""

    def enable(self) -> None:
        """Takes control where the arm stands. Raises EnableError when it may not, or moves."""
        state = self.read()
        if not state.torque_on_J.all():
            raise EnableError(
                f"{self._spec.name} is not ready ({self._state.robot_mode}): brakes, FCI, the user's stop?"
            )
        self._driven = True
        self._stand_at(state.q_J)
        self._clock.sleep_until(self._clock.now() + HELD_S)
        moved_J = np.abs(self.read().q_J - state.q_J)
        if moved_J.max() > HELD_RAD or self._ended:
            self.stop(StopKind.RELEASE)
            raise EnableError(f"{self._spec.name} moved by {np.degrees(moved_J.max()):.1f} degrees; {self._ended}")

    def read(self) -> ArmState:
        """The controller's last state; goal echo, temperature, current and voltage are not told."""
        franky, now_s = _franky(), self._clock.now()
        try:
            state = self._state = self._open().state
        except franky.Exception as error:
            raise LinkLost(f"{self._spec.name}: {error}") from error
        theirs_s = state.time.to_sec()
        if self._seen is None or theirs_s != self._seen[0]:
            self._seen = (theirs_s, now_s)
        age_s = now_s - self._seen[1]
        joints = len(self._spec.joints)
        unknown_J = np.full(joints, np.nan)
        status = (NOT_READY if not self._ready(state) else 0) | (ERRORS if self._ended else 0)
        return ArmState(
            time_s=now_s,
            q_J=np.array(state.q, np.float64),
            dq_J=np.array(state.dq, np.float64),
            effort_J=np.array(state.tau_J, np.float64),
            current_J=unknown_J,
            temperature_J=unknown_J,
            voltage_J=unknown_J,
            goal_J=unknown_J,
            torque_on_J=np.full(joints, self._ready(state)),
            status_J=np.full(joints, status, np.int64),
            age_J=np.full(joints, age_s if age_s > SILENT_S else 0.0),
        )

    def write(self, command: JointCommand) -> None:
        """A new goal for franky's planner; what broke the last motion off is kept for `faults`."""
        if not self._driven or self._ended:
            return
        accelerations = FRANKY_ACCELERATION * self._spec.acceleration_J
        rest_J = command.q_J + command.dq_J * np.abs(command.dq_J) / (2.0 * accelerations)
        self._move(np.clip(rest_J, self._spec.low_J, self._spec.high_J))

    def stop(self, kind: StopKind) -> None:
        """HOLD ends the motion within the limits; RELEASE gives control back, and the arm's own controller holds it."""
        if kind not in self._spec.stop_kinds:
            raise ValueError(f"stop '{kind}' is not one of {sorted(self._spec.stop_kinds)}")
        franky = _franky()
        try:
            if kind == StopKind.HOLD:
                self._open().move(franky.JointStopMotion(), asynchronous=True)
            else:
                self._driven = False
                self._open().stop()
        except (franky.Exception, RuntimeError) as error:  # the planner's own errors are plain
            self._ended = str(error)

    def faults(self) -> tuple[Fault, ...]:
        """Reflexes, the user's stop, and motions that were broken off."""
        now_s, found = self._clock.now(), []
        if self._state is not None and not self._ready(self._state):
            found.append(fault(FaultCode.DEVICE, f"{self._state.robot_mode}: {self._state.current_errors}", now_s))
        if self._driven and not self._open().is_in_control and not self._ended:
            self._collect()
        if self._ended:
            found.append(fault(FaultCode.DEVICE, self._ended, now_s))
        return tuple(found)

    def clear(self) -> None:
        """Recovers from reflexes; takes control again where the arm stands if it had it. Raises BusError."""
        franky = _franky()
        self._collect()
        try:
            self._open().recover_from_errors()
        except franky.Exception as error:
            raise BusError(f"{self._spec.name} does not recover: {error}") from error
        self._ended = ""
        if self._driven:
            self._stand_at(self.read().q_J)

    def disconnect(self) -> None:
        """Ends the motion and lets go."""
        if self._robot is None:
            return
        self.stop(StopKind.RELEASE)
        self._collect()
        self._robot = None

    def _stand_at(self, q_J: Array) -> None:
        self.write(JointCommand(time_s=self._clock.now(), q_J=q_J, dq_J=np.zeros_like(q_J)))

    def _move(self, q_J: Array) -> None:
        franky = _franky()
        try:
            self._open().move(franky.JointMotion(q_J.tolist()), asynchronous=True)
        except franky.NetworkException as error:
            raise LinkLost(f"{self._spec.name}: {error}") from error
        except (franky.Exception, RuntimeError) as error:  # the planner's own errors are plain
            self._ended = str(error)

    def _collect(self) -> None:
        """Waits for a motion that has ended, for what ended it."""
        franky = _franky()
        try:
            self._open().join_motion(timeout=1.0)
        except (franky.Exception, RuntimeError) as error:  # the planner's own errors are plain
            self._ended = str(error)

    def _open(self) -> Any:
        if self._robot is None:
            raise BusError(f"{self._spec.name} is not connected")
        return self._robot

    def _ready(self, state: Any) -> bool:
        modes = _franky().RobotMode
        return state.robot_mode in (modes.Idle, modes.Move)


def _franky() -> ModuleType:
    """Raises MissingAssetError without the package."""
    if importlib.util.find_spec("franky") is None:
        raise MissingAssetError("arms of Franka are driven by the package 'franky-control': pip install franky-control")
    return importlib.import_module("franky")
