"""An arm of ours behind lerobot's `Robot`: same keys and units as its own SO and Koch followers.

What is special: `send_action` returns what was *really* sent in the next tick, after timeline and filter, so datasets
recorded by lerobot hold it. The control loop runs at 100 Hz in a thread, with every rule of the daemon; a program that
stops calling loses its lease after 0.3 s and the arm holds. In the thread the loop shares the interpreter with what
lerobot computes: ticks come late under load, and the rules know it. After a fault or an e-stop `send_action` raises
until an operator has called `reset`.
"""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.cameras.utils import make_cameras_from_configs
from lerobot.robots.robot import Robot
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_robot_graspline.config_graspline import GrasplineArmConfig
from real_robot.calibration import ArmCalibration
from real_robot.core.admission import Refusal
from real_robot.core.clock import RealClock
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.core.types import Array
from real_robot.daemon import Daemon, Report
from real_robot.drivers import build
from real_robot.loop import run_loop
from real_robot.teleop.stream import Stream
from real_robot.units import LerobotUnits, Unit
from vla.core.errors import unknown_name

SESSION, ARM = "lerobot", "arm"
TICK_PATIENCE_S = 0.1
_PASSING = (Refusal.STATE, Refusal.TIME, Refusal.OVERDUE, Refusal.SEQUENCE)  # true for one tick, not the sender's fault
logger = logging.getLogger(__name__)


class GrasplineArm(Robot):
    """See the module."""

    config_class = GrasplineArmConfig
    name = "graspline_arm"

    def __init__(self, config: GrasplineArmConfig) -> None:
        super().__init__(config)
        self.config = config
        calibration = ArmCalibration.load(Path(config.calibration))
        self._clock = RealClock()
        make = build.so101 if config.arm == "so101" else build.koch
        self.arm = make(calibration=calibration, port=config.port, clock=self._clock, normal_speed=config.normal_speed)
        body = Unit.DEGREES if config.use_degrees else Unit.PLUS_MINUS_100
        units = {name: Unit.PERCENT if name == "gripper" else body for name in calibration.joints}
        self._units = LerobotUnits(calibration, units, apply_drive_mode=config.arm == "so101")
        self._stream = Stream(self.arm.spec, SESSION)
        self.cameras = make_cameras_from_configs(config.cameras)
        self.daemon: Daemon | None = None
        self._thread: threading.Thread | None = None
        self._ticked = threading.Condition()
        self._report: Report | None = None
        self._token = ""

    @property
    def action_features(self) -> dict[str, type]:
        return {f"{name}.pos": float for name in self._units.names}

    @property
    def observation_features(self) -> dict[str, Any]:
        shapes = {name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}
        return {**self.action_features, **shapes}

    @property
    def is_connected(self) -> bool:
        return self.daemon is not None and self.daemon.sides[ARM].linked

    @property
    def is_calibrated(self) -> bool:
        """Always: there is no arm without a calibration file, and `connect` compares it with the servos."""
        return True

    def calibrate(self) -> None:
        """Not here: `python -m scripts.robot calibrate`."""

    def configure(self) -> None:
        """Nothing: the driver wrote its limits when it connected."""

    def connect(self, calibrate: bool = True) -> None:
        """Opens the arm, checks servos and calibration, torque on without a jump."""
        if self.daemon is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected")
        daemon = Daemon({ARM: self.arm}, clock=self._clock)
        daemon.connect()
        try:
            daemon.enable()
            for camera in self.cameras.values():
                camera.connect()
        except BaseException:
            daemon.shutdown("connect failed")
            raise
        daemon.subscribe(self._listen)
        self.daemon = daemon
        self._thread = threading.Thread(target=self._run, args=(daemon,), name=SESSION, daemon=True)
        self._thread.start()

    def get_observation(self) -> dict[str, Any]:
        report = self._next_report()
        self._beat()
        values = self._units.from_rad(report.state.q_J).tolist()
        images = {name: camera.read_latest() for name, camera in self.cameras.items()}
        return {**{f"{name}.pos": value for name, value in zip(self._units.names, values)}, **images}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Asks for positions; returns those that the servos were told, limited by whatever limited them.

        Raises RefusedError for garbage, in a fault, and for a first action that is far away while `align` is off.
        """
        report = self._next_report()
        target_J = self._target(action, self._sent(report))
        self._take_over()
        chunk = self._stream.send(target_J, self._clock.now())
        if chunk is not None:
            admitted = self._daemon().submit(chunk, self._token)
            aligning = admitted.refusal == Refusal.ALIGNMENT and self.config.align
            if admitted.chunk is None:
                self._stream.reset()  # its speed would be taken from an action that was not played
            if admitted.chunk is None and not aligning and admitted.refusal not in _PASSING:
                raise RefusedError(f"action refused ({admitted.refusal}): {admitted.detail}")
        values = self._units.from_rad(self._sent(self._next_report())).tolist()
        return {f"{name}.pos": value for name, value in zip(self._units.names, values)}

    def reset(self) -> None:
        """An operator's act after a fault or an e-stop."""
        self._daemon().reset()

    def disconnect(self) -> None:
        """Controlled stop, torque off, port closed. Raises GrasplineError with all that went wrong on the way."""
        daemon, thread = self._daemon(), self._thread
        daemon.ending = "disconnect"
        if thread is not None:
            thread.join()
        self.daemon = self._thread = self._report = None
        try:
            daemon.shutdown("disconnect")
        finally:
            for camera in self.cameras.values():
                camera.disconnect()

    # inside

    def _run(self, daemon: Daemon) -> None:
        done = False
        try:
            run_loop(daemon.tick, daemon.clock, daemon.dt_s, lambda: not daemon.ending, daemon.lateness)
            done = True
        finally:
            if not done:
                logger.error("the control loop ended; the arm is switched off")
                daemon.shutdown("unhandled exception")

    def _listen(self, report: Report) -> None:
        with self._ticked:
            self._report = report
            self._ticked.notify_all()

    def _next_report(self) -> Report:
        """That of a tick which begins from now on."""
        self._daemon()
        asked_s = self._clock.now()
        with self._ticked:
            self._ticked.wait_for(lambda: self._report is not None and self._report.now_s >= asked_s, TICK_PATIENCE_S)
            report = self._report
        if report is None or report.now_s < asked_s - TICK_PATIENCE_S:
            raise DeviceNotConnectedError(f"{self}: no reading; {self._daemon().state()[ARM]}")
        return report

    def _sent(self, report: Report) -> Array:
        return report.state.q_J if report.tick.command is None else report.tick.command.q_J

    def _target(self, action: dict[str, Any], sent_J: Array) -> Array:
        names = self._units.names
        for key in action:
            if key not in self.action_features:
                raise unknown_name("action", key, self.action_features)
        values_J = self._units.from_rad(sent_J)
        values_J = np.array([float(action.get(f"{name}.pos", values_J[j])) for j, name in enumerate(names)])
        return self._units.to_rad(values_J)

    def _beat(self) -> None:
        daemon = self._daemon()
        if daemon.leases.holder is not None and not daemon.leases.expired(self._clock.now()) and self._token:
            daemon.heartbeat(self._token)

    def _take_over(self) -> None:
        """Holds the lease and drives; goes on by itself after a pause, never after a fault or an e-stop."""
        daemon = self._daemon()
        side = daemon.sides[ARM]
        if side.state in (State.FAULT, State.ESTOP):
            raise RefusedError(f"{self}: {daemon.state()[ARM].latched}; an operator has to call reset()")
        if daemon.leases.holder is None or daemon.leases.expired(self._clock.now()):
            self._token = daemon.lease(SESSION).token
        self._beat()
        if side.state in (State.HOLD, State.PAUSED) and side.controller.at_rest:
            self._stream.reset()
            daemon.activate(self._token, SESSION, align=self.config.align)

    def _daemon(self) -> Daemon:
        if self.daemon is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        return self.daemon
