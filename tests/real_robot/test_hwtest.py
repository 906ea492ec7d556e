"""The hardware test's figures on a twin, where what they should be is known."""

import numpy as np
import pytest

from real_robot import hwtest
from real_robot.conformance.bench import Bench
from real_robot.twin.physics import FreePlant


@pytest.fixture
def bench() -> Bench:
    return Bench("sts").start()


def test_a_swing_goes_there_and_back_and_its_figures_are_those_of_the_motors(bench: Bench) -> None:
    seen: list[np.ndarray] = []
    bench.daemon.subscribe(lambda _: seen.append(bench.positions))
    numbers = hwtest.swing(bench.daemon, "arm", 2)
    moved_TJ = np.array(seen)
    assert numbers["travel_rad"] == pytest.approx(np.ptp(moved_TJ[:, 2]), abs=2e-3)
    assert numbers["travel_rad"] == pytest.approx(hwtest.SWING_RAD, abs=0.01)
    assert np.ptp(np.delete(moved_TJ, 2, axis=1), axis=0).max() < 0.01, "the others stand"
    speeds = np.abs(np.diff(moved_TJ[:, 2])) / bench.daemon.dt_s
    assert np.percentile(speeds, 95) < 0.25
    assert np.abs(moved_TJ[-1] - moved_TJ[0]).max() < 0.01
    assert 0.0 < numbers["behind_at_rest_mrad"] + 0.1 < 5.0 and numbers["behind_worst_mrad"] < 30.0


def test_friction_shows_as_play(bench: Bench) -> None:
    """Twice the friction over the servo's stiffness: 35.6 N m/rad at the shop's P gain."""
    plant = bench.twin.plant
    assert isinstance(plant, FreePlant)
    plays = []
    for friction_nm in (0.05, 0.5):
        plant._friction = friction_nm
        plays.append(hwtest.swing(bench.daemon, "arm", 3)["play_mrad"])
    assert plays[1] - plays[0] == pytest.approx(1e3 * 2.0 * 0.45 / 35.6, rel=0.2)


def test_link_enable_hold_and_stop(bench: Bench) -> None:
    link = hwtest.link(bench.arm, bench.clock.now)
    assert link["missing_share"] == 0.0 and 1.0 < link["read_p50_ms"] < 5.0 and link["refused"] == 0.0
    held = hwtest.hold(bench.daemon, "arm", 1.0)
    assert all(held[f"drift_mrad.{name}"] < 3.0 for name in bench.spec.names)
    assert hwtest.stop(bench.daemon, "arm") == {
        "latched": 1.0,
        "latched_ms": pytest.approx(5.0, abs=6.0),
        "holds_again": 1.0,
    }
    limp = Bench("sts")
    limp.daemon.connect()
    moved = hwtest.enable(limp.daemon, "arm")
    assert set(moved) == {f"moved_mrad.{name}" for name in limp.spec.names} and max(moved.values()) < 5.0


def test_a_noisy_cable_is_seen_on_the_link(bench: Bench) -> None:
    bench.twin.servo(3).flip_bit(p=0.2)
    link = hwtest.link(bench.arm, bench.clock.now)
    assert 0.005 < link["missing_share"] < 0.2
