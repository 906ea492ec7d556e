"""A twin in a process of its own: arm and pictures reach this one."""

import time
from pathlib import Path

import numpy as np
import pytest

from real_robot.cameras.frames import CameraSpec, Frame
from real_robot.cameras.shared import FrameWriter, SharedCamera
from real_robot.core.arms import so101_spec
from real_robot.drivers.build import so101
from real_robot.twin.process import frames_at, make_twin, twin_process
from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError, UnknownNameError

START = [0.1, -0.5, 0.5, 0.3, 0.2, 0.4]
SPEC = CameraSpec(name="front", serial="twin", height=48, width=65, rate_hz=30.0)  # a slot that is no multiple of 8


def picture(seq: int) -> np.ndarray:
    return np.full((48, 65, 3), seq % 251, np.uint8)


def test_the_newest_frame_is_whole_and_the_same_until_there_is_another(tmp_path: Path) -> None:
    writer, camera = FrameWriter(tmp_path / "a", 48, 65), SharedCamera(SPEC, tmp_path / "a")
    camera.start()
    assert camera.latest() is None
    for seq in (0, 1, 2, 5, 6):
        writer.write(Frame(seq=seq, time_s=0.1 * seq, image=picture(seq)))
        frame = camera.latest()
        assert frame is not None and (frame.seq, frame.time_s) == (seq, pytest.approx(0.1 * seq))
        np.testing.assert_array_equal(frame.image, picture(seq))
        assert camera.latest() is frame
    camera.stop()


def test_a_slot_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    writer, camera = FrameWriter(tmp_path / "a", 48, 65), SharedCamera(SPEC, tmp_path / "a")
    camera.start()
    for seq in (0, 1):
        writer.write(Frame(seq=seq, time_s=float(seq), image=picture(seq)))
    writer._slots[1][0][0] = -1  # the writer took the number away, pixels are on their way
    frame = camera.latest()
    assert frame is not None and frame.seq == 0


def test_no_file_and_a_file_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match="no frames at"):
        SharedCamera(SPEC, tmp_path / "none").start()
    FrameWriter(tmp_path / "a", 24, 32)
    with pytest.raises(CorruptFileError, match="48x65"):
        SharedCamera(SPEC, tmp_path / "a").start()


@pytest.mark.slow
def test_arm_and_camera_of_a_twin_elsewhere(tmp_path: Path) -> None:
    with twin_process("so101", tmp_path, cameras=[SPEC], start_rad=START) as port:
        arm = so101(calibration=None, port=port, slack_s=0.02)
        arm.open()
        try:
            counts = [arm.get(device_id, "present_position") for device_id in arm.ids]
        finally:
            arm.close()
        angles = (np.array(counts) - 2048) * 2 * np.pi / 4096
        np.testing.assert_allclose(
            angles[[0, 4, 5]], np.array(START)[[0, 4, 5]], atol=0.1
        )  # the others fall: it is limp
        camera = SharedCamera(SPEC, frames_at(tmp_path, "front"))
        camera.start()
        seen, until_s = [], time.monotonic() + 60.0
        while len(seen) < 3 and time.monotonic() < until_s:
            frame = camera.latest()
            if frame is not None and (not seen or frame.seq > seen[-1].seq):
                assert -0.02 < time.monotonic() - frame.time_s < 30.0
                seen.append(frame)
            time.sleep(0.01)
        assert len(seen) == 3 and seen[0].image.std() > 5.0
        camera.stop()
    assert not port.exists()
    assert len(so101_spec().joints) == len(make_twin("so101").plant.positions_rad)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="so101"):
        make_twin("so100")
    with pytest.raises(GrasplineError, match="did not start"), twin_process("koch", tmp_path, cameras=[SPEC]):
        pass
