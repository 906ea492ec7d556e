"""An arm from its maker: calibrated by hand on the twin, and known again the next day."""

import numpy as np
import pytest

from real_robot.drivers.errors import CalibrationMismatchError
from real_robot.e2e.cell import Cell, Memory
from real_robot.twin.pick_scene import HOME, PickScene
from vla.core.errors import CorruptFileError, MissingAssetError


@pytest.fixture(scope="module")
def scene() -> PickScene:
    return PickScene(image_size=32)


def test_hidden_zeros_come_back_and_survive_the_night(scene: PickScene, tmp_path) -> None:
    first = Cell(scene, serial=3)
    calibration, memory = first.calibrate()
    memory.save(tmp_path / "servos.json")
    cell = Cell(scene, serial=3, calibration=calibration, memory=Memory.load(tmp_path / "servos.json"))
    cell.start(0)
    reading = cell.daemon.sides["arm"].reading
    assert reading is not None
    assert reading.q_J == pytest.approx(cell.twin.plant.positions_rad, abs=3 * 2 * np.pi / 4096)
    assert reading.q_J == pytest.approx(np.array(HOME), abs=0.12)
    for servo in cell.twin.servos:
        assert servo.zero_count != 2048, "or there was nothing to find"
    cell.daemon.shutdown("done")
    assert cell.twin.monitor.num_violations == 0


def test_another_arms_file_gives_no_torque(scene: PickScene) -> None:
    calibration, _ = Cell(scene, serial=3).calibrate()
    _, other = Cell(scene, serial=4).calibrate()
    with pytest.raises(CalibrationMismatchError, match="homing_offset"):
        Cell(scene, serial=4, calibration=calibration, memory=other).start(0)


def test_a_lost_or_broken_memory_is_said(tmp_path) -> None:
    with pytest.raises(MissingAssetError, match="calibrate"):
        Memory.load(tmp_path / "none.json")
    for text in ("{", '["zz"]', "[1]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CorruptFileError):
            Memory.load(tmp_path / "bad.json")
