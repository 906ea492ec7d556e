"""Any robot of lerobot as an `Arm`, so that its joints are driven through our filter, timeline and supervisor.

Unverified by nature: lerobot's interface shows positions and takes goals, and nothing else. What it does not tell is
NaN here, so the rules that need it (goal echo, torque, temperature, error bits) see nothing. `connect` is lerobot's: SO
arms switch their torque off and on again in it, with the goal that was left in the servos. Use a driver of ours where
there is one. Bus robots (`robot.bus`) are switched off servo by servo, errors gathered; others by `disconnect`.
"""

import termios
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from real_robot.core.faults import Fault
from real_robot.core.types import ArmSpec, ArmState, Array, Clock, JointCommand, StopKind
from real_robot.drivers.errors import EnableError, TorqueOffError
from real_robot.errors import LinkLost
from real_robot.units import LerobotUnits
from vla.core.errors import SpecMismatchError

HELD_RAD = np.radians(3.0)
_RAISED = (OSError, RuntimeError, ValueError, termios.error)  # what lerobot's buses raise when something is gone


class Robot(Protocol):
    """What is used of lerobot's class of this name."""

    @property
    def is_connected(self) -> bool: ...

    def connect(self, calibrate: bool = True) -> None: ...

    def get_observation(self) -> dict[str, Any]: ...

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]: ...

    def disconnect(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _Seen:
    time_s: float
    q_J: Array


class LerobotArm:
    """See the module; satisfies `core.types.Arm`.

    Args:
        robot: of lerobot, not connected; its calibration file is its own.
        spec: its joints, named as lerobot's motors; `control_hz` no more than its bus can do.
        units: how it writes positions.
        clock: of the daemon.
    """

    def __init__(self, robot: Robot, spec: ArmSpec, units: LerobotUnits, *, clock: Clock) -> None:
        if units.names != spec.names:
            raise SpecMismatchError(f"units are for joints {units.names}, {spec.name} has {spec.names}")
        self._robot, self._spec, self._units, self._clock = robot, spec, units, clock
        self._seen: _Seen | None = None
        self._on = False

    @property
    def spec(self) -> ArmSpec:
        return self._spec

    def connect(self) -> None:
        try:
            self._robot.connect(calibrate=False)
        except _RAISED as error:
            raise self._lost("connect", error) from error
        self._seen, self._on = None, False

    def enable(self) -> None:
        """Goal := present, and a look whether it stays there; most robots of lerobot have torque since `connect`."""
        here_J = self.read().q_J
        self._on = True
        self.write(JointCommand(time_s=self._clock.now(), q_J=here_J, dq_J=np.zeros_like(here_J)))
        self._clock.sleep_until(self._clock.now() + 0.2)
        moved_J = np.abs(self.read().q_J - here_J)
        if moved_J.max() > HELD_RAD:
            self.stop(StopKind.RELEASE)
            name = self._spec.names[int(np.argmax(moved_J))]
            raise EnableError(f"{name} moved by {np.degrees(moved_J.max()):.1f} degrees; the torque is off again")

    def read(self) -> ArmState:
        try:
            seen = self._robot.get_observation()
        except _RAISED as error:
            raise self._lost("get_observation", error) from error
        now_s = self._clock.now()
        q_J = self._units.to_rad(np.array([float(seen[f"{name}.pos"]) for name in self._spec.names]))
        dq_J = np.zeros_like(q_J)
        if self._seen is not None and now_s > self._seen.time_s:
            dq_J = (q_J - self._seen.q_J) / (now_s - self._seen.time_s)
        self._seen = _Seen(time_s=now_s, q_J=q_J)
        unknown_J = np.full(len(q_J), np.nan)
        return ArmState(
            time_s=now_s,
            q_J=q_J,
            dq_J=dq_J,
            effort_J=unknown_J,
            current_J=unknown_J,
            temperature_J=unknown_J,
            voltage_J=unknown_J,
            goal_J=unknown_J,
            torque_on_J=np.full(len(q_J), self._on),
            status_J=np.zeros(len(q_J), np.int64),
            age_J=np.zeros(len(q_J)),
        )

    def write(self, command: JointCommand) -> None:
        values = self._units.from_rad(command.q_J).tolist()
        try:
            self._robot.send_action({f"{name}.pos": value for name, value in zip(self._spec.names, values)})
        except _RAISED as error:
            raise self._lost("send_action", error) from error

    def stop(self, kind: StopKind) -> None:
        """HOLD goes to where it stands; RELEASE switches off. Raises TorqueOffError."""
        if kind not in self._spec.stop_kinds:
            raise ValueError(f"stop '{kind}' is not one of {sorted(self._spec.stop_kinds)}")
        if kind == StopKind.HOLD:
            here_J = self.read().q_J
            self.write(JointCommand(time_s=self._clock.now(), q_J=here_J, dq_J=np.zeros_like(here_J)))
        else:
            self._release()

    def faults(self) -> tuple[Fault, ...]:
        """Lerobot reports none."""
        return ()

    def clear(self) -> None:
        """There is nothing to clear."""

    def disconnect(self) -> None:
        """Torque off, then lerobot's own disconnect. Raises TorqueOffError afterwards."""
        if not self._robot.is_connected:
            return
        try:
            self._release()
        finally:
            if self._robot.is_connected:
                try:
                    self._robot.disconnect()
                except _RAISED as error:
                    raise TorqueOffError(f"{self._spec.name}: lerobot's disconnect failed ({error})") from error

    def _release(self) -> None:
        self._on = False
        wrong = []
        for name, switch_off in self._switches():
            try:
                switch_off()
            except _RAISED as error:
                wrong.append(f"{name}: {error}")
        if wrong:
            raise TorqueOffError(f"torque off is not confirmed: {'; '.join(wrong)}. Every other servo is off")

    def _switches(self) -> list[tuple[str, Callable[[], None]]]:
        """What switches the torque off: each servo by itself where lerobot shows its bus, else lerobot's disconnect."""
        bus = getattr(self._robot, "bus", None)
        if bus is None:
            return [(self._spec.name, self._robot.disconnect)]
        return [(name, partial(bus.disable_torque, name, num_retry=2)) for name in self._spec.names]

    def _lost(self, what: str, error: Exception) -> LinkLost:
        return LinkLost(f"{self._spec.name}: lerobot's {what} failed ({type(error).__name__}: {error})")
