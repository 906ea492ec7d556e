"""A cell on a virtual clock: twin, wire, driver, daemon, and a policy that can misbehave. One per case.

What is special: safe is measured at the twin, where the motors are, not where the daemon says what it wanted. After
each case the bench looks at invariants that no fault excuses: no goal outside the servos' limits, no EEPROM write
under torque, no joint faster than the servo-resident limit.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from real_robot.calibration import ArmCalibration, JointCalibration
from real_robot.core.admission import Admitted
from real_robot.core.arms import koch_spec, so101_spec
from real_robot.core.clock import VirtualClock
from real_robot.core.faults import FaultCode
from real_robot.core.filter import Scene
from real_robot.core.supervisor import State
from real_robot.core.types import ArmSpec, Array, Chunk
from real_robot.daemon import Daemon, Report, Side
from real_robot.drivers.build import koch as koch_arm
from real_robot.drivers.build import so101 as so101_arm
from real_robot.drivers.dxl_arm import DxlArm
from real_robot.drivers.sts_arm import StsArm
from real_robot.twin import registers_dxl, registers_sts
from real_robot.twin.arms import koch, so101
from real_robot.twin.dxl_bus import DxlBusTwin
from real_robot.twin.link import VirtualLink
from real_robot.twin.sts_bus import StsBusTwin

BUILT: "list[Bench]" = []  # since `inspected` last cleared it

type Device = Literal["sts", "dxl"]
type Twin = StsBusTwin | DxlBusTwin

DT_S, HORIZON, EVERY = 1.0 / 30.0, 16, 20  # of the policy; a chunk every 20 ticks
SWING = np.array([1.0, -0.8, 0.6, 0.9, -0.5])  # [rad], of the policy's slow wave
FAST_SHARE = 1.35  # of the specified speed: what the resident limit and a motor's overshoot allow
REST_RAD_S = 0.05


class CaseFailed(Exception):  # noqa: N818  (a verdict, not a program's error)
    """A case did not come out as required."""


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise CaseFailed(what)


def inspected(run: "Callable[[Device], str]", device: Device) -> str:
    """Runs a case, then looks at the invariants of every bench that it built."""
    BUILT.clear()
    detail = run(device)
    for bench in BUILT:
        bench.check_invariants()
    return detail


class Rig:
    """One arm with its twin and wire."""

    def __init__(self, device: Device, clock: VirtualClock, *, echo: bool = False, seed: int = 0) -> None:
        sts = device == "sts"
        self.twin: Twin = (so101 if sts else koch)(clock=clock.now, echo=echo, seed=seed)
        spec = so101_spec(normal_speed=True) if sts else koch_spec(normal_speed=True)
        self.link = VirtualLink(self.twin, sleep_until=clock.sleep_until)
        self.baud: int | None = None
        build = so101_arm if sts else koch_arm
        self.arm: StsArm | DxlArm = build(
            calibration=stored_calibration(self.twin, spec),
            open_port=lambda: self.link.open(baud=self.baud),
            clock=clock,
            normal_speed=True,
        )
        self.spec: ArmSpec = self.arm.spec


def stored_calibration(twin: Twin, spec: ArmSpec) -> ArmCalibration:
    """What the twin's servos hold, as a file would say it."""
    joints = {}
    for device_id, name in enumerate(spec.names, start=1):
        servo = twin.servo(device_id)
        low, high = (
            (servo.get(registers_sts.MIN_ANGLE, 2), servo.get(registers_sts.MAX_ANGLE, 2))
            if isinstance(twin, StsBusTwin)
            else (servo.get(registers_dxl.MIN_ANGLE, 4), servo.get(registers_dxl.MAX_ANGLE, 4))
        )
        joints[name] = JointCalibration(device_id=device_id, low_count=low, high_count=high)
    return ArmCalibration(arm=spec.name, joints=joints)


class Bench:
    """See the module.

    Args:
        device: of which twin.
        echo: the adapter returns what is sent.
        scene: geometry for the filter.
        seed: of the twin's random faults.
        arms: 2 for a bimanual cell.
    """

    def __init__(
        self, device: Device, *, echo: bool = False, scene: Scene | None = None, seed: int = 0, arms: int = 1
    ) -> None:
        BUILT.append(self)
        self.device: Device = device
        self.judge_speed = True  # off where a false encoder or an obstacle drives the servo's own loop
        self.clock = VirtualClock(start_s=100.0)
        self.rigs = [Rig(device, self.clock, echo=echo, seed=seed + i) for i in range(arms)]
        rig = self.rigs[0]
        self.twin, self.link, self.arm, self.spec = rig.twin, rig.link, rig.arm, rig.spec
        names = ["arm"] if arms == 1 else ["left", "right"]
        self.daemon = Daemon(
            {name: rig.arm for name, rig in zip(names, self.rigs, strict=True)},
            clock=self.clock,
            scenes=None if scene is None else {names[0]: scene},
        )
        self.side: Side = self.daemon.sides[names[0]]
        self.controller, self.supervisor = self.side.controller, self.side.controller.supervisor
        self.step: Callable[[], object] = self.daemon.tick  # or that of a session around it
        self.reports: list[Report] = []
        self.daemon.subscribe(lambda report: self.reports.append(report) if report.arm == names[0] else None)
        self.token, self.session, self.seq, self.beats = "", "a", 0, True
        self._due_s = self.clock.now()
        self._began_s = 0.0
        self._from_J = np.zeros(len(self.spec.joints))

    # state

    @property
    def now(self) -> float:
        return self.clock.now()

    @property
    def state(self) -> State:
        return self.side.state

    @property
    def code(self) -> FaultCode | None:
        """Of the first cause."""
        return self.supervisor.latched.first.code if self.supervisor.latched else None

    @property
    def playing(self) -> bool:
        """The policy may send: it drives, and holds the lease."""
        leases = self.daemon.leases
        led = leases.holder is not None and not leases.expired(self.now)
        return led and self.state in (State.ACTIVE, State.STARVED)

    @property
    def speeds(self) -> Array:
        """(J,) of the motors [rad/s]."""
        self.twin.advance()
        return np.array(self.twin.plant.speeds_rad_s)

    @property
    def positions(self) -> Array:
        self.twin.advance()
        return np.array(self.twin.plant.positions_rad)

    def warned(self, code: FaultCode) -> bool:
        return any(finding.code == code for finding in self.supervisor.warnings)

    # motion

    def start(self) -> "Bench":
        """Connected, torque on, holding."""
        self.daemon.connect()
        self.daemon.enable()
        self._due_s = self.now
        self.tick()
        return self

    def tick(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self._due_s = max(self._due_s + self.daemon.dt_s, self.now)
            self.clock.sleep_until(self._due_s)
            leases = self.daemon.leases
            if self.token and self.beats and leases.holder is not None and not leases.expired(self.now):
                self.daemon.heartbeat(self.token)
            self.step()

    def run(self, seconds: float, *, driven: bool = False, **changed: Any) -> None:
        """Time passes; `driven`: the policy sends a chunk every 20 ticks."""
        for tick in range(round(seconds / self.daemon.dt_s)):
            if driven and tick % EVERY == 0 and self.playing:
                self.offer(**changed)
            self.tick()

    def until(self, happened: Callable[[], bool], within_s: float, what: str, *, driven: bool = False) -> float:
        """Ticks until it has happened; returns after how long [s]. CaseFailed when it takes longer."""
        start_s = self.now
        tick = 0
        while not happened():
            expect(self.now - start_s <= within_s + 1e-9, f"{what}: not within {within_s:.2f} s (state {self.state})")
            if driven and tick % EVERY == 0 and self.playing:
                self.offer()
            self.tick()
            tick += 1
        return self.now - start_s

    def paced(self, within_s: float, happened: Callable[[], bool] | None = None, what: str = "") -> float:
        """As a driven `run`, or as `until`, in real time: for what has a clock of its own. Returns real seconds."""
        start_s, tick, passed_s = time.monotonic(), 0, 0.0
        while not (happened is not None and happened()):
            if passed_s > within_s:
                expect(happened is None, f"{what}: not within {within_s:.2f} s (state {self.state})")
                break
            if tick % EVERY == 0 and self.playing:
                self.offer()
            self.tick()
            tick += 1
            time.sleep(max(0.0, start_s + tick * self.daemon.dt_s - time.monotonic()))
            passed_s = time.monotonic() - start_s
        return passed_s

    def activate(self, session: str = "a", *, align: bool = False) -> None:
        if not self.token:
            self.token = self.daemon.lease("policy").token
        if session != self.session:
            self.seq = 0
        self.session = session
        self.daemon.activate(self.token, session, align=align)
        self.begin()

    def begin(self) -> None:
        """The wave of `chunk` starts now, where the arm is."""
        self._began_s = self.now
        self._from_J = self.controller.commanded_J

    def chunk(self, *, horizon: int = HORIZON, age_s: float = 0.0, **changed: Any) -> Chunk:
        """A slow wave between where the arm stood at `activate` and `SWING`."""
        self.seq += 1
        t_obs_s = self.now - age_s
        t_H = t_obs_s - self._began_s + DT_S * np.arange(1, horizon + 1)
        q_HN = self._from_J[:5] + 0.5 * (1 - np.cos(1.5 * t_H))[:, None] * (SWING - self._from_J[:5])
        fields = {"session": self.session, "seq": self.seq, "t_obs_s": t_obs_s, "dt_s": DT_S, "q_HN": q_HN}
        return Chunk(**fields | changed)

    def offer(self, **changed: Any) -> Admitted:
        return self.daemon.submit(self.chunk(**changed), self.token, arm=next(iter(self.daemon.sides)))

    def moving(self) -> "Bench":
        """Started, active and at speed."""
        self.start()
        self.activate()
        self.run(0.8, driven=True)
        expect(self.state == State.ACTIVE and float(np.abs(self.speeds).max()) > 0.3, "the arm does not move at first")
        return self

    # verdicts

    def faulted(self, *codes: FaultCode, within_s: float, driven: bool = True) -> float:
        """FAULT with one of these codes as the first cause, and then at rest. Returns after how long it came [s]."""
        passed_s = self.until(lambda: self.state == State.FAULT, within_s, f"FAULT {[*map(str, codes)]}", driven=driven)
        expect(self.code in codes, f"first cause is {self.code}, expected {[*map(str, codes)]}")
        self.rested(0.6)
        return passed_s

    def rested(self, within_s: float, *, but: tuple[int, ...] = ()) -> None:
        """The motors stand still, apart from those of joints `but`."""
        keep = [j for j in range(len(self.spec.joints)) if j not in but]
        self.until(lambda: float(np.abs(self.speeds[keep]).max()) < REST_RAD_S, within_s, "at rest")

    def recovered(self) -> None:
        """Reset by an operator, then driven again."""
        self.run(1.2)
        expect(self.state in (State.FAULT, State.ESTOP), f"left its latch by itself: {self.state}")
        self.daemon.reset()
        self._due_s = self.now
        if self.state == State.CONNECTED:
            self.daemon.enable()
            self._due_s = self.now
        expect(self.state == State.HOLD, f"after the reset: {self.state}")
        self.drives_again()

    def drives_again(self) -> None:
        self.tick(2)
        if self.daemon.leases.holder is None or self.daemon.leases.expired(self.now):
            self.token = ""
        self.activate(self.session + "'")
        self.run(0.4, driven=True)
        expect(self.state == State.ACTIVE, f"does not drive again: {self.state} {self.supervisor.latched or ''}")

    def bounded(self) -> None:
        """The commands so far kept speed and acceleration bounds, tick by tick where ticks were on time."""
        rows = [(report.now_s, report.tick.command) for report in self.reports]
        for i in range(2, len(rows)):
            times, commands = zip(*rows[i - 2 : i + 1])
            if any(command is None for command in commands) or times[2] - times[0] > 2.5 * self.daemon.dt_s:
                continue
            q_3J = np.array([command.q_J for command in commands if command is not None])
            v_2J = np.diff(q_3J, axis=0) / self.daemon.dt_s
            a_J = np.diff(v_2J, axis=0)[0] / self.daemon.dt_s
            expect(bool((np.abs(v_2J) <= self.spec.velocity_J + 1e-6).all()), "a command is faster than the limit")
            expect(bool((np.abs(a_J) <= self.spec.acceleration_J + 1e-4).all()), "a command accelerates too hard")

    def check_invariants(self) -> None:
        """What no fault excuses."""
        for rig in self.rigs:
            monitor = rig.twin.monitor
            shown = {violation.rule for violation in monitor.violations}
            expect(not monitor.num_violations, f"on the wire: {monitor.num_violations} x {sorted(shown)}")
            rows = zip(rig.spec.names, rig.twin.peaks.speed_rad_s, rig.spec.velocity_J, strict=True)
            for name, speed, most in rows if self.judge_speed else ():
                expect(speed <= FAST_SHARE * most, f"{name} reached {speed:.2f} rad/s, limit {most:.2f}")
