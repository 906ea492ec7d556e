"""The loader's bar, on a toy dataset: the real figure comes from `make bench`."""

from scripts.bench_loader import loader_ratio


def test_at_least_twenty_times_lerobots_rate(dataset_root):
    measured = loader_ratio(dataset_root, seconds=0.5)
    assert measured["loader_ratio"] == measured["samples_per_s"] / measured["lerobot_samples_per_s"]
    assert measured["loader_ratio"] >= 20
