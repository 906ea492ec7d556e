"""Universal Robots through `ur-rtde`: states by RTDE, setpoints by servoj in the program that ur-rtde uploads.

Special: `connect` reads only. `enable` uploads the program and arms its watchdog: when no setpoint comes for 200 ms the
controller ends the program and brakes by itself. A protective stop is a fault here, and nothing unlocks it but an
operator's reset, which uploads the program anew. ur-rtde reconnects by itself when a line breaks; it is asked first
whether the line is there, so that it never gets to.

    pip install ur-rtde
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import numpy as np

from real_robot.core.arms_ur import ur5e_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.types import ArmSpec, ArmState, Array, Clock, JointCommand, StopKind
from real_robot.drivers.errors import BusError, EnableError
from real_robot.errors import LinkLost
from vla.core.errors import MissingAssetError

LOOKAHEAD_S, GAIN = 0.05, 500.0  # of servoj: 0.03 to 0.2 s, 100 to 2000
WATCHDOG_HZ = 5.0
BRAKE_RAD_S2 = 10.0
HELD_RAD, HELD_S = np.radians(1.0), 0.2
SILENT_S = 0.05
UNLOCK_S = 0.5
RUNNING = 7  # robot_mode
NORMAL_BITS = 0x3  # of safety_status_bits: normal, reduced
BITS = {
    0x4: "protective stop",
    0x8: "recovery mode",
    0x10: "safeguard stop",
    0x20: "system emergency stop",
    0x40: "robot emergency stop",
    0x80: "emergency stop",
    0x100: "safety violation",
    0x200: "safety fault",
    0x400: "stopped for safety",
}
VARIABLES = [
    *("timestamp", "actual_q", "actual_qd", "actual_current", "joint_temperatures", "actual_joint_voltage"),
    *("robot_mode", "safety_status_bits", "robot_status_bits", "runtime_state"),
]


def ur5e(*, host: str, clock: Clock | None = None, normal_speed: bool = False, control_hz: float = 125.0) -> "UrArm":
    """UR5e at `host`, powered, brakes released, in remote control."""
    return UrArm(ur5e_spec(normal_speed=normal_speed, control_hz=control_hz), host=host, clock=clock or RealClock())


class UrArm:
    """See the module; satisfies `core.types.Arm`.

    Args:
        spec: six joints.
        host: address of the controller.
        clock: the daemon's; real.
    """

    def __init__(self, spec: ArmSpec, *, host: str, clock: Clock) -> None:
        self._spec, self._host, self._clock = spec, host, clock
        self._receive: Any = None
        self._control: Any = None
        self._seen: tuple[float, float] | None = None  # the controller's time [s] and ours when it last went on
        self._refused = ""  # why a setpoint was not taken

    @property
    def spec(self) -> ArmSpec:
        return self._spec

    def connect(self) -> None:
        """Begins to receive states. Raises LinkLost."""
        self.disconnect()
        try:
            receiver = _module("rtde_receive")
            self._receive = receiver.RTDEReceiveInterface(self._host, self._spec.control_hz, VARIABLES)
        except RuntimeError as error:
            raise LinkLost(f"{self._spec.name} at {self._host}: {error}") from error
        self._seen, self._refused = None, ""

    def enable(self) -> None:
        """Uploads the control program and holds where the arm stands. Raises EnableError."""
        state = self.read()
        if not state.torque_on_J.all() or state.status_J.any():
            raise EnableError(f"{self._spec.name} is not ready: {self._trouble() or 'power it on, release the brakes'}")
        try:
            if self._control is None:
                controller = _module("rtde_control")
                self._control = controller.RTDEControlInterface(self._host, self._spec.control_hz)
            elif not self._control.isProgramRunning():
                self._control.reuploadScript()
            self._control.setWatchdog(WATCHDOG_HZ)
        except RuntimeError as error:
            raise EnableError(f"{self._spec.name}: the control program does not start ({error})") from error
        self._refused = ""
        due_s = self._clock.now()
        while due_s < state.time_s + HELD_S:  # the watchdog wants to hear us
            self._stand_at(state.q_J)
            due_s = max(due_s, self._clock.now()) + self._spec.dt_s
            self._clock.sleep_until(due_s)
        moved_J = np.abs(self.read().q_J - state.q_J)
        if moved_J.max() > HELD_RAD or self._refused:
            self.stop(StopKind.RELEASE)
            raise EnableError(f"{self._spec.name} moved by {np.degrees(moved_J.max()):.1f} degrees. {self._refused}")

    def read(self) -> ArmState:
        """The controller's last state; there is no echo of servoj's goal."""
        now_s, receive = self._clock.now(), self._open()
        if not receive.isConnected():
            raise LinkLost(f"{self._spec.name} at {self._host}: the connection is gone")
        theirs_s = receive.getTimestamp()
        if self._seen is None or theirs_s != self._seen[0]:
            self._seen = (theirs_s, now_s)
        age_s, joints = now_s - self._seen[1], len(self._spec.joints)
        bits = receive.getSafetyStatusBits()
        on = receive.getRobotMode() == RUNNING and bool(bits & NORMAL_BITS)
        unknown_J = np.full(joints, np.nan)
        return ArmState(
            time_s=now_s,
            q_J=np.array(receive.getActualQ(), np.float64),
            dq_J=np.array(receive.getActualQd(), np.float64),
            effort_J=unknown_J,
            current_J=np.array(receive.getActualCurrent(), np.float64),
            temperature_J=np.array(receive.getJointTemperatures(), np.float64),
            voltage_J=np.array(receive.getActualJointVoltage(), np.float64),
            goal_J=unknown_J,
            torque_on_J=np.full(joints, on),
            status_J=np.full(joints, bits & ~NORMAL_BITS, np.int64),
            age_J=np.full(joints, age_s if age_s > SILENT_S else 0.0),
        )

    def write(self, command: JointCommand) -> None:
        """A servoj setpoint; that it was refused is kept for `faults`."""
        if self._control is None or self._refused:
            return
        q_J = np.clip(command.q_J, self._spec.low_J, self._spec.high_J).tolist()
        try:
            if not self._control.isConnected():
                raise LinkLost(f"{self._spec.name} at {self._host}: the control connection is gone")
            if not self._control.servoJ(q_J, 0.0, 0.0, self._spec.dt_s, LOOKAHEAD_S, GAIN):
                self._refused = "the control program does not run"
        except RuntimeError as error:  # it went between the two, and ur-rtde tried to connect again
            raise LinkLost(f"{self._spec.name} at {self._host}: {error}") from error

    def stop(self, kind: StopKind) -> None:
        """HOLD brakes; RELEASE ends the program too, and the controller holds the arm or its brakes do."""
        if kind not in self._spec.stop_kinds:
            raise ValueError(f"stop '{kind}' is not one of {sorted(self._spec.stop_kinds)}")
        control = self._control
        if kind == StopKind.RELEASE:
            self._control = None
        if control is None or not control.isConnected():
            return
        try:
            control.servoStop(BRAKE_RAD_S2)
            if kind == StopKind.RELEASE:
                control.stopScript()
                control.disconnect()
        except RuntimeError as error:
            raise LinkLost(f"{self._spec.name} at {self._host}: {error}") from error

    def faults(self) -> tuple[Fault, ...]:
        """Stops of the controller, and a control program that ended."""
        now_s = self._clock.now()
        trouble = self._trouble()
        found = [fault(FaultCode.DEVICE, trouble, now_s)] if trouble else []
        if self._refused and not trouble:
            found.append(fault(FaultCode.DEVICE, self._refused, now_s))
        return tuple(found)

    def clear(self) -> None:
        """Unlocks a protective stop and uploads the program again if there was one. Raises BusError."""
        if self._control is None:
            return
        if self._trouble():
            dashboard = _module("dashboard_client").DashboardClient(self._host)
            dashboard.connect()
            dashboard.unlockProtectiveStop()
            dashboard.disconnect()
            self._clock.sleep_until(self._clock.now() + UNLOCK_S)
        if trouble := self._trouble():
            raise BusError(f"{self._spec.name} stays in: {trouble}")
        if not self._control.isProgramRunning():
            self._control.reuploadScript()
            self._clock.sleep_until(self._clock.now() + UNLOCK_S)
            self._control.setWatchdog(WATCHDOG_HZ)
        self._refused = ""
        self._stand_at(self.read().q_J)

    def disconnect(self) -> None:
        """Ends the program and lets go."""
        if self._receive is None:
            return
        self.stop(StopKind.RELEASE)
        self._receive.disconnect()
        self._receive = self._control = None

    def _stand_at(self, q_J: Array) -> None:
        self.write(JointCommand(time_s=self._clock.now(), q_J=q_J, dq_J=np.zeros_like(q_J)))

    def _trouble(self) -> str:
        bits = self._open().getSafetyStatusBits()
        return ", ".join(text for bit, text in BITS.items() if bits & bit)

    def _open(self) -> Any:
        if self._receive is None:
            raise BusError(f"{self._spec.name} is not connected")
        return self._receive


def _module(name: str) -> ModuleType:
    """Raises MissingAssetError without the package."""
    if importlib.util.find_spec(name) is None:
        raise MissingAssetError("arms of Universal Robots are driven by the package 'ur-rtde': pip install ur-rtde")
    return importlib.import_module(name)
