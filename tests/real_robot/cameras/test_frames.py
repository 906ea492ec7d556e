"""Each check of a picture on a camera that has the fault, and on one that has not."""

from dataclasses import replace

import numpy as np
import pytest

from real_robot.cameras.frames import CameraSpec, Frame, black, findings, frozen, require_bound, swapped
from real_robot.cameras.twin import Timing, TwinCamera, pattern
from real_robot.core.clock import VirtualClock
from vla.core.errors import SpecMismatchError

SPEC = CameraSpec(name="wrist", serial="A1", height=48, width=64, rate_hz=30.0)


def film(count: int = 8, *, fault: str = "", noise: float = 2.0) -> tuple[list[Frame], float]:
    """Frames as a reader collects them; the fault begins at the third."""
    clock = VirtualClock(start_s=10.0)
    camera = TwinCamera(SPEC, pattern(48, 64), clock=clock.now, noise=noise)
    camera.start()
    frames: list[Frame] = []
    for number in range(count):
        clock.sleep_until(10.0 + (number + 0.5) / 30.0)
        if number == 2 and fault:
            getattr(camera, fault)()
        frame = camera.latest()
        assert frame is not None
        if not frames or frames[-1].seq != frame.seq:
            frames.append(frame)
    return frames, clock.now()


def found(frames: list[Frame], now_s: float) -> list[str]:
    return [finding.split(":")[0] for finding in findings(frames, SPEC, now_s, max_age_s=0.1)]


def test_a_good_camera_has_no_finding() -> None:
    assert found(*film()) == []


@pytest.mark.parametrize(("fault", "word"), [("freeze", "frozen"), ("darken", "black"), ("die", "late")])
def test_each_fault_is_found(fault: str, word: str) -> None:
    assert found(*film(fault=fault)) == [word]


def test_no_frame_a_wrong_size_and_numbers_that_go_back() -> None:
    frames, now_s = film()
    assert found([], now_s) == ["dead"]
    assert found([replace(frames[-1], image=frames[-1].image[:-1])], now_s) == ["size"]
    assert found([frames[-1], frames[-2]], now_s) == ["sequence"]
    assert found(frames, now_s - 0.05) == ["clock"]


def test_a_still_scene_with_noise_is_not_frozen() -> None:
    image = np.full((48, 64, 3), 90, np.uint8)
    clock = VirtualClock(start_s=0.0)
    for noise, expected in ((2.0, False), (0.0, True)):
        camera = TwinCamera(SPEC, lambda _: image, clock=clock.now, noise=noise)
        camera.start()
        frames = []
        for _ in range(6):
            clock.sleep_until(clock.now() + 1 / 30)
            frame = camera.latest()
            assert frame is not None
            frames.append(frame)
        assert frozen(frames, 5) is expected


def test_a_dark_room_with_a_lamp_is_not_black() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    assert black(image)
    image[20:24, 30:34] = 255
    assert not black(image)


def test_exchanged_cameras_are_told_from_a_change_of_light() -> None:
    images = {name: pattern(48, 64, hue=hue)(0.1 + hue) for hue, name in enumerate(("a", "b"))}
    rng = np.random.default_rng(0)
    images["a"] = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((6, 8, 1))).astype(np.uint8)
    assert swapped(images, images) == []
    darker = {name: (image // 2).astype(np.uint8) for name, image in images.items()}
    assert swapped(darker, images) == []
    assert swapped({"a": darker["b"], "b": darker["a"]}, images) == [("a", "b")]


def test_another_serial_is_refused() -> None:
    require_bound(SPEC, "A1")
    with pytest.raises(SpecMismatchError, match=r"'A1'.*'B2'"):
        require_bound(SPEC, "B2")


def test_a_frame_arrives_after_exposure_latency_and_jitter_and_no_earlier() -> None:
    clock = VirtualClock(start_s=0.0)
    timing = Timing(exposure_s=0.01, latency_s=0.08, jitter_s=0.02)
    camera = TwinCamera(SPEC, pattern(48, 64), clock=clock.now, timing=timing, seed=3)
    camera.start()
    ages = []
    seen = -1
    while clock.now() < 3.0:
        clock.sleep_until(clock.now() + 0.001)
        frame = camera.latest()
        if frame is not None and frame.seq != seen:
            assert frame.seq > seen
            seen = frame.seq
            ages.append(clock.now() - frame.time_s)
    assert 0.085 <= min(ages) < 0.088 and 0.1 < max(ages) <= 0.1065  # middle of the exposure to arrival
    assert seen >= 85


def test_exposure_blurs() -> None:
    clock = VirtualClock(start_s=0.0)
    sharp = TwinCamera(SPEC, pattern(48, 64), clock=clock.now, noise=0.0)
    long = TwinCamera(SPEC, pattern(48, 64), clock=clock.now, noise=0.0, timing=Timing(exposure_s=0.2))
    sharp.start(), long.start()
    clock.sleep_until(0.25)
    widths = []
    for camera in (sharp, long):
        frame = camera.latest()
        assert frame is not None
        changed = np.abs(frame.image.astype(int) - pattern(48, 64)(1.5).astype(int)).sum(axis=(0, 2)) > 0
        widths.append(int(changed.sum()))
    assert widths[1] > widths[0]
