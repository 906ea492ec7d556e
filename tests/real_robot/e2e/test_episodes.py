"""Demonstrations and attempts through filter, wire and physics."""

import numpy as np
import pytest

from real_robot.e2e.cell import RATE_HZ, Cell, camera_specs, table
from real_robot.e2e.episodes import CONTACT_RAD, Bench, attempt, demonstrate
from real_robot.e2e.expert import Reach, plan, waypoints
from real_robot.playing import Playing
from real_robot.record.recorder import embodiment_of
from real_robot.twin.pick_scene import HOME, INSTRUCTION, PickScene, layout
from vla.core.types import ActionChunk


@pytest.fixture(scope="module")
def bench() -> Bench:
    scene = PickScene(image_size=32)
    calibration, memory = Cell(scene, serial=5).calibrate()
    return Bench(scene=scene, calibration=calibration, memory=memory, serial=5, obstacles=table())


@pytest.fixture(scope="module")
def reach(bench: Bench) -> Reach:
    return Reach(bench.cell(0, 0).arm.spec)


class Knowing:
    """A policy that knows where the cube is, by the time that has passed since its first picture."""

    horizon, cameras = 16, ("front", "wrist")

    def __init__(self, reach: Reach, init_state: int, *, offset_m: float = 0.0) -> None:
        self.spec = embodiment_of(reach.spec, camera_specs(32), RATE_HZ)
        rng = np.random.default_rng(0)
        self._way = plan(reach, np.array(HOME), waypoints(layout(init_state), CONTACT_RAD), rng=rng)
        self._offset = offset_m / 0.25  # of the shoulder's pan, at the cube's distance
        self._start_s: float | None = None

    def act(self, observations, seeds) -> list[ActionChunk]:
        (observation,) = observations
        self._start_s = observation.time_s if self._start_s is None else self._start_s
        assert observation.instruction == INSTRUCTION and not observation.privileged
        at_H = observation.time_s - self._start_s + self.spec.dt_s * np.arange(1, self.horizon + 1)
        actions_HA = np.stack([self._way.clean(t) for t in at_H]).astype(np.float32)
        actions_HA[:, 0] += self._offset
        return [ActionChunk(actions_HA=actions_HA, start_s=observation.time_s, dt_s=self.spec.dt_s)]


def test_a_demonstration_delivers_and_says_what_was_meant(bench: Bench, reach: Reach) -> None:
    episode = demonstrate(bench, reach, 0, noise_rad=0.03)
    assert episode.success and episode.terminated
    assert set(episode.observations[0].images) == {"front", "wrist"}
    off_TA = np.abs(episode.actions_TA - episode.labels_TA)
    assert 0.01 < off_TA[:, :5].max() < 0.25, "it was pushed, and the labels were not"
    again = demonstrate(bench, reach, 0, noise_rad=0.03)
    assert np.array_equal(again.actions_TA, episode.actions_TA)
    assert np.array_equal(again.observations[40].images["front"], episode.observations[40].images["front"])


def test_without_friction_nothing_is_lifted(bench: Bench, reach: Reach) -> None:
    """The mutation that shows what holds the cube: 25 N on two pads must carry 0.3 N, which 0.002 cannot."""
    model = bench.scene.model
    before = model.geom_friction.copy()
    try:
        model.geom_friction[:, 0] = 0.002
        assert not demonstrate(bench, reach, 0).success
    finally:
        model.geom_friction[:] = before


def test_a_policy_that_knows_delivers_and_one_that_reaches_beside_does_not(bench: Bench, reach: Reach) -> None:
    playing = Playing(execute=8)
    good = attempt(bench, Knowing(reach, 31), 31, playing=playing, seconds=15.0, latency_s=0.06)
    assert good.success and good.ended == "done" and not good.estops and not good.faults and not good.violations
    assert 4.0 < good.seconds < 12.0 and good.refused == {} and good.chunks > 8
    assert 0 <= good.filtered < good.ticks
    bad = attempt(bench, Knowing(reach, 31, offset_m=0.06), 31, playing=playing, seconds=10.0, latency_s=0.06)
    assert not bad.success and bad.ended == "time" and not bad.estops


@pytest.mark.slow
def test_the_script_delivers_from_nine_of_ten_states(bench: Bench, reach: Reach) -> None:
    assert sum(demonstrate(bench, reach, i, noise_rad=0.03).success for i in range(30, 40)) >= 9
