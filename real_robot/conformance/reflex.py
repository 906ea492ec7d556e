"""Case 59: an arm whose own controller stops it, and would go on as soon as somebody says so.

Franka, UR and xArm brake on contact or at their own limits, take no setpoints until they are told that the cause is
gone, and then still hold an old goal. Twice: `ReflexArm`, which does that behind the `Arm` protocol on a virtual clock,
and, where `ur-rtde` is installed, the UR driver through it against a controller on the real sockets, in real time. The
same for Franka and xArm stands beside their drivers' tests.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from real_robot.conformance.bench import DT_S, EVERY, HORIZON, Device, expect
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.clock import RealClock, VirtualClock
from real_robot.core.faults import Fault, FaultCode, fault
from real_robot.core.supervisor import State
from real_robot.core.types import Arm, ArmSpec, ArmState, Array, Chunk, Clock, JointCommand, StopKind
from real_robot.daemon import Daemon
from real_robot.drivers.ur import ur5e
from real_robot.loop import first_in_line
from vla.core.errors import GrasplineError

REFLEXES = ("joint_reflex: contact at joint 2", "protective stop C153A0", "error code 31: abnormal current")
BUSY = 5  # times: a loop that a busy machine makes late is paused, and driven again


class ReflexArm:
    """An `Arm` with brakes and a controller. It follows its goal at once; `trip` is a contact."""

    def __init__(self, spec: ArmSpec, clock: VirtualClock) -> None:
        self.spec, self._clock = spec, clock
        self.q_J = np.zeros(len(spec.joints))
        self._goal_J, self._before = self.q_J.copy(), (clock.now(), self.q_J.copy())
        self._on, self.touching, self.reflex, self.recoveries, self.ignored = False, False, "", 0, 0

    def trip(self, reflex: str) -> None:
        self.touching, self.reflex = True, reflex

    def connect(self) -> None: ...

    def enable(self) -> None:
        self._goal_J, self._on = self.q_J.copy(), True

    def read(self) -> ArmState:
        now_s, blank_J = self._clock.now(), np.full(len(self.q_J), np.nan)
        if self._on and not self.reflex:
            self.q_J = self._goal_J.copy()
        before_s, before_J = self._before
        self._before = (now_s, self.q_J.copy())
        return ArmState(
            time_s=now_s,
            q_J=self.q_J.copy(),
            dq_J=(self.q_J - before_J) / max(now_s - before_s, 1e-9),
            effort_J=blank_J,
            current_J=blank_J,
            temperature_J=blank_J,
            voltage_J=blank_J,
            goal_J=self._goal_J.copy(),
            torque_on_J=np.full(len(self.q_J), self._on),
            status_J=np.full(len(self.q_J), int(bool(self.reflex)), np.int64),
            age_J=np.zeros(len(self.q_J)),
        )

    def write(self, command: JointCommand) -> None:
        self.ignored += bool(self.reflex)
        if not self.reflex:
            self._goal_J = command.q_J.copy()

    def stop(self, kind: StopKind) -> None:
        self._on = kind == StopKind.HOLD

    def faults(self) -> tuple[Fault, ...]:
        return (fault(FaultCode.DEVICE, self.reflex, self._clock.now()),) if self.reflex else ()

    def clear(self) -> None:
        """Told that the cause is gone; it looks for itself."""
        self.recoveries += 1
        if not self.touching:
            self.reflex, self._goal_J = "", self.q_J.copy()

    def disconnect(self) -> None:
        self._on = False


class Driven:
    """A daemon of such an arm, and a policy that waves."""

    def __init__(self, arm: Arm, clock: Clock) -> None:
        self.arm, self.clock = arm, clock
        self.daemon = Daemon({"arm": arm}, clock=clock)
        self.side = self.daemon.sides["arm"]
        self.daemon.connect()
        self.daemon.enable()
        self.token, self._seq, self._tick, self._due_s = "", 0, 0, clock.now()

    @property
    def first(self) -> Fault | None:
        """What stopped the arm."""
        latched = self.side.controller.supervisor.latched
        return latched.first if latched else None

    def activate(self) -> None:
        leases = self.daemon.leases
        if leases.holder is None or leases.expired(self.clock.now()):
            self.token = self.daemon.lease("policy").token
        self.daemon.activate(self.token, "a")
        self._start_s, self._from_J, self._tick = self.clock.now(), self.side.controller.commanded_J, 0

    def chunk(self) -> Chunk:
        self._seq += 1
        t_H1 = (self.clock.now() - self._start_s + DT_S * np.arange(1, HORIZON + 1))[:, None]
        q_HN = self._from_J[self.arm.spec.arm_N] + 0.2 * (1.0 - np.cos(1.5 * t_H1))
        return Chunk(session="a", seq=self._seq, t_obs_s=self.clock.now(), dt_s=DT_S, q_HN=q_HN)

    def run(self, seconds: float) -> None:
        self._due_s = max(self._due_s, self.clock.now())
        for _ in range(round(seconds / self.daemon.dt_s)):
            leases = self.daemon.leases
            if leases.holder is not None and not leases.expired(self.clock.now()):
                self.daemon.heartbeat(self.token)
            if self._tick % EVERY == 0 and self.side.state in (State.ACTIVE, State.STARVED):
                self.daemon.submit(self.chunk(), self.token)
            self._tick += 1
            self._due_s += self.daemon.dt_s
            self.clock.sleep_until(self._due_s)
            self.daemon.tick()

    def refused(self) -> bool:
        """Whether a reset is."""
        try:
            self.daemon.reset()
        except GrasplineError:
            return True
        return False

    def still(self, at_J: Array, q_J: Array, state: State) -> None:
        moved = float(np.abs(q_J - at_J).max())
        expect(moved < 2e-3 and self.side.state == state, f"moved by {moved:.3f} rad, state {self.side.state}")


def reflex(device: Device) -> str:
    """With every vendor whose package is installed."""
    told = _own(device)
    return f"{told}; UR through ur-rtde: {_ur()}" if ur_installed() else told


def ur_installed() -> bool:
    return importlib.util.find_spec("rtde_control") is not None


def _own(device: Device) -> str:
    spec = so101_spec(normal_speed=True) if device == "sts" else koch_spec(normal_speed=True)
    for name in REFLEXES:
        clock = VirtualClock(start_s=100.0)
        arm = ReflexArm(replace(spec, brakes=True, native_watchdog=True), clock)
        driven = Driven(arm, clock)
        driven.activate()
        driven.run(0.8)
        expect(driven.side.state == State.ACTIVE and float(np.abs(arm.q_J).max()) > 0.1, "does not move at first")
        arm.trip(name)
        at_J = arm.q_J.copy()
        driven.run(driven.daemon.dt_s)
        first = driven.first
        expect(first is not None and first.code == FaultCode.DEVICE and name in first.detail, f"first cause: {first}")
        driven.run(5.0)
        expect(arm.recoveries == 0, f"{arm.recoveries} recoveries by itself")
        driven.still(at_J, arm.q_J, State.FAULT)
        expect(driven.refused(), "a reset was granted while the cause is there")
        driven.still(at_J, arm.q_J, State.FAULT)
        arm.touching = False
        driven.daemon.reset()
        driven.run(0.5)
        driven.still(at_J, arm.q_J, State.HOLD)
        driven.activate()
        driven.run(0.6)
        expect(driven.side.state == State.ACTIVE, f"does not go on: {driven.side.state}")
    return f"{len(REFLEXES)} reasons: FAULT in 1 tick, named; never cleared by itself, no motion on the reset"


class Controller:
    """The UR controller's process: a word in, what it is at out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def say(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def q_J(self) -> Array:
        return np.array(self.say("state")["q_J"])


@contextmanager
def _controller(host: str) -> Iterator[Controller]:
    command = [sys.executable, "-m", "real_robot.twin.ur_controller", host]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        expect(process.stdout.readline() == "ready\n", "the controller does not start")
        yield Controller(process)
    finally:
        process.kill()
        process.communicate()


def _ur() -> str:
    """Real time: the loop is first in line, as the daemon's is."""
    with _controller(f"127.1.{os.getpid() % 250}.1") as peer, first_in_line():
        driven = Driven(ur5e(host=f"127.1.{os.getpid() % 250}.1", normal_speed=True), RealClock())
        try:
            start_J = peer.q_J()
            for _ in range(BUSY):
                driven.activate()
                driven.run(0.8)
                if driven.side.state != State.PAUSED:
                    break
                driven.run(0.5)
            expect(driven.side.state == State.ACTIVE, f"does not drive at first: {driven.side.state} {driven.first}")
            expect(float(np.abs(peer.q_J() - start_J).max()) > 0.05, "does not move at first")
            peer.say("protective_stop")
            driven.run(0.3)
            first, at_J = driven.first, peer.q_J()
            right = first is not None and first.code == FaultCode.DEVICE and "protective stop" in first.detail
            expect(right, f"first cause: {first}")
            driven.run(1.0)
            expect(peer.say("state")["uploads"] == 1, "the program came back by itself")
            driven.still(at_J, peer.q_J(), State.FAULT)
            driven.daemon.reset()
            driven.run(0.3)
            driven.still(at_J, peer.q_J(), State.HOLD)
            peer.say("emergency_stop")
            driven.run(0.2)
            expect(driven.side.state == State.FAULT and driven.refused(), f"emergency stop: {driven.side.state}")
            return "protective stop likewise, an emergency stop is not unlocked at all"
        finally:
            driven.daemon.shutdown("the case is over")
