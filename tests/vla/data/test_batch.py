"""Batches against lerobot's own windows, raw columns and their order."""

import itertools
import threading

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from vla.core.errors import UnknownNameError
from vla.data.batch import Batch, ChunkDataset, batches

HORIZON = 8


@pytest.fixture(scope="module")
def dataset(source) -> ChunkDataset:
    return ChunkDataset(source=source, horizon=HORIZON)


def test_every_sample_is_lerobots(dataset, dataset_root):
    """Images, state, chunk, mask and instruction of every frame, against LeRobotDataset with delta_timestamps."""
    chunk = [step / 20 for step in range(HORIZON)]
    theirs = LeRobotDataset(
        "toy",
        root=dataset_root,
        delta_timestamps={"expert_action": chunk},
        video_backend="pyav",
        return_uint8=True,
    )
    assert len(dataset) == len(theirs)
    batch = dataset.batch(np.arange(len(dataset)))
    actions_NHA = dataset.transforms.inverse_actions(batch.actions_BHA.numpy())
    low_A, high_A = dataset.transforms.action.statistics.q01, dataset.transforms.action.statistics.q99
    low_A, high_A = (np.where(dataset.spec.binary_A, bound, q) for bound, q in ((-1, low_A), (1, high_A)))
    for row in range(len(theirs)):
        item = theirs[row]
        for k, camera in enumerate(("front", "wrist")):
            image = item[f"observation.images.{camera}"].permute(1, 2, 0)
            assert torch.equal(batch.images_BKHWC[row, k], image)
        np.testing.assert_array_equal(batch.mask_BH[row], ~item["expert_action_is_pad"])
        clipped_HA = np.clip(item["expert_action"].numpy(), low_A, high_A)
        np.testing.assert_allclose(actions_NHA[row], clipped_HA, atol=1e-6)
        assert batch.instructions[row] == item["task"]


def test_shapes_and_types(dataset):
    batch = dataset.batch(np.array([0, 30, 7]))
    assert batch.images_BKHWC.shape == (3, 2, 64, 64, 3) and batch.images_BKHWC.dtype == torch.uint8
    assert batch.state_BS.shape == (3, 3) and batch.state_BS.dtype == torch.float32
    assert batch.actions_BHA.shape == (3, HORIZON, 3) and batch.actions_BHA.dtype == torch.float32
    assert batch.mask_BH.shape == (3, HORIZON) and batch.mask_BH.dtype == torch.bool
    assert len(batch) == len(batch.instructions) == 3
    assert batch.to("meta").state_BS.device.type == "meta"


def test_camera_order_and_unknown_camera(source, dataset):
    swapped = ChunkDataset(source=source, horizon=HORIZON, cameras=("wrist", "front"))
    rows = np.array([3, 50])
    assert torch.equal(swapped.batch(rows).images_BKHWC, dataset.batch(rows).images_BKHWC.flip(1))
    with pytest.raises(UnknownNameError, match="wrist"):
        ChunkDataset(source=source, horizon=HORIZON, cameras=("wrst",))


def test_subset_of_episodes_has_its_own_statistics(source, episodes):
    subset = ChunkDataset(source=source, horizon=HORIZON, episodes=[1, 3])
    labels_NA = np.concatenate([episodes[1].labels_TA, episodes[3].labels_TA]).astype(np.float64)
    assert len(subset) == len(labels_NA)
    np.testing.assert_allclose(subset.transforms.action.statistics.q99, np.quantile(labels_NA, 0.99, axis=0))
    assert subset.batch(np.array([0])).mask_BH.all()
    last_of_first = len(episodes[1]) - 1
    assert subset.batch(np.array([last_of_first])).mask_BH.sum() == 1
    with pytest.raises(ValueError, match=r"\[9\] are not in 0..4"):
        ChunkDataset(source=source, horizon=HORIZON, episodes=[1, 9])


def test_target_and_given_transforms(source, dataset, episodes):
    executed = ChunkDataset(source=source, horizon=1, target="action", transforms=dataset.transforms)
    batch = executed.batch(np.arange(5))
    raw_A = dataset.transforms.actions(episodes[0].actions_TA[:5])
    np.testing.assert_array_equal(batch.actions_BHA[:, 0], raw_A)
    with pytest.raises(ValueError, match="expert_action"):
        ChunkDataset(source=source, horizon=1, target="actions")  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    return a.instructions == b.instructions and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("images_BKHWC", "state_BS", "actions_BHA", "mask_BH")
    )


def test_resuming_continues(dataset):
    whole = list(itertools.islice(batches(dataset, batch_size=6, seed=3), 6))
    rest = list(itertools.islice(batches(dataset, batch_size=6, seed=3, start_step=4), 2))
    assert all(map(same, whole[4:], rest))
    assert not same(whole[0], whole[1])
    other = next(batches(dataset, batch_size=6, seed=4))
    assert not same(whole[0], other)


def test_stopping_ends_the_thread(dataset):
    before = threading.active_count()
    stream = batches(dataset, batch_size=4, seed=0)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_in_the_thread_reaches_the_reader(dataset, monkeypatch):
    def fail(rows_B):
        raise RuntimeError("boom")

    monkeypatch.setattr(dataset, "batch", fail)
    with pytest.raises(RuntimeError, match="boom"):
        next(batches(dataset, batch_size=4, seed=0))
