"""Keys and sticks as pure functions, jogging and replay on a twin."""

import os
import struct

import numpy as np
import pytest

from real_robot.conformance.bench import Bench
from real_robot.core.arms import so101_spec
from real_robot.core.supervisor import State
from real_robot.teleop import gamepad, keyboard
from real_robot.teleop.drive import Drive
from real_robot.teleop.gamepad import Joystick, Pad
from real_robot.teleop.jog import Jog, JogSource
from real_robot.teleop.scripted import Replay, Scripted
from vla.core.errors import SpecMismatchError

SPEC = so101_spec()


def test_keys() -> None:
    assert keyboard.jog(frozenset("q"), SPEC).share_J.tolist() == [1, 0, 0, 0, 0, 0]
    assert keyboard.jog(frozenset("sy"), SPEC).share_J.tolist() == [0, -1, 0, 0, 0, 1]
    both = keyboard.jog(frozenset("qa"), SPEC)
    assert not both.share_J.any() and both.deadman
    assert not keyboard.jog(frozenset("z "), SPEC).deadman


def test_a_key_is_held_for_a_while() -> None:
    keys = keyboard.Keys()
    keys.press("Q", 1.0)
    assert keys.held(1.2) == {"q"} and not keys.held(1.3)
    keys.press("q", 1.29)
    assert keys.held(1.5) == {"q"}


def event(kind: int, number: int, value: int) -> bytes:
    return struct.pack("<IhBB", 17, value, kind, number)


def test_sticks_have_a_dead_zone_and_need_the_deadman() -> None:
    pad = Pad()
    pad.update(event(0x82, 0, 3000) + event(2, 1, -32767) + event(2, 3, 16384) + b"\x01\x02")
    jog = gamepad.jog(pad, SPEC)
    assert jog.share_J[0] == 0.0 and not jog.deadman
    assert jog.share_J[1] == pytest.approx(1.0)
    assert jog.share_J[3] == pytest.approx(-(((0.50002 - 0.12) / 0.88) ** 2), abs=1e-4)
    pad.update(event(1, 4, 1) + event(1, 0, 1))
    jog = gamepad.jog(pad, SPEC)
    assert jog.deadman and jog.share_J[5] == -1.0 and not pad.estop  # A closes: towards the smaller angle
    pad.update(event(1, 8, 1) + event(1, 4, 0))
    assert pad.estop and not gamepad.jog(pad, SPEC).deadman


def test_a_joystick_that_is_read_from_the_kernel(tmp_path) -> None:
    path = tmp_path / "js0"
    os.mkfifo(path)
    reader = Joystick(path, SPEC)
    with path.open("wb", buffering=0) as writer:
        assert not reader.read(0.0).deadman
        writer.write(event(1, 4, 1) + event(2, 0, -32768))
        jog = reader.read(0.0)
        assert jog.deadman and jog.share_J[0] == pytest.approx(1.0, abs=1e-4)
        assert reader.stops() == 0
        writer.write(event(1, gamepad.ESTOP, 1) + event(1, gamepad.ESTOP, 0))  # shorter than a tick
        reader.read(0.0)
        assert reader.stops() == 1 and reader.stops() == 0
        writer.write(event(1, gamepad.ESTOP, 1) + event(1, gamepad.ESTOP, 1))  # held down: one press
        assert reader.stops() == 1
    reader.close()


def driven(bench: Bench, source) -> Drive:
    bench.start()
    drive = Drive(bench.daemon, source, token=bench.daemon.lease("person").token)
    drive.start()
    return drive


def test_jogging_stops_with_the_deadman_and_at_the_limit() -> None:
    bench, held = Bench("sts"), [True]
    share_J = np.array([1.0, 0, 0, 0, 0, 0])
    drive = driven(bench, JogSource(bench.spec, lambda _: Jog(share_J=share_J, deadman=held[0])))
    for _ in range(100):
        drive.step()
        bench.tick()
    assert bench.positions[0] == pytest.approx(0.5, abs=0.06)  # a second at 0.5 rad/s
    held[0] = False
    for _ in range(50):
        drive.step()
        bench.tick()
    assert bench.positions[0] < 0.57 and np.abs(bench.speeds).max() < 0.02
    held[0] = True
    for _ in range(400):
        drive.step()
        bench.tick()
    assert bench.state == State.ACTIVE
    assert bench.positions[0] <= bench.spec.high_J[0] + 0.01
    bench.bounded()


def test_a_device_that_is_gone_pauses() -> None:
    bench, gone_s = Bench("sts"), np.inf

    def read(now_s: float) -> Jog:
        if now_s > gone_s:
            raise OSError(19, "No such device")
        return Jog(share_J=np.full(6, 0.3), deadman=True)

    drive = driven(bench, JogSource(bench.spec, read))
    gone_s = bench.now + 1.0
    for _ in range(200):
        drive.step()
        bench.tick()
    assert bench.state == State.PAUSED and "No such device" in bench.supervisor.pause_reason


def test_replay_is_on_time() -> None:
    """Action t is due t + 1 steps after the start: measured at the commands."""
    bench, dt_s = Bench("sts"), 1 / 30
    t_T = dt_s * np.arange(1, 61)
    actions_TJ = 0.3 * (1 - np.cos(2 * t_T))[:, None] * np.array([1, -1, 0.5, 0.5, 0.5, 0.5])
    replay = Replay(bench.spec, actions_TJ, dt_s)
    drive = driven(bench, replay)
    start_s = bench.now
    count = len(bench.reports)
    while not replay.done:
        drive.step()
        bench.tick()
        assert bench.now < start_s + 3.0
    rows = [(r.now_s - start_s, r.tick.command.q_J[0]) for r in bench.reports[count:] if r.tick.command]
    times, q = np.array(rows).T
    middle = (times > 0.3) & (times < 1.8)
    error = np.abs(q - 0.3 * (1 - np.cos(2 * times)))[middle].max()
    late = np.abs(q - 0.3 * (1 - np.cos(2 * (times - dt_s))))[middle].max()
    assert error < 0.012 and late > 0.015  # one step late would show
    with pytest.raises(SpecMismatchError):
        Replay(bench.spec, actions_TJ[:, :5], dt_s)


def test_a_scripted_path_starts_where_the_arm_stands() -> None:
    bench = Bench("sts")
    drive = driven(bench, Scripted(bench.spec, lambda t: np.full(6, 0.2 * (1 - np.cos(2 * t)))))
    for _ in range(150):
        drive.step()
        bench.tick()
    assert bench.state == State.ACTIVE and bench.positions[0] == pytest.approx(0.2 * (1 - np.cos(3.0)), abs=0.06)
