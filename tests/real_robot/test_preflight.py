"""Each line of the pre-flight, with the one thing wrong that it is there for; and with nothing wrong."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from real_robot.cameras.frames import Camera, CameraSpec
from real_robot.cameras.twin import TwinCamera, pattern
from real_robot.conformance.bench import Bench
from real_robot.core.arms import so101_spec
from real_robot.playing import Playing
from real_robot.preflight import ASKS, Line, PreflightError, Training, preflight, require, table
from real_robot.record.recorder import embodiment_of
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Image, Observation

SIZES = [CameraSpec(name=name, serial=name[0], height=24, width=32, rate_hz=30.0) for name in ("front", "wrist")]
SPEC = embodiment_of(so101_spec(), SIZES, 30.0)


class Stay:
    """Stays where it is, `away` from there; each answer takes `takes_s` on `Desk.timer`."""

    def __init__(self, spec: Embodiment = SPEC, *, away: float = 0.0, cameras: tuple[str, ...] = ("front", "wrist")):
        self.spec, self.horizon, self.cameras, self.away = spec, 16, cameras, away
        self.asked = 0

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self.asked += 1
        for observation in observations:
            self.spec.validate(observation, self.cameras)
        actions_HA = np.tile(observations[0].state_S + np.float32(self.away), (16, 1))
        return [ActionChunk(actions_HA=actions_HA, start_s=0.0, dt_s=self.spec.dt_s)]


class Desk:
    """A connected, limp bench with two cameras that show different things."""

    def __init__(self) -> None:
        self.bench = Bench("sts")
        self.bench.daemon.connect()
        self.now_s = 0.0
        self.twins = {
            spec.name: TwinCamera(spec, self.scene(seed), clock=self.bench.clock.now) for seed, spec in enumerate(SIZES)
        }
        for twin in self.twins.values():
            twin.start()
        self.cameras: dict[str, Camera] = dict(self.twins)
        self.takes_s = 0.02
        self.training = Training(
            low_S=np.full(6, -1.0),
            high_S=np.full(6, 1.0),
            pictures={spec.name: self.scene(seed)(0.0) for seed, spec in enumerate(SIZES)},
        )

    @staticmethod
    def scene(seed: int) -> Callable[[float], Image]:
        coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3))
        image = np.kron(coarse, np.ones((4, 4, 1))).astype(np.uint8)
        return lambda _: image

    def timer(self) -> float:
        """Each answer lies between two looks at this clock."""
        self.now_s += self.takes_s
        return self.now_s

    def lines(self, policy: Stay | None = None, **changed) -> dict[str, Line]:
        arguments = {"task": "stay", "cameras": self.cameras, "playing": Playing(execute=8), "timer": self.timer}
        arguments |= {"training": self.training} | changed
        return {line.name: line for line in preflight(self.bench.daemon, "arm", policy or Stay(), **arguments)}


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_all_is_well_and_nothing_moved(desk: Desk) -> None:
    policy = Stay()
    lines = desk.lines(policy)
    assert all(line.ok for line in lines.values()), table([*lines.values()])
    assert list(lines) == [
        *("task", "dimensions", "units", "bounds", "rate", "camera front", "camera wrist"),
        *("state", "first action", "latency", "speed"),
    ]
    require([*lines.values()])
    assert policy.asked == ASKS + 1
    assert not any(desk.bench.twin.torque_flags().values()) and float(np.abs(desk.bench.positions).max()) < 1e-3
    assert "normal: joints at full speed" in lines["speed"].detail and "p95" in lines["latency"].detail
    assert float(lines["latency"].detail.split("p50 ")[1].split(" ms")[0]) >= 20.0


def swap_axes(spec: Embodiment) -> Embodiment:
    return replace(spec, action=(spec.action[1], spec.action[0], *spec.action[2:]))


@pytest.mark.parametrize(
    ("policy", "changed", "name", "said"),
    [
        (Stay(), {"task": "  "}, "task", "no words"),
        (Stay(replace(SPEC, state=SPEC.state[:5])), {}, "dimensions", "state is"),
        (Stay(swap_axes(SPEC)), {}, "dimensions", "action is ['shoulder_lift', 'shoulder_pan'"),
        (Stay(replace(SPEC, action=tuple(replace(a, unit="deg") for a in SPEC.action))), {}, "units", "'deg', 'rad'"),
        (Stay(replace(SPEC, state=tuple(replace(a, unit="") for a in SPEC.state))), {}, "units", "none told"),
        (Stay(replace(SPEC, control_hz=200.0)), {}, "rate", "actions at 200 Hz"),
        (Stay(), {"playing": Playing(execute=17)}, "rate", "hold only 16"),
        (Stay(away=0.9), {}, "first action", "rad away at"),
        (Stay(away=7.0), {}, "first action", "position"),
        (Stay(away=float("nan")), {}, "first action", "non_finite"),
    ],
)
def test_what_does_not_fit_is_named(desk: Desk, policy: Stay, changed: dict, name: str, said: str) -> None:
    line = desk.lines(policy, **changed)[name]
    assert line.ok is (name == "first action" and policy.away == 0.9) and said in line.detail, line
    if not line.ok:
        with pytest.raises(PreflightError, match=name):
            require([line])


def test_a_camera_that_is_missing_wrong_dark_or_of_another_size(desk: Desk) -> None:
    cameras = desk.cameras
    assert "there are ['front']" in desk.lines(cameras={"front": cameras["front"]})["camera wrist"].detail
    small = TwinCamera(replace(SIZES[0], height=12), pattern(12, 32), clock=desk.bench.clock.now)
    small.start()
    line = desk.lines(cameras={**cameras, "front": small})["camera front"]
    assert line.ok is False and "12x32, the policy wants 24x32" in line.detail
    desk.twins["wrist"].darken()
    line = desk.lines()["camera wrist"]
    assert line.ok is False and "black" in line.detail
    desk.twins["wrist"].heal()
    assert desk.lines(Stay(cameras=("front",)))["camera front"].ok


def test_exchanged_cameras_are_seen_by_their_pictures(desk: Desk) -> None:
    swapped = TwinCamera(SIZES[0], desk.scene(1), clock=desk.bench.clock.now)
    other = TwinCamera(SIZES[1], desk.scene(0), clock=desk.bench.clock.now)
    swapped.start(), other.start()
    line = desk.lines(cameras={"front": swapped, "wrist": other})["cameras"]
    assert line.ok is False and "'front' shows what 'wrist' showed" in line.detail


def test_a_state_that_training_never_saw_is_a_wrong_zero_or_a_wrong_unit(desk: Desk) -> None:
    desk.bench.twin.place([0.0, -1.3, 0.0, 0.0, 0.0, 0.0])
    desk.bench.tick(5)  # a jump is believed the third time
    line = desk.lines()["state"]
    assert line.ok is False and "shoulder_lift stands at -1.30 rad, training saw -1.00 to 1.00" in line.detail
    unknown = desk.lines(training=None)["state"]
    assert unknown.ok is None and "dataset=" in unknown.detail
    require([unknown])


def test_a_policy_that_cannot_keep_up_is_refused_with_its_numbers(desk: Desk) -> None:
    """16 steps of 33 ms allow 500 ms from picture to chunk; the pictures' age counts."""
    desk.takes_s = 0.49
    assert desk.lines()["latency"].ok is False
    desk.takes_s = 0.40
    assert desk.lines()["latency"].ok is True
    desk.takes_s = 0.6
    line = desk.lines()["latency"]
    assert line.ok is False and "latency p50 6" in line.detail and "steps played per chunk: none" in line.detail


def test_bounds_past_the_soft_limits_are_told_but_not_refused(desk: Desk) -> None:
    wide = replace(SPEC, action=tuple(replace(axis, low=-4.0, high=4.0) for axis in SPEC.action))
    line = desk.lines(Stay(wide))["bounds"]
    assert line.ok is None and "past its soft limit" in line.detail
