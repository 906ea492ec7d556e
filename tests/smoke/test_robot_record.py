"""Record, then replay, as a user does it: a twin behind a pseudo-terminal, in real time."""

import json

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from real_robot.conformance.lateness import TWIN_SLACK_S, shop_calibration
from real_robot.conformance.pty_twin import pty_twin
from scripts.robot_record import VERBS
from vla.core.errors import GrasplineError, UnknownNameError
from vla.data.lerobot import LeRobotSource


def config(tmp_path, port, **changed) -> DictConfig:
    calibration = tmp_path / "arm.json"
    shop_calibration("sts").save(calibration)
    fields = {
        "robot": {
            "_target_": "real_robot.drivers.build.so101",
            "slack_s": TWIN_SLACK_S,
            "normal_speed": True,
            "control_hz": 50.0,  # a busy machine shares one core between the twin and the loop
        },
        "port": str(port),
        "calibration": str(calibration),
        "source": "scripted",
        "align": True,
        "task": "wave",
        "episodes": 2,
        "episode": 1,
        "seconds": 1.0,
        "rate_hz": 25.0,
        "out": str(tmp_path / "data"),
    }
    return OmegaConf.create(fields | changed)


@pytest.mark.slow
def test_record_and_replay(tmp_path, capsys) -> None:
    with pty_twin("sts") as port:
        VERBS["record"](config(tmp_path, port))
        dataset = LeRobotSource(tmp_path / "data")
        assert len(dataset) == 2 and dataset.spec.action_dim == 6
        episode = dataset[1]
        assert len(episode) >= 20 and episode.meta["calibration"] == shop_calibration("sts").sha256
        assert np.ptp(episode.actions_TA[:, 0]) > 0.04
        assert sorted(path.name for path in (tmp_path / "data.staging" / "columns").iterdir()) == [
            "000000.safetensors",
            "000001.safetensors",
        ]
        assert json.loads((tmp_path / "data" / "meta" / "graspline.json").read_text())["embodiment"]["name"] == "so101"
        VERBS["replay"](config(tmp_path, port))
    said = capsys.readouterr().out
    assert float(said.split("ended ")[1].split(" rad")[0]) < 0.1, said


def test_mistakes(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match="keyboard"):
        VERBS["teleop"](config(tmp_path, "/dev/none", source="keybord"))
    with pytest.raises(GrasplineError, match="out="):
        VERBS["record"](config(tmp_path, "/dev/none", out=None))
    with pytest.raises(GrasplineError, match="port="):
        VERBS["teleop"](OmegaConf.merge(config(tmp_path, "/dev/none"), {"port": None}))
