"""UFACTORY's xArm through `xarm-python-sdk`, in servo mode (mode 1): each setpoint is gone to at once.

Special: one request a tick for positions, speeds and torques, one for errors, one for the setpoint; the SDK's report
stream (5 Hz) is not opened. The box has no watchdog in this mode: a host that falls silent leaves the arm at the last
setpoint, which the filter let through. Errors of the box are faults here, and only an operator's reset cleans them.

    pip install xarm-python-sdk
"""

import importlib
import importlib.util
from typing import Any

import numpy as np

from real_robot.core.arms_xarm import xarm6_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.types import ArmSpec, ArmState, Array, Clock, JointCommand, StopKind
from real_robot.drivers.errors import BusError, EnableError
from real_robot.errors import LinkLost
from vla.core.errors import MissingAssetError

SERVO_MODE, READY_STATE, STOP_STATE = 1, 0, 4
HELD_RAD, HELD_S = np.radians(1.0), 0.2
TIMEOUT_S = 0.1  # of a request; the SDK's own is two seconds
NOT_READY = 9  # code of a motion that the box's state does not allow
TALKING = (0, 1, 2, NOT_READY)  # codes of answers that came: none, an error, a warning, not ready


def xarm6(*, host: str, clock: Clock | None = None, normal_speed: bool = False, control_hz: float = 100.0) -> "XarmArm":
    """The xArm 6 at `host`."""
    return XarmArm(xarm6_spec(normal_speed=normal_speed, control_hz=control_hz), host=host, clock=clock or RealClock())


class XarmArm:
    """See the module; satisfies `core.types.Arm`.

    Args:
        spec: five to seven joints.
        host: address of the control box.
        clock: the daemon's; real.
    """

    def __init__(self, spec: ArmSpec, *, host: str, clock: Clock) -> None:
        self._spec, self._host, self._clock = spec, host, clock
        self._box: Any = None
        self._on = False
        self._error = 0
        self._refused = ""  # why a setpoint was not taken

    @property
    def spec(self) -> ArmSpec:
        return self._spec

    def connect(self) -> None:
        """Opens the command socket; enables nothing. Raises LinkLost."""
        self.disconnect()
        box = _api()(self._host, is_radian=True, do_not_open=True, enable_report=False, timed_comm=False)
        try:
            box.connect()
        except Exception as error:  # the SDK raises bare ones
            raise LinkLost(f"{self._spec.name} at {self._host}: {error}") from error
        box.set_timeout(TIMEOUT_S)
        self._box, self._on, self._error, self._refused = box, False, 0, ""

    def enable(self) -> None:
        """Releases the brakes and holds where the arm stands. Raises EnableError."""
        state = self.read()
        if self._error:
            raise EnableError(f"{self._spec.name} has error {self._error}: reset it first")
        self._take_control()
        self._clock.sleep_until(self._clock.now() + HELD_S)
        moved_J = np.abs(self.read().q_J - state.q_J)
        if moved_J.max() > HELD_RAD or self._refused or self._error:
            self.stop(StopKind.RELEASE)
            why = self._refused or f"error {self._error}" if self._refused or self._error else ""
            raise EnableError(f"{self._spec.name} moved by {np.degrees(moved_J.max()):.1f} degrees. {why}")

    def read(self) -> ArmState:
        """Asks for the joints and for errors. Raises LinkLost when no answer comes."""
        box, joints = self._open(), len(self._spec.joints)
        rows = self._answered(box.get_joint_states(is_radian=True, num=3))
        self._error = self._answered(box.get_err_warn_code())[0]
        unknown_J = np.full(joints, np.nan)
        return ArmState(
            time_s=self._clock.now(),
            q_J=np.array(rows[0][:joints], np.float64),
            dq_J=np.array(rows[1][:joints], np.float64),
            effort_J=np.array(rows[2][:joints], np.float64),
            current_J=unknown_J,
            temperature_J=unknown_J,
            voltage_J=unknown_J,
            goal_J=unknown_J,
            torque_on_J=np.full(joints, self._on),
            status_J=np.full(joints, self._error, np.int64),
            age_J=np.zeros(joints),
        )

    def write(self, command: JointCommand) -> None:
        """A setpoint; that it was refused is kept for `faults`. Raises LinkLost."""
        if not self._on or self._refused:
            return
        q_J = np.clip(command.q_J, self._spec.low_J, self._spec.high_J).tolist()
        code = self._open().set_servo_angle_j(q_J, is_radian=True)
        if code not in TALKING:
            raise self._lost(code)
        if code not in (0, 2):
            self._refused = f"a setpoint was refused with code {code}"

    def stop(self, kind: StopKind) -> None:
        """HOLD stays at the last setpoint; RELEASE stops and lets the brakes hold."""
        if kind not in self._spec.stop_kinds:
            raise ValueError(f"stop '{kind}' is not one of {sorted(self._spec.stop_kinds)}")
        if kind == StopKind.RELEASE and self._on:
            self._on = False
            self._open().set_state(STOP_STATE)
            self._open().motion_enable(enable=False)

    def faults(self) -> tuple[Fault, ...]:
        """The box's error, or a setpoint that it did not take."""
        now_s = self._clock.now()
        if self._error:
            return (fault(FaultCode.DEVICE, f"error {self._error} of the control box", now_s),)
        return (fault(FaultCode.DEVICE, self._refused, now_s),) if self._refused else ()

    def clear(self) -> None:
        """Cleans the error; takes control again where the arm stands if it had it. Raises BusError."""
        box = self._open()
        box.clean_error()
        box.clean_warn()
        self._refused = ""
        self.read()
        if self._error:
            raise BusError(f"{self._spec.name} stays in error {self._error}")
        if self._on:
            self._take_control()

    def disconnect(self) -> None:
        """Brakes, and lets go."""
        if self._box is None:
            return
        if self._box.connected:
            self.stop(StopKind.RELEASE)
        self._box.disconnect()
        self._box = None

    def _take_control(self) -> None:
        """Servo mode begins where the arm stands: the box forgets its goal with each change of mode or state."""
        box = self._open()
        box.motion_enable(enable=True)
        box.set_mode(SERVO_MODE)
        box.set_state(READY_STATE)
        self._on, self._refused = True, ""
        self._stand_at(self.read().q_J)

    def _stand_at(self, q_J: Array) -> None:
        self.write(JointCommand(time_s=self._clock.now(), q_J=q_J, dq_J=np.zeros_like(q_J)))

    def _answered(self, answer: tuple[int, Any]) -> Any:
        code, data = answer
        if code not in TALKING:
            raise self._lost(code)
        return data

    def _lost(self, code: int) -> LinkLost:
        return LinkLost(f"{self._spec.name} at {self._host}: no answer (code {code})")

    def _open(self) -> Any:
        if self._box is None:
            raise BusError(f"{self._spec.name} is not connected")
        return self._box


def _api() -> Any:
    """The SDK's class, without its remark at each setpoint. Raises MissingAssetError without the package."""
    if importlib.util.find_spec("xarm") is None:
        raise MissingAssetError("arms of UFACTORY are driven by the package 'xarm-python-sdk': pip install it")
    log = importlib.import_module("xarm.core.utils.log")
    log.logger.setLevel(log.logger.ERROR)
    return importlib.import_module("xarm.wrapper").XArmAPI
