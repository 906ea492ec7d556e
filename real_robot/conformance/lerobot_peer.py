"""The same faults against lerobot's stock `SO101Follower`, on a twin behind a pseudo-terminal.

Twenty-one cases, judged by the same requirement in the twin; a refusal may be any exception. Real time: the vendor's
SDK has its own clock. It spins while it waits, so threads are switched every 0.1 ms, its time-outs are a second longer,
and what a busy machine swallowed all the same is asked again. The door to lerobot's robots.
"""

import contextlib
import logging
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.motors import motors_bus
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from real_robot.conformance.bench import FAST_SHARE, CaseFailed, expect, stored_calibration
from real_robot.core.arms import so101_spec
from real_robot.loop import first_in_line
from real_robot.twin import registers_sts
from real_robot.twin.arms import so101
from real_robot.twin.link import PtyLink
from real_robot.twin.sts_bus import StsBusTwin

TRIES = 5
PATIENCE_MS = 1000.0
_RAISED = (OSError, RuntimeError, ValueError, OverflowError, IndexError, termios.error)


@dataclass(kw_only=True)
class Peer:
    """lerobot's robot and the twin that it drives."""

    robot: Any
    twin: StsBusTwin
    link: PtyLink

    def connect(self) -> None:
        patiently(self._connect)

    def _connect(self) -> None:
        if self.robot.bus.is_connected:
            self.robot.bus.port_handler.closePort()
        self.robot.connect(calibrate=False)

    def send(self, degrees: float, joint: str = "shoulder_pan") -> None:
        names = [name for name in self.robot.bus.motors if name != "gripper"]
        patiently(lambda: self.robot.send_action({f"{name}.pos": degrees * (name == joint) for name in names}))

    def positions(self) -> dict[str, float]:
        return patiently(self.robot.get_observation)


def patiently[T](action: Callable[[], T]) -> T:
    """Again where the machine was too busy for the SDK's time-out."""
    for _ in range(TRIES - 1):
        try:
            return action()
        except (ConnectionError, RuntimeError):
            time.sleep(0.02)
    return action()


@contextlib.contextmanager
def peer() -> Iterator[Peer]:
    """A fresh twin and a robot that is not connected yet."""
    # an optional package, used only to word a message, is not asked for
    motors_bus.require_package = lambda *_, **__: None  # type: ignore[assignment]
    motors_bus.DeepDiff = lambda before, after: before != after  # type: ignore[attr-defined]
    logging.getLogger("lerobot").setLevel(logging.CRITICAL)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    with tempfile.TemporaryDirectory() as folder:
        twin = so101()
        calibration = stored_calibration(twin, so101_spec())
        (Path(folder) / "peer.json").write_text(calibration.to_lerobot())
        with contextlib.ExitStack() as stack:
            with first_in_line():  # the twin's thread inherits that: an arm has processors of its own
                link = stack.enter_context(PtyLink(twin, Path(folder) / "dev"))
            config = SO101FollowerConfig(port=str(link.path), id="peer", calibration_dir=Path(folder))
            one = Peer(robot=SO101Follower(config), twin=twin, link=link)
            _be_patient(one.robot.bus.port_handler)
            try:
                yield one
            finally:
                with contextlib.suppress(*_RAISED):
                    one.robot.bus.port_handler.closePort()
                sys.setswitchinterval(interval_s)


def _be_patient(port: Any) -> None:
    """A second more for each answer: a busy machine must not count against the driver."""
    set_timeout = port.setPacketTimeout

    def patient(length: int) -> None:
        set_timeout(length)
        port.packet_timeout += PATIENCE_MS

    port.setPacketTimeout = patient


def just_past(p: Peer) -> str:
    p.connect()
    p.send(float(np.degrees(so101_spec().joints[0].high)) + 6.0)
    return _in_range(p)


def far_past(p: Peer) -> str:
    p.connect()
    p.send(400.0)
    return _in_range(p)


def silent(p: Peer) -> str:
    p.connect()
    p.twin.servo(3).silent()
    said = _raises(p.robot.get_observation)
    expect("elbow_flex" in said or "[3]" in said or "id 3" in said.lower(), f"does not name servo 3: {said[:100]}")
    return said


def silent_at_shutdown(p: Peer) -> str:
    p.connect()
    p.twin.servo(4).silent()
    said = _raises(p.robot.disconnect)
    left = [i for i, on in p.twin.torque_flags().items() if on and i != 4]
    expect(not left, f"servos {left} keep their torque ({said[:60]})")
    return "the others are off"


def stale_reply(p: Peer) -> str:
    p.connect()
    p.twin.servo(2).put(registers_sts.MOVING, 1, 0)
    believed = []
    for _ in range(5):
        p.twin.servo(2).stale_reply()
        with contextlib.suppress(*_RAISED):
            p.robot.bus.read("Present_Voltage", "shoulder_lift", normalize=False)  # held back by the wire
        with contextlib.suppress(*_RAISED):
            p.robot.bus.read("Goal_Velocity", "shoulder_lift", normalize=False)
        with contextlib.suppress(*_RAISED):
            believed.append(p.robot.bus.read("Present_Position", "shoulder_lift", normalize=False))
        p.twin.servo(2).heal()
    wrong = [value for value in believed if abs(value - 2048) > 20]
    expect(not wrong, f"another register was reported as position: {wrong} (true: 2048)")
    return "not believed"


def overload(p: Peer) -> str:
    p.connect()
    p.twin.servo(2).overload()
    time.sleep(0.05)
    seen = p.positions()
    expect(
        not all(key.endswith(".pos") for key in seen), "the overload bit is not seen: observation as if all were well"
    )
    return "seen"


def error_while_disabling(p: Peer) -> str:
    p.connect()
    p.twin.servo(2).overload()
    time.sleep(0.05)
    said = _raises(p.robot.disconnect, may=True)
    left = [i for i, on in p.twin.torque_flags().items() if on]
    expect(not left, f"servos {left} keep their torque ({said[:60]})")
    return "all off"


def unplugged(p: Peer) -> str:
    p.connect()
    p.send(20.0)
    p.link.unplug()
    kinds = []
    for _ in range(3):
        try:
            p.robot.get_observation()
        except _RAISED as error:
            kinds.append(f"{type(error).__module__}.{type(error).__name__}: {str(error)[:40]}")
    expect(len(set(kinds)) == 1 and not p.robot.is_connected, f"is_connected {p.robot.is_connected}, raised {kinds}")
    return str(kinds)


def replugged(p: Peer) -> str:
    p.connect()
    p.link.unplug()
    with contextlib.suppress(*_RAISED):
        p.robot.get_observation()
    p.link.replug()
    try:
        p.positions()
    except _RAISED as error:
        text = f"never again: {type(error).__name__}: {str(error)[:80]}, is_connected {p.robot.is_connected}"
        raise CaseFailed(text) from error
    return "goes on"


def stale_goal(p: Peer) -> str:
    for servo in p.twin.servos:
        servo.put(registers_sts.GOAL, 2, 2048 + 652)
    p.connect()
    time.sleep(0.5)
    with p.twin.lock:
        moved = max(map(abs, p.twin.plant.positions_rad))
    expect(moved < 0.02, f"jumps by {moved:.2f} rad when the torque comes on")
    return f"moved by {moved:.3f} rad"


def not_finite(p: Peer, values: tuple[float, ...]) -> str:
    """Refused in whatever words, and nothing of it on the wire."""
    p.connect()
    p.send(0.0)
    said = []
    for value in values:
        goals = len(p.twin.monitor.of(1, registers_sts.GOAL))
        said.append(_raises(lambda value=value: p.send(value)).split(":")[0])
        time.sleep(0.05)
        expect(len(p.twin.monitor.of(1, registers_sts.GOAL)) == goals, f"{value} became a goal")
    return f"raises {', '.join(said)}"


def big_step(p: Peer) -> str:
    p.connect()
    p.twin.peaks.reset()
    p.send(57.3)
    time.sleep(0.6)
    return _no_faster(p, FAST_SHARE * so101_spec().joints[0].max_velocity)


def far_start(p: Peer) -> str:
    p.connect()
    p.twin.peaks.reset()
    p.send(28.6)
    time.sleep(0.6)
    return _no_faster(p, 0.35)


def duplicate(p: Peer) -> str:
    p.twin.servo(2).duplicate()
    return _raises(lambda: p.robot.connect(calibrate=False))


def lost_writes(p: Peer) -> str:
    p.connect()
    p.twin.lose_sync_writes(1000)
    said = ""
    for _ in range(10):
        said = said or _raises(
            lambda: p.robot.send_action({f"{name}.pos": 20.0 for name in p.robot.bus.motors}), may=True
        )
        said = said or _raises(p.robot.get_observation, may=True)
    expect(bool(said), "ten commands reached nobody, and nothing was said")
    return said


def servo_reset(p: Peer) -> str:
    p.connect()
    p.send(0.0)
    p.twin.servo(3).reboot()
    time.sleep(0.4)
    p.send(10.0)
    seen = p.positions()
    on = p.twin.torque_flags()[3]
    expect(on, f"servo 3 is limp, and nothing was said: observation of {len(seen)} values as if all were well")
    return "noticed"


def heat(p: Peer) -> str:
    p.connect()
    p.twin.servo(2).heat(67.0)
    time.sleep(0.2)
    said = ""
    for _ in range(10):
        said = said or _raises(p.robot.get_observation, may=True)
        time.sleep(0.02)
    expect(bool(said) or not any(p.twin.torque_flags().values()), "67 C: goes on as if all were well")
    return said


def multi_turn(p: Peer) -> str:
    servo = p.twin.servo(2)
    servo.memory[registers_sts.PHASE] |= 0x10
    servo.stored = bytes(servo.memory[: servo.eeprom_size])
    said = _raises(lambda: p.robot.connect(calibrate=False), may=True)
    cleared = not p.twin.servo(2).memory[registers_sts.PHASE] & 0x10
    expect(bool(said) or cleared, "connects with positions that leave 0..4095")
    return said or "clears the bit"


def wrong_servos(p: Peer) -> str:
    p.twin.servo(4).device_id = 9
    said = _raises(lambda: p.robot.connect(calibrate=False))
    expect("4 (expected model" in said, f"does not name servo 4: {said[:80]}")
    return "raises RuntimeError with a table of servos"


def second_opener(p: Peer) -> str:
    p.connect()
    other = SO101Follower(p.robot.config)
    said = _raises(lambda: other.bus.connect(), may=True)
    with contextlib.suppress(*_RAISED):
        other.bus.port_handler.closePort()
    expect(bool(said), "a second robot opens the same port and talks on it")
    return said


RUNS: dict[int, Callable[[Peer], str]] = {
    7: lambda p: not_finite(p, (float("nan"),)),
    8: lambda p: not_finite(p, (float("inf"), -float("inf"), 1e30)),
    9: just_past,
    10: far_past,
    11: big_step,
    17: silent,
    18: silent_at_shutdown,
    20: stale_reply,
    21: duplicate,
    22: lost_writes,
    23: servo_reset,
    24: overload,
    25: error_while_disabling,
    26: heat,
    30: multi_turn,
    32: wrong_servos,
    33: unplugged,
    34: replugged,
    35: second_opener,
    36: stale_goal,
    37: far_start,
}


def run_peer(number: int) -> tuple[bool, str]:
    """Whether lerobot's driver meets the requirement of a case, and what was seen."""
    with peer() as one:
        try:
            return True, RUNS[number](one)
        except CaseFailed as error:
            return False, str(error)


def _in_range(p: Peer) -> str:
    time.sleep(0.05)
    raw = [int.from_bytes(write.data, "little") for write in p.twin.monitor.of(1, registers_sts.GOAL)][-1:]
    bad = [violation.rule for violation in p.twin.monitor.violations if violation.rule == "goal_out_of_range"]
    expect(not bad, f"raw goal {raw} on the wire, the servo's own limits are 796..3300")
    return f"raw goal {raw}"


def _no_faster(p: Peer, most_rad_s: float) -> str:
    with p.twin.lock:
        fastest = max(p.twin.peaks.speed_rad_s)
    expect(fastest <= most_rad_s, f"{fastest:.2f} rad/s at the motor, allowed {most_rad_s:.2f}")
    return f"at most {fastest:.2f} rad/s"


def _raises(action: Callable[[], object], *, may: bool = False) -> str:
    try:
        action()
    except _RAISED as error:
        return f"{type(error).__name__}: {error}"
    expect(may, "nothing was raised")
    return ""
