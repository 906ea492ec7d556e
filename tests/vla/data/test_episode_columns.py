"""`Episode.columns` through staged files and through a dataset that lerobot's own loader opens (as float32)."""

import json

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from vla.core.errors import SpecMismatchError
from vla.data.description import read_description
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import read_staged, write_staged

STEPS = 20


def columns(index: int) -> dict[str, np.ndarray]:
    """One of each kind that a robot records; values that float32 cannot hold; a NaN where nothing was measured."""
    rng = np.random.default_rng(100 + index)
    requested = rng.standard_normal((STEPS, 3), np.float32)
    requested[3, 1] = np.nan
    return {
        "action.requested": requested,
        "safety.verdict": rng.integers(0, 512, STEPS),
        "intervention": rng.random(STEPS) < 0.3,
        "time.front": 1e5 + np.cumsum(rng.random(STEPS)) / 3.0,
        "one": rng.standard_normal((STEPS, 1)),
    }


def same(read: dict, written: dict) -> None:
    assert read.keys() == written.keys()
    for name, column in written.items():
        np.testing.assert_array_equal(read[name], column, err_msg=name)
        assert (read[name].dtype, read[name].shape) == (column.dtype, column.shape), name


def test_staged_columns_come_back_bit_for_bit(tmp_path, make_episode) -> None:
    same(read_staged(write_staged(tmp_path, "e", make_episode(0, columns=columns(0)))).columns, columns(0))  # type: ignore[arg-type]
    assert read_staged(write_staged(tmp_path, "f", make_episode(0))).columns == {}


def test_a_dataset_keeps_them_also_when_extended_and_lerobot_reads_them(tmp_path, make_episode, spec) -> None:
    root = tmp_path / "toy"
    write_dataset([make_episode(i, columns=columns(i)) for i in range(2)], root, spec)
    write_dataset([make_episode(2, columns=columns(2))], root, spec)
    source = LeRobotSource(root)
    for index in range(3):
        same(source[index].columns, columns(index))  # type: ignore[arg-type]
    theirs = LeRobotDataset("toy", root=root, video_backend="pyav", return_uint8=True)
    for row in (0, STEPS + 7, 3 * STEPS - 1):
        item, wanted = theirs[row], columns(row // STEPS)
        for name, column in wanted.items():
            theirs_D, ours_D = np.ravel(item[name].numpy()), np.ravel(column[row % STEPS])
            np.testing.assert_array_equal(theirs_D, ours_D.astype(theirs_D.dtype), err_msg=name)


def test_a_dataset_of_before_has_none(tmp_path, make_episode, spec) -> None:
    """Files that were written without `columns` in the description, and somebody else's, have no columns."""
    root = tmp_path / "toy"
    write_dataset([make_episode(0, columns=columns(0))], root, spec)
    path = root / "meta" / "graspline.json"
    described = json.loads(path.read_text())
    del described["columns"]
    path.write_text(json.dumps(described))
    assert LeRobotSource(root)[0].columns == {}
    path.unlink()
    assert LeRobotSource(root)[0].columns == {} and read_description(root) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "'action.requested'.* missing, added or of another kind"),
        ({**columns(1), "more": np.zeros(STEPS)}, "'more'"),
        ({**columns(1), "safety.verdict": np.zeros(STEPS)}, "safety.verdict"),
        ({**columns(1), "action.requested": np.zeros((STEPS, 4), np.float32)}, "action.requested"),
    ],
)
def test_episodes_with_other_columns_are_refused(tmp_path, make_episode, spec, changed: dict, said: str) -> None:
    first, other = make_episode(0, columns=columns(0)), make_episode(1, columns=changed)
    with pytest.raises(ValueError, match=said):
        write_dataset([first, other], tmp_path / "toy", spec)
    assert list(tmp_path.iterdir()) == []
    write_dataset([first], tmp_path / "toy", spec)
    with pytest.raises(SpecMismatchError, match="cannot be extended"):
        write_dataset([other], tmp_path / "toy", spec)
    assert len(LeRobotSource(tmp_path / "toy")) == 1


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"action": np.zeros(STEPS)}, "names of something else"),
        ({"episode_index": np.zeros(STEPS)}, "names of something else"),
        ({"a/b": np.zeros(STEPS)}, "a/b"),
        ({"words": np.array(["x"] * STEPS)}, "expected numbers"),
        ({"deep": np.zeros((STEPS, 2, 2))}, "expected numbers"),
    ],
)
def test_columns_that_a_dataset_cannot_hold(tmp_path, make_episode, spec, column: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_dataset([make_episode(0, columns=column)], tmp_path / "toy", spec)
    assert list(tmp_path.iterdir()) == []
