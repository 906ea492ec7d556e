"""Cases 44 and 45: pictures that are not what they should be, and cameras that are not who they should be."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from real_robot.cameras.eyes import MAX_AGE_S, Eyes
from real_robot.cameras.frames import Camera, CameraSpec, require_bound, swapped
from real_robot.cameras.twin import Timing, TwinCamera, pattern
from real_robot.cameras.v4l2 import open_camera, serials
from real_robot.conformance.bench import EVERY, Bench, Device, expect
from real_robot.conformance.case import Case
from real_robot.core.faults import GrasplineError
from real_robot.core.supervisor import State
from real_robot.record.recorder import Recorder

SPEC = CameraSpec(name="wrist", serial="A1", height=48, width=64, rate_hz=30.0)
SMALL = replace(SPEC, height=24, width=32)
NOTICED_S, PATIENCE_S = 0.2, 0.5  # five equal pictures at 30 Hz; then half a second without a good one


class Seeing:
    """A bench whose policy plays only on pictures that are let through, and which is recorded."""

    def __init__(self, device: Device) -> None:
        self.bench = Bench(device)
        self.cameras: dict[str, Camera] = {}
        self.camera = self.plug()
        self.eyes = Eyes(self.cameras, start_s=self.bench.now)
        self.recorder = Recorder(arm="arm", cameras=[SPEC.name])
        self.bench.daemon.subscribe(self.recorder.tick)
        self.bench.start()
        self.bench.activate()
        self.withheld_s = np.inf  # when the policy last began to see nothing
        self._tick = 0

    def plug(self, spec: CameraSpec = SPEC, *, latency_s: float = 0.02) -> TwinCamera:
        """In place of the one that was there."""
        picture, timing = pattern(spec.height, spec.width), Timing(latency_s=latency_s)
        self.camera = TwinCamera(spec, picture, clock=self.bench.clock.now, timing=timing)
        self.camera.start()
        self.cameras[SPEC.name] = self.camera
        return self.camera

    def tick(self) -> None:
        bench = self.bench
        for finding in self.eyes.look(bench.now):
            bench.daemon.fail(finding)
        if self.eyes.frames is None:
            self.withheld_s = min(self.withheld_s, bench.now)
        else:
            self.withheld_s, frame = np.inf, self.eyes.frames[SPEC.name]
            self.recorder.see(SPEC.name, frame)
            if self._tick % EVERY == 0 and bench.playing:
                bench.offer(t_obs_s=max(frame.time_s, bench._began_s))
        bench.tick()
        self._tick += 1

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / self.bench.daemon.dt_s)):
            self.tick()


FAULTS: Mapping[str, Callable[[Seeing], object]] = {  # by the word that the fault has to name
    "frozen": lambda seeing: seeing.camera.freeze(),
    "the newest frame": lambda seeing: seeing.camera.die(),
    "black": lambda seeing: seeing.camera.darken(),
    "late": lambda seeing: seeing.plug(latency_s=0.4),
    "size": lambda seeing: seeing.plug(SMALL, latency_s=0.0),
}


def bad_pictures(device: Device) -> str:
    worst_s = max(_bad_picture(device, word, fault) for word, fault in FAULTS.items())
    return f"frozen, dead, black, late, size: withheld, PAUSED at most {1e3 * worst_s:.0f} ms later, recording marked"


def _bad_picture(device: Device, word: str, fault: Callable[[Seeing], object]) -> float:
    """Seconds from when the policy sees nothing to PAUSED."""
    seeing = Seeing(device)
    bench = seeing.bench
    seeing.run(0.3)
    seeing.recorder.start("look")
    seeing.run(0.9)
    expect(bench.state == State.ACTIVE and bool(np.isinf(seeing.withheld_s)), f"{word}: {bench.state} at first")
    fault(seeing)
    broken_s = bench.now
    while bench.state != State.PAUSED:
        seeing.tick()
        expect(bench.now - broken_s < NOTICED_S + PATIENCE_S + 0.1, f"{word}: still {bench.state}")
    withheld_s, waited_s = seeing.withheld_s, bench.now - seeing.withheld_s
    expect(withheld_s - broken_s <= NOTICED_S, f"{word}: shown to the policy for {withheld_s - broken_s:.2f} s")
    expect(waited_s <= PATIENCE_S + MAX_AGE_S, f"{word}: PAUSED {waited_s:.2f} s after the policy saw nothing")
    expect(word in bench.supervisor.pause_reason, f"does not say '{word}': {bench.supervisor.pause_reason}")
    bench.rested(0.5)
    _marked(seeing, withheld_s, word)
    seeing.plug()
    seeing.run(0.5)
    expect(bool(np.isinf(seeing.withheld_s)), f"{word}: still withheld from a camera that is well: {seeing.eyes.found}")
    expect(bench.state == State.PAUSED, f"{word}: went on by itself")
    bench.drives_again()
    return waited_s


def _marked(seeing: Seeing, withheld_s: float, word: str) -> None:
    """The recording flags the steps without a picture, and no others."""
    episode = seeing.recorder.finish(success=False, truncated=True)
    times_T = np.array([observation.time_s for observation in episode.observations[:-1]])
    skewed_T = episode.columns["skewed"]
    expect(not skewed_T[times_T < withheld_s - NOTICED_S].any(), f"{word}: good steps are marked")
    expect(bool(skewed_T[times_T > withheld_s + 0.1].all()), f"{word}: steps without a picture are not marked")


def exchanged(device: Device) -> str:
    with tempfile.TemporaryDirectory() as folder:
        boots = Path(folder) / "first", Path(folder) / "second"
        for root, (front, wrist) in zip(boots, ((0, 2), (2, 0)), strict=True):
            _plug(root, front, "1-1", "F7")
            _plug(root, wrist, "1-2", SPEC.serial)
        found = [serials(root)[SPEC.serial] for root in boots]
        expect(found == [Path("/dev/video2"), Path("/dev/video0")], f"bound to the number, not to the serial: {found}")
        other = replace(SPEC, serial="B9")
        _refused("A1", lambda: open_camera(other, sysfs=boots[0]))
        _plug(boots[0], 4, "1-3", "F7")
        _refused("both have the serial", lambda: serials(boots[0]))
    _refused("the device has 'F7'", lambda: require_bound(SPEC, "F7"))
    draw = pattern(SPEC.height, SPEC.width)
    references = {"front": draw(0.0), "wrist": draw(0.0)[::-1]}
    right = {"front": draw(0.7), "wrist": draw(0.7)[::-1]}
    wrong = {"front": right["wrist"], "wrist": right["front"]}
    expect(swapped(right, references) == [], "cameras in their places were taken for exchanged")
    expect(swapped(wrong, references) == [("front", "wrist")], "cameras in each other's places were not noticed")
    return "bound by serial across reboots; another, missing or double serial refused; exchanged mounts noticed"


def _plug(root: Path, number: int, port: str, serial: str) -> None:
    """A camera as the kernel lays it out: videoN/device -> the interface below the USB device."""
    usb = root.parent / f"{root.name}-devices" / port
    (usb / "interface").mkdir(parents=True)
    (usb / "serial").write_text(f"{serial}\n")
    node = root / f"video{number}"
    node.mkdir(parents=True)
    (node / "index").write_text("0\n")
    (node / "device").symlink_to(usb / "interface")


def _refused(word: str, action: Callable[[], object]) -> None:
    try:
        action()
    except GrasplineError as error:
        expect(word in str(error), f"does not say '{word}': {error}")
        return
    expect(False, f"not refused: '{word}'")


CASES = (
    Case(number=44, title="camera frozen, late, dead, black", run=bad_pictures),
    Case(number=45, title="cameras exchanged", run=exchanged),
)
