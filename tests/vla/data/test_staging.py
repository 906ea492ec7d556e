"""A staged episode comes back bit for bit, or not at all."""

import errno
import resource

import numpy as np
import pytest

from vla.core.errors import CorruptFileError, MissingAssetError, StorageError
from vla.core.spec import Embodiment
from vla.data.staging import read_staged, write_staged


@pytest.fixture
def episode(make_episode, spec: Embodiment):
    """With noise images: PNG must not lose a bit of them."""
    rng = np.random.default_rng(0)
    observations = [spec.random(rng, instruction=f"step {t}") for t in range(13)]
    return make_episode(2, 12, observations=observations)


def test_round_trip_is_bit_exact(tmp_path, episode):
    path = write_staged(tmp_path / "new", "episode-7", episode)
    assert path == tmp_path / "new" / "episode-7.safetensors"
    assert [file.name for file in path.parent.iterdir()] == ["episode-7.safetensors"]
    read = read_staged(path)
    for name in ("actions_TA", "labels_TA"):
        np.testing.assert_array_equal(getattr(read, name), getattr(episode, name))
        assert getattr(read, name).dtype == np.float32
    assert read.meta == episode.meta
    assert (read.terminated, read.truncated, read.success) == (
        episode.terminated,
        episode.truncated,
        episode.success,
    )
    for term, reward_T in episode.rewards.items():
        np.testing.assert_array_equal(read.rewards[term], reward_T)
    assert len(read.observations) == 13
    for mine, theirs in zip(read.observations, episode.observations, strict=True):
        np.testing.assert_array_equal(mine.state_S, theirs.state_S)
        assert (mine.instruction, mine.time_s) == (theirs.instruction, theirs.time_s)
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(mine.images[camera], theirs.images[camera])


def test_images_that_were_not_rendered_stay_absent(tmp_path, make_episode, spec):
    rng = np.random.default_rng(0)
    seen, blind = spec.random(rng), spec.random(rng)
    blind.images.pop("wrist")  # type: ignore[attr-defined]
    read = read_staged(write_staged(tmp_path, "e", make_episode(0, 2, observations=[seen, blind, seen])))
    assert [sorted(observation.images) for observation in read.observations] == [
        ["front", "wrist"],
        ["front"],
        ["front", "wrist"],
    ]
    np.testing.assert_array_equal(read.observations[2].images["wrist"], seen.images["wrist"])


def test_numpy_scalars_in_meta(tmp_path, make_episode):
    meta = {"seed": np.int64(3), "noise": np.float32(0.25), "clean": np.bool_(True)}
    assert read_staged(write_staged(tmp_path, "e", make_episode(0, 2, meta=meta))).meta == {
        "seed": 3,
        "noise": 0.25,
        "clean": True,
    }


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_truncated_file(tmp_path, episode, keep):
    path = write_staged(tmp_path, "e", episode)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(CorruptFileError, match=r"e\.safetensors"):
        read_staged(path)


def test_missing_file(tmp_path):
    with pytest.raises(MissingAssetError):
        read_staged(tmp_path / "none.safetensors")


def test_full_disk_leaves_nothing_behind(small_disk, episode):
    full_disk = small_disk(32)
    with pytest.raises(OSError) as caught:
        write_staged(full_disk, "e", episode)
    assert isinstance(caught.value, StorageError)
    assert caught.value.errno == errno.ENOSPC
    assert "episode 'e' was not written" in str(caught.value)
    assert list(full_disk.iterdir()) == []


def test_file_size_limit_keeps_what_was_there(tmp_path, make_episode, episode):
    small = write_staged(tmp_path, "e", make_episode(0, 1))
    before, limits = small.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(StorageError) as caught:
            write_staged(tmp_path, "e", episode)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert [file.name for file in tmp_path.iterdir()] == ["e.safetensors"]
    assert small.read_bytes() == before
