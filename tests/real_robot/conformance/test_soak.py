"""The long run in short: it repeats itself, adds up, and notices what is left open or sticks."""

import os

import pytest

from real_robot.conformance import soak as module
from real_robot.conformance.bench import CaseFailed
from real_robot.conformance.soak import FAULTS, soak, soaked, told


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in every burst."""
    monkeypatch.setattr(module, "SHARE", 1.0)


def test_a_seed_gives_the_same_faults_again(dense: None) -> None:
    first, again, other = (soak("sts", seconds=2.0, seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other
    assert first.faults == sum(first.kinds.values()) > 0 and set(first.kinds) <= set(FAULTS)


def test_pieces_add_up_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_S", 1.5)
    words = soaked("dxl", hours=3.0 / 3600.0, processes=2)
    parts = [soak("dxl", seconds=1.5, seed=seed) for seed in range(2)]
    assert words == told(parts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_alone_is_recovered_from(kind: str, dense: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULTS", {kind: FAULTS[kind]})
    for device in ("sts", "dxl"):
        assert soak(device, seconds=1.5).kinds[kind] > 0


def test_what_is_left_open_is_seen(dense: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(module, "FAULTS", {"leak": lambda *_: kept.append(os.dup(0))})
    with pytest.raises(CaseFailed, match="left open"):
        soak("sts", seconds=0.4)
    for number in kept:
        os.close(number)


def test_a_cell_that_sticks_is_seen(dense: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULTS", {"dead": lambda bench, _: bench.link.unplug()})
    with pytest.raises(CaseFailed, match="stuck in fault"):
        soak("sts", seconds=0.4)
