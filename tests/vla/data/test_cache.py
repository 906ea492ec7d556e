"""The frame cache: built once, rebuilt when the dataset changes, complete or absent."""

import errno

import numpy as np
import pytest

from vla.core.errors import SpecMismatchError, StorageError
from vla.core.spec import Camera, Embodiment
from vla.data import cache
from vla.data.cache import FrameCache
from vla.data.lerobot import LeRobotSource, write_dataset


@pytest.fixture
def root(tmp_path, make_episode, spec):
    root = tmp_path / "toy"
    write_dataset([make_episode(0, 6), make_episode(1, 9)], root, spec)
    return root


def test_frames_are_in_place_and_gathered_in_any_order(root, picture):
    images = FrameCache.open(LeRobotSource(root)).images(np.array([14, 0, 6, 6]), ["wrist", "front"])
    assert images.shape == (4, 2, 64, 64, 3) and images.dtype == np.uint8
    for b, (episode, t) in enumerate([(1, 8), (0, 0), (1, 0), (1, 0)]):
        for k, camera in enumerate((1, 0)):
            assert np.abs(images[b, k].astype(int) - picture(episode, t, camera)).mean() < 2


def test_second_opening_decodes_nothing(root, monkeypatch):
    first = FrameCache.open(LeRobotSource(root)).images(np.arange(15))

    def fail(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache, "_decode", fail)
    np.testing.assert_array_equal(FrameCache.open(LeRobotSource(root)).images(np.arange(15)), first)


def test_a_changed_dataset_is_decoded_again(root, make_episode, spec):
    FrameCache.open(LeRobotSource(root))
    write_dataset([make_episode(2, 4)], root, spec)
    source = LeRobotSource(root)
    assert len(FrameCache.open(source).images(np.arange(19))) == 19
    video = next(root.rglob("*.mp4"))
    old = cache._fingerprint(root)
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    assert cache._fingerprint(root) != old
    FrameCache.open(source)
    assert len(list((root / ".cache").iterdir())) == 1  # the stale one is gone


def test_a_failure_leaves_no_half_cache(root, monkeypatch):
    source = LeRobotSource(root)
    decode, calls = cache._decode, []

    def fail_late(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        decode(*args)

    monkeypatch.setattr(cache, "_decode", fail_late)
    with pytest.raises(StorageError) as caught:
        FrameCache.open(source)
    assert caught.value.errno == errno.ENOSPC
    assert list((root / ".cache").iterdir()) == []


def test_cameras_of_different_size(tmp_path, make_episode, spec):
    small = Embodiment(
        name="toy",
        state=spec.state,
        action=spec.action,
        cameras=(spec.cameras[0], Camera(name="wrist", height=32, width=48)),
        control_hz=20,
    )
    observations = [small.random(np.random.default_rng(t)) for t in range(5)]
    write_dataset([make_episode(0, 4, observations=observations)], tmp_path / "toy", small)
    frames = FrameCache.open(LeRobotSource(tmp_path / "toy"))
    assert frames.images(np.array([1]), ["wrist"]).shape == (1, 1, 32, 48, 3)
    with pytest.raises(SpecMismatchError, match="sizes"):
        frames.images(np.array([1]))
