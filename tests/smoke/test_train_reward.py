"""scripts.train_reward on the fake suite: collects, trains, tests, and what it leaves is a reward."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.collection import Collection, rows_of
from rewards.learned.declared import TERM
from rewards.learned.frames import Encoder
from rewards.learned.success import load_classifier
from scripts.entry import compose, entry
from scripts.train_reward import main
from sim.fake import FakeEnv
from vla.core.errors import GrasplineError, UnknownNameError
from vla.data.lerobot import LeRobotSource
from vla.policies.backbones.efficientnet import imagenet_tower
from vla.policies.backbones.minilm import encode

SMALL = [
    "env=fake", "image_size=64", "frames=10", "views=1", "steps=60", "progress_steps=3", "batch=16", "seeds=[0]",
    "every=1",
    "consecutive=2",    "heldout=0.5", "collect.tasks=[reach_red,reach_green]", "collect.unseen_tasks=[reach_blue]",
    "collect.other_tasks=[reach_green]", "collect.episodes=24", "collect.test_episodes=12",
    "collect.linger=4", "collect.max_steps=30",
]  # fmt: skip


def test_rows_of_a_collection():
    env = FakeEnv()
    plan = Collection(tasks=["reach_red", "reach_green"], unseen_tasks=["reach_blue"], episodes=40, test_episodes=30)
    train, test = (rows_of(env, plan, test=each) for each in (False, True))
    assert len(train) == 40 and len(test) == 30 and len({row.name for row in [*train, *test]}) == 70
    assert {row.task for row in train} == {"reach_red", "reach_green"} < {row.task for row in test}
    assert max(row.init_state for row in train) < 40 <= min(row.init_state for row in test), "held-out starts"
    assert [row.way for row in train[:4:2]] == ["clean", "clean"] and "other_task" not in {row.way for row in train}
    starts = [{row.init_state for row in train if (row.way == "clean") == clean} for clean in (True, False)]
    assert starts[0] == starts[1], "the start tells nothing"
    with pytest.raises(UnknownNameError, match="Did you mean 'reach_red'"):
        rows_of(env, Collection(tasks=["reach_redd"]), test=False)


def test_collect_train_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    where = [f"dataset={tmp_path / 'train'}", f"test={tmp_path / 'test'}", f"out={tmp_path / 'judge'}"]
    main(compose("train_reward", [*SMALL, *where]))
    told = json.loads((tmp_path / "judge" / "metrics.json").read_text())
    [report] = told["seeds"]
    assert {"calibration", "seen", "unseen", "task reach_red", "way clean"} <= report.keys()
    assert report["seen"]["recall"]["total"] >= 3 and report["seen"]["false_alarms"]["total"] >= 1
    assert {"successes", "reversed", "failures"} <= told["progress"].keys()
    assert (tmp_path / "judge" / "mistakes.png").read_bytes()[:4] == b"\x89PNG"
    assert "precision" in capsys.readouterr().out

    tower = imagenet_tower(64).eval()
    torch.nn.init.zeros_(tower.place_NW)
    encoder = Encoder(name="efficientnet_lite0/64", encode=tower)
    judge = load_classifier(folder=tmp_path / "judge", encoder=encoder, text=encode)
    assert judge.provenance["episodes"] == 24 and judge.provenance["dataset"].endswith("train")
    source = LeRobotSource(tmp_path / "test")
    reward_T = judge(source[0])[TERM]
    assert reward_T.shape == (len(source[0]),) and reward_T.sum() in (0, 1)
    recorded = source.columns().rewards["success"]
    assert np.isin(recorded, (0, 1)).all() and recorded.sum() > 0


def test_a_mistake_is_one_line(tmp_path: Path):
    for override, message in {
        "every=0": "every is 0",
        "seeds=[]": "seeds is empty",
        "heldout=1.0": "heldout is 1",
    }.items():
        with pytest.raises(GrasplineError, match=message):
            main(compose("train_reward", [override, f"out={tmp_path}"]))
    with pytest.raises(SystemExit, match="Did you mean 'precision'"):
        entry("train_reward", main, ["precison=0.9"])
