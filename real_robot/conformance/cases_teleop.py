"""Cases 46 to 48: a leader arm that is lost, jumps, or is elsewhere; a person and a policy who take over at speed."""

import contextlib
from collections.abc import Callable

import numpy as np

from real_robot.conformance.bench import Bench, Device, Rig, expect
from real_robot.conformance.case import Case
from real_robot.core.supervisor import State
from real_robot.core.types import Array
from real_robot.errors import LinkLost
from real_robot.record.recorder import Driver, Recorder
from real_robot.teleop.drive import Drive
from real_robot.teleop.leader import Leader, same_names

type Path = Callable[[float], Array]
AWAY = np.array([0.5, -0.4, 0.3, 0.0, 0.0, 0.2])
RATE_HZ = 30.0


class Led:
    """A bench whose follower is led by a twin of its own kind; `hand` puts the limp leader somewhere."""

    def __init__(self, device: Device, *, relative: bool = False) -> None:
        self.bench = Bench(device)
        self.rig = Rig(device, self.bench.clock, seed=7)
        self.rig.arm.connect()
        joints = same_names(self.rig.arm.spec, self.bench.spec)
        self.leader = Leader(self.rig.arm, self.bench.spec, joints, relative=relative)
        self.bench.start()
        self.token = self.bench.daemon.lease("hand").token
        self.drive = Drive(self.bench.daemon, self.leader, token=self.token)

    @property
    def state(self) -> State:
        return self.bench.state

    def hand(self, q_J: Array) -> None:
        self.rig.twin.advance()
        plant = self.rig.twin.plant
        plant.positions_rad[:], plant.speeds_rad_s[:] = q_J.tolist(), [0.0] * len(q_J)

    def start(self, *, align: bool = False) -> "Led":
        self.leader.engage()
        self.drive.start(align=align)
        return self

    def run(self, seconds: float, path: Path | None = None) -> None:
        start_s = self.bench.now
        for _ in range(round(seconds / self.bench.daemon.dt_s)):
            if path is not None:
                self.hand(path(self.bench.now - start_s))
            self.drive.step()
            self.bench.tick()


def swing(t_s: float) -> Array:
    """(J,) of a hand that moves back and forth."""
    return 0.4 * (1.0 - np.cos(2.0 * t_s)) * np.array([1.0, -0.5, 0.5, 0.3, 0.2, 0.5])


def leader_lost(device: Device) -> str:
    for fault in ("unplugged", "silent", "jumps"):
        led = Led(device).start()
        led.run(1.0, swing)
        expect(led.state == State.ACTIVE and float(np.abs(led.bench.speeds).max()) > 0.3, "does not follow at first")
        before_J = led.bench.positions
        if fault == "unplugged":
            led.rig.link.unplug()
        elif fault == "silent":
            led.rig.twin.servo(3).silent()
        else:
            led.hand(swing(1.0) + np.array([1.2, 0.0, 0.0, 0.0, 0.0, 0.0]))
        led.run(0.2)
        reason = led.bench.supervisor.pause_reason
        expect(led.state == State.PAUSED and "the leader" in reason, f"{fault}: {led.state} {reason}")
        led.bench.rested(0.5)
        led.bench.bounded()
        moved = float(np.abs(led.bench.positions - before_J)[0])
        expect(moved < 0.3, f"{fault}: followed by {moved:.2f} rad")
        _resynchronised(led, fault)
    return "unplugged, silent, jumps: PAUSED; goes on only with the clutch pressed again"


def _resynchronised(led: Led, fault: str) -> None:
    """The leader is well again: nothing moves before the clutch, nor before both arms are in one place."""
    if fault == "unplugged":
        led.rig.link.replug()
        with contextlib.suppress(LinkLost):
            led.rig.arm.disconnect()
        led.rig.arm.connect()
    led.rig.twin.servo(3).heal()
    there_J = led.bench.positions
    led.run(0.5, lambda _: there_J + AWAY)
    expect(led.state == State.PAUSED and not led.leader.engaged, f"{fault}: went on by itself ({led.state})")
    led.drive.start()
    led.run(0.5, lambda _: there_J + AWAY)
    moved = float(np.abs(led.bench.positions - there_J).max())
    expect(moved < 0.02, f"{fault}: moved by {moved:.2f} rad without the clutch")
    led.bench.daemon.pause("the case goes on")
    led.run(0.1)
    led.start()
    led.run(0.4, lambda _: led.bench.controller.commanded_J)
    expect(led.state == State.ACTIVE, f"{fault}: does not go on with the clutch: {led.state}")


def mismatch(device: Device) -> str:
    led = Led(device)
    led.hand(AWAY)
    led.start()
    led.run(0.5, lambda _: AWAY)
    moved = float(np.abs(led.bench.positions).max())
    expect(moved < 0.02, f"moved by {moved:.2f} rad without a confirmation")
    led.run(2.2, lambda _: AWAY)
    expect(led.state == State.PAUSED, f"refused for good: {led.state}")
    led.bench.reports.clear()
    led.start(align=True)
    led.run(4.0, lambda _: AWAY)
    expect(led.state == State.ACTIVE, f"confirmed: {led.state}")
    off = float(np.abs(led.bench.positions - AWAY).max())
    expect(off < 0.03, f"confirmed: {off:.2f} rad away")
    arm_N = led.bench.spec.arm_N  # a gripper needs no alignment
    fastest = max(float(np.abs(r.tick.command.dq_J[arm_N]).max()) for r in led.bench.reports if r.tick.command)
    expect(fastest <= 0.35, f"aligned at {fastest:.2f} rad/s")
    return f"0.5 rad apart: refused; confirmed: aligned at {fastest:.2f} rad/s"


def takeover(device: Device) -> str:
    led = Led(device, relative=True)
    bench, recorder = led.bench, Recorder(arm="arm", rate_hz=RATE_HZ)
    bench.daemon.subscribe(recorder.tick)
    bench.token, recorder.driver = led.token, Driver.POLICY
    bench.activate("policy")
    recorder.start("hand over")
    bench.run(0.8, driven=True)
    speeds = [float(np.abs(bench.speeds).max())]
    recorder.driver, recorder.intervention, from_s = Driver.TELEOP, True, bench.now
    led.start()
    led.run(0.6, lambda t_s: 0.5 * swing(0.2 + t_s) - 0.5 * swing(0.2))
    speeds.append(float(np.abs(bench.speeds).max()))
    recorder.driver, recorder.intervention, to_s = Driver.POLICY, False, bench.now
    bench.activate("policy again")
    bench.run(0.6, driven=True)
    expect(bench.state == State.ACTIVE and min(speeds) > 0.1, f"{bench.state}, taken over at {speeds} rad/s")
    bench.bounded()
    episode = recorder.finish(success=True)
    ends_T = np.array([observation.time_s for observation in episode.observations[1:]])
    inside_T = (ends_T > from_s + 1.0 / RATE_HZ) & (ends_T < to_s - 1.0 / RATE_HZ)
    outside_T = (ends_T < from_s - 1.0 / RATE_HZ) | (ends_T > to_s + 2.0 / RATE_HZ)
    marked_T, source_T = episode.columns["intervention"], episode.columns["source"]
    expect(bool(marked_T[inside_T].all()) and not marked_T[outside_T].any(), "the takeover is not marked where it was")
    right = (source_T[inside_T] == Driver.TELEOP).all() and (source_T[outside_T] == Driver.POLICY).all()
    expect(bool(right), "the recording names another driver")
    return (
        f"at {speeds[0]:.2f} and {speeds[1]:.2f} rad/s, there and back, in bounds; {int(marked_T.sum())} steps marked"
    )


CASES = (
    Case(number=46, title="leader arm unplugged or jumps", run=leader_lost),
    Case(number=47, title="leader and follower apart at start", run=mismatch),
    Case(number=48, title="takeover at speed", run=takeover),
)
