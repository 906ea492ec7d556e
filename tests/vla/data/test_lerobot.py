"""Round trip through a real LeRobotDataset on disk, judged by lerobot's own loader."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from vla.core.errors import CorruptFileError, MissingAssetError, NonFiniteError, SpecMismatchError, StorageError
from vla.data.lerobot import LeRobotSource, write_dataset


def test_round_trip_is_exact_but_for_video(source, episodes, spec, picture):
    assert source.spec == spec
    assert len(source) == len(episodes)
    for index, (read, written) in enumerate(zip(source, episodes, strict=True)):
        np.testing.assert_array_equal(read.actions_TA, written.actions_TA)
        np.testing.assert_array_equal(read.labels_TA, written.labels_TA)
        assert read.meta == written.meta
        assert (read.terminated, read.truncated, read.success) == (
            written.terminated,
            written.truncated,
            written.success,
        )
        assert read.rewards.keys() == written.rewards.keys()
        for term in written.rewards:
            np.testing.assert_array_equal(read.rewards[term], written.rewards[term])
        for t in range(len(written)):
            np.testing.assert_array_equal(read.observations[t].state_S, written.observations[t].state_S)
            assert read.observations[t].time_s == written.observations[t].time_s
            assert read.observations[t].instruction == written.observations[t].instruction
            for k, camera in enumerate(("front", "wrist")):
                error = read.observations[t].images[camera].astype(int) - picture(index, t, k)
                assert np.abs(error).mean() < 2, (index, t, camera)  # the next frame is 7 levels away
        last, before = read.observations[-1], read.observations[-2]
        np.testing.assert_array_equal(last.state_S, before.state_S)
        assert last.time_s == pytest.approx(before.time_s + 0.05)


def test_lerobots_own_loader_agrees_on_every_frame(source, dataset_root, episodes):
    theirs = LeRobotDataset("toy", root=dataset_root, video_backend="pyav", return_uint8=True)
    assert theirs.meta.robot_type == "toy"
    assert theirs.fps == 20
    assert len(theirs) == sum(map(len, episodes))
    columns, row = source.columns(), 0
    for index, written in enumerate(episodes):
        images = {camera: list(source.frames(index, camera)) for camera in ("front", "wrist")}
        for t in range(len(written)):
            item = theirs[row]
            np.testing.assert_array_equal(item["action"].numpy(), written.actions_TA[t])
            np.testing.assert_array_equal(item["expert_action"].numpy(), columns.labels_NA[row])
            np.testing.assert_array_equal(item["observation.state"].numpy(), columns.states_NS[row])
            assert item["task"] == written.observations[t].instruction == columns.instructions[index]
            assert item["next.done"].item() == (t == len(written) - 1)
            assert item["next.success"].item() == (written.success and t == len(written) - 1)
            total = written.rewards["reach"][t] + written.rewards["lift"][t]
            assert item["next.reward"].item() == pytest.approx(total, rel=1e-6)
            for camera, frames in images.items():
                theirs_hwc = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy()
                np.testing.assert_array_equal(theirs_hwc, frames[t])
            row += 1


def test_episode_meta_has_outcome_beside_provenance(source):
    assert source.episode_meta[1] == {
        "task": "task-1",
        "init_state": 1,
        "seed": 7,
        "policy": "expert",
        "noise": 0.25,
        "success": False,
        "terminated": False,
        "truncated": True,
    }


def test_extension_appends_and_leaves_the_old_files_alone(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    write_dataset([make_episode(0), make_episode(1)], root, spec)
    old = LeRobotSource(root)[1]
    videos = {path: (path.stat().st_ino, path.read_bytes()) for path in root.rglob("*.mp4")}
    write_dataset(iter([make_episode(2), make_episode(3)]), root, spec, total=2)

    source = LeRobotSource(root)
    assert [meta["init_state"] for meta in source.episode_meta] == [0, 1, 2, 3]
    np.testing.assert_array_equal(source[3].actions_TA, make_episode(3).actions_TA)
    np.testing.assert_array_equal(source[1].observations[5].images["front"], old.observations[5].images["front"])
    assert all((path.stat().st_ino, path.read_bytes()) == before for path, before in videos.items())
    theirs = LeRobotDataset("toy", root=root, video_backend="pyav", return_uint8=True)
    assert theirs.num_episodes == 4
    frame = theirs[3 * 20 + 4]["observation.images.wrist"].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(frame, source[3].observations[4].images["wrist"])
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_what_does_not_fit_is_refused_and_leaves_the_dataset_as_it_was(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    write_dataset([make_episode(0)], root, spec)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    labels_TA = make_episode(1).labels_TA.copy()
    labels_TA[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"labels: dy is nan at step 3"):
        write_dataset([make_episode(1, labels_TA=labels_TA)], root, spec)
    with pytest.raises(SpecMismatchError, match=r"next.reward"):
        write_dataset([make_episode(1, rewards={})], root, spec)
    with pytest.raises(ValueError, match="reward terms"):
        write_dataset([make_episode(1), make_episode(2, rewards={})], root, spec)
    with pytest.raises(ValueError, match="no episodes"):
        write_dataset([], root, spec)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_kill_while_extending_leaves_the_old_dataset(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    write_dataset([make_episode(0), make_episode(1)], root, spec)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    read_end, write_end = os.pipe()

    def slowly():
        yield from (make_episode(index) for index in range(2, 6))
        os.write(write_end, b"!")
        time.sleep(60)

    child = os.fork()
    if child == 0:
        try:
            write_dataset(slowly(), root, spec)
        finally:
            os._exit(1)
    assert os.read(read_end, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert (tmp_path / ".toy.writing").exists()  # it was in the middle
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    write_dataset([make_episode(2)], root, spec)
    assert len(LeRobotSource(root)) == 3
    assert not (tmp_path / ".toy.writing").exists()


@pytest.mark.parametrize("kib", [350, 500, 700])
def test_full_disk_while_extending(small_disk, make_episode, spec, kib):
    """Three sizes, so that columns, videos or metadata meet the end of the disk."""
    root = small_disk(kib) / "toy"
    write_dataset([make_episode(0)], root, spec)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    rng = np.random.default_rng(0)
    noise = [spec.random(rng) for _ in range(21)]
    with pytest.raises(StorageError) as caught:
        write_dataset((make_episode(n, observations=noise) for n in range(1, 9)), root, spec)
    assert caught.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert [path.name for path in root.parent.iterdir()] == ["toy"]


def test_reading_does_not_import_lerobot():
    code = "import sys, vla.data.batch; sys.exit('lerobot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kill_between_the_two_renamings_is_undone(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    write_dataset([make_episode(0)], root, spec)
    root.rename(tmp_path / ".toy.replaced")
    assert len(LeRobotSource(root)) == 1


def test_missing_and_unreadable(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    with pytest.raises(MissingAssetError, match="no LeRobotDataset"):
        LeRobotSource(root)
    write_dataset([make_episode(0)], root, spec)
    video = next(root.rglob("*.mp4"))
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptFileError, match="mp4"):
        LeRobotSource(root)[0]
    data = next((root / "data").rglob("*.parquet"))
    content = data.read_bytes()
    data.write_bytes(content[:-20])
    with pytest.raises(CorruptFileError, match="parquet"):
        LeRobotSource(root).columns()
    (root / "meta" / "info.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"info\.json"):
        LeRobotSource(root)


def test_nan_in_parquet_is_named(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    write_dataset([make_episode(0), make_episode(1)], root, spec)
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[27][1] = float("inf")  # episode 1, frame 7, axis dy
    column = pa.array(rows, table.schema.field("action").type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)
    with pytest.raises(NonFiniteError, match=r"action\[dy\] is inf in episode 1, frame 7"):
        LeRobotSource(root).columns()


@pytest.mark.parametrize("dtype", ["image", "video"])
def test_somebody_elses_dataset(tmp_path, picture, dtype):
    root = tmp_path / "theirs"
    features = {
        "observation.image": {"dtype": dtype, "shape": (3, 64, 64), "names": ["channels", "height", "width"]},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": {"motors": ["a", "b"]}},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    theirs = LeRobotDataset.create("theirs", 10, features, root, use_videos=dtype == "video", video_backend="pyav")
    for episode in range(2):
        for t in range(6):
            frame = {
                "observation.image": picture(episode, t, 0).transpose(2, 0, 1),
                "observation.state": np.float32([episode, t]),
                "action": np.float32([t, episode]),
                "next.done": np.array([t == 5]),
                "next.success": np.array([t == 5 and episode == 1]),
                "task": "push",
            }
            theirs.add_frame(frame)
        theirs.save_episode()
    theirs.finalize()

    source = LeRobotSource(root)
    assert [axis.name for axis in source.spec.state] == ["a", "b"]
    assert [axis.name for axis in source.spec.action] == ["0", "1"]
    assert [(c.name, c.height, c.width) for c in source.spec.cameras] == [("image", 64, 64)]
    assert source.spec.control_hz == 10
    read = source[1]
    np.testing.assert_array_equal(read.actions_TA, [[t, 1] for t in range(6)])
    np.testing.assert_array_equal(read.labels_TA, read.actions_TA)
    assert [source[i].success for i in range(2)] == [False, True]
    assert read.terminated and not read.truncated
    again = LeRobotDataset("theirs", root=root, video_backend="pyav", return_uint8=True)
    for t in range(6):
        image = again[6 + t]["observation.image"]
        image = (image * 255).round().byte() if image.is_floating_point() else image
        np.testing.assert_array_equal(read.observations[t].images["image"], image.permute(1, 2, 0).numpy())
