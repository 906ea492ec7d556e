"""Several cameras at once, on a virtual clock; and one that is read by a thread."""

import time
from itertools import pairwise

import numpy as np

from real_robot.cameras.eyes import Eyes
from real_robot.cameras.frames import CameraSpec, Frame
from real_robot.cameras.running import RunningCamera
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.core.clock import VirtualClock
from real_robot.core.faults import FaultCode


def camera(name: str, clock) -> TwinCamera:
    spec = CameraSpec(name=name, serial=name, height=48, width=64, rate_hz=30.0)
    return TwinCamera(spec, pattern(48, 64), clock=clock)


def test_all_pictures_or_none_and_one_report_for_each_loss() -> None:
    clock = VirtualClock(start_s=5.0)
    cameras = {name: camera(name, clock.now) for name in ("front", "wrist")}
    for each in cameras.values():
        each.start()
    eyes = Eyes(cameras, start_s=clock.now())

    def pass_time(seconds: float) -> list:
        reported = []
        for _ in range(round(100 * seconds)):
            clock.sleep_until(clock.now() + 0.01)
            reported += eyes.look(clock.now())
        return reported

    assert pass_time(1.0) == [] and eyes.frames is not None and set(eyes.frames) == {"front", "wrist"}
    for _ in range(2):  # a second loss is reported again
        cameras["wrist"].die()
        reported = pass_time(2.0)
        assert [finding.code for finding in reported] == [FaultCode.OBSERVATION_STALE] and "wrist" in reported[0].detail
        assert eyes.frames is None and set(eyes.found) == {"wrist"}
        cameras["wrist"].heal()
        assert pass_time(0.5) == [] and eyes.frames is not None
    assert Eyes({}, start_s=0.0).look(1.0) == []


def test_no_cameras_is_an_empty_look_and_not_a_withheld_one() -> None:
    eyes = Eyes({}, start_s=0.0)
    eyes.look(0.1)
    assert eyes.frames == {}


def test_a_slow_camera_does_not_make_the_loop_wait() -> None:
    """Its picture takes 30 ms to draw; picking it up takes none."""

    def draw(time_s: float) -> np.ndarray:
        time.sleep(0.03)
        return pattern(48, 64)(time_s)

    slow = TwinCamera(CameraSpec(name="a", serial="a", height=48, width=64, rate_hz=20.0), draw, clock=time.monotonic)
    with RunningCamera(slow) as running:
        seen: list[Frame] = []
        worst_s, end_s = 0.0, time.monotonic() + 5.0
        while len(seen) < 4 and time.monotonic() < end_s:
            start_s = time.thread_time()
            frame = running.latest()
            worst_s = max(worst_s, time.thread_time() - start_s)
            if frame is not None and (not seen or frame.seq != seen[-1].seq):
                seen.append(frame)
            time.sleep(0.002)
    assert len(seen) == 4 and worst_s < 0.005
    assert all(b.seq > a.seq and b.time_s > a.time_s for a, b in pairwise(seen))
    assert running.spec is slow.spec
