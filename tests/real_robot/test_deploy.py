"""A policy's episode on the twin's wire: what moves it, what stops it, and what it says afterwards."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from real_robot import deploy as module
from real_robot.cameras.frames import Camera, CameraSpec
from real_robot.cameras.twin import Timing, TwinCamera, pattern
from real_robot.conformance.bench import Bench, stored_calibration
from real_robot.core.arms import so101_spec
from real_robot.core.clock import RealClock
from real_robot.core.faults import RefusedError
from real_robot.core.supervisor import State
from real_robot.daemon import Daemon
from real_robot.deploy import Played, deploy, play_episode
from real_robot.drivers.build import so101 as so101_arm
from real_robot.playing import Playing
from real_robot.preflight import Line, PreflightError
from real_robot.record.recorder import Driver, Recorder, embodiment_of
from real_robot.twin.arms import so101
from real_robot.twin.link import VirtualLink
from vla.core.errors import GrasplineError
from vla.core.types import ActionChunk, Observation

FRONT = CameraSpec(name="front", serial="f", height=24, width=32, rate_hz=30.0)
GOAL = np.array([0.4, -0.3, 0.3, 0.2, 0.1, 0.5])
HORIZON, DT_S = 16, 1.0 / 30.0
PLAYING = Playing(execute=8)


class Reach:
    """Goes to `goal` at 0.6 rad/s from wherever it is shown to be."""

    def __init__(self, goal_J: np.ndarray = GOAL, *, cameras: tuple[str, ...] = ("front",)) -> None:
        self.spec = embodiment_of(so101_spec(normal_speed=True), [FRONT], 1.0 / DT_S)
        self.horizon, self.cameras, self.goal_J = HORIZON, cameras, goal_J
        self.seen: list[Observation] = []
        self.seeds: list[int] = []

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        (observation,), (seed,) = observations, seeds
        self.spec.validate(observation, self.cameras)
        self.seen.append(observation)
        self.seeds.append(seed)
        away_J = self.goal_J - observation.state_S
        steps_H = 0.6 * DT_S * np.arange(1, HORIZON + 1) / max(np.abs(away_J).max(), 1e-6)
        actions_HA = observation.state_S + np.minimum(steps_H, 1.0)[:, None] * away_J
        return [ActionChunk(actions_HA=actions_HA.astype(np.float32), start_s=observation.time_s, dt_s=DT_S)]


class Broken(Reach):
    """`Reach` until the n-th question, then what `fail` does."""

    def __init__(self, fail: Callable[[list[ActionChunk]], list[ActionChunk]], after: int = 3) -> None:
        super().__init__()
        self._fail, self._after = fail, after

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        chunks = super().act(observations, seeds)
        return chunks if len(self.seen) <= self._after else self._fail(chunks)


class Scene:
    """A started bench with a camera; `play` with defaults."""

    def __init__(self) -> None:
        self.bench = Bench("sts").start()
        self.camera = TwinCamera(FRONT, pattern(24, 32), clock=self.bench.clock.now)
        self.camera.start()
        self.cameras: dict[str, Camera] = {"front": self.camera}

    def play(self, policy: Reach, **changed) -> Played:
        arguments = {"task": "reach", "cameras": self.cameras, "playing": PLAYING, "seconds": 2.0, "latency_s": 0.05}
        return play_episode(self.bench.daemon, "arm", policy, **arguments | changed)

    @property
    def away(self) -> float:
        return float(np.abs(self.bench.positions - GOAL).max())


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_policy_reaches_its_goal_through_the_wire(scene: Scene) -> None:
    policy = Reach()
    played = scene.play(policy)
    assert scene.away < 0.03
    assert played.ended == "time" and played.seconds == pytest.approx(2.0, abs=0.02)
    assert played.chunks >= 6 and not played.refused and played.starved_s == 0.0
    assert played.latency_s[0] == pytest.approx(0.06, abs=0.011) and played.ticks in range(195, 203)
    assert scene.bench.state == State.PAUSED and scene.bench.daemon.leases.holder is None
    assert len(set(policy.seeds)) == len(policy.seeds)
    times = np.array([observation.time_s for observation in policy.seen])
    assert np.diff(times).min() >= 8 * DT_S - 1e-6  # a question every `execute` steps, by the pictures' time
    scene.bench.bounded()


def test_state_and_picture_are_of_one_moment(scene: Scene) -> None:
    """The camera is 80 ms behind: the state shown is that of the picture, not the newest."""
    late = TwinCamera(FRONT, pattern(24, 32), clock=scene.bench.clock.now, timing=Timing(latency_s=0.08))
    late.start()
    policy = Reach()
    scene.play(policy, cameras={"front": late})
    reports = scene.bench.reports
    times = np.array([report.state.time_s for report in reports])
    moved = []
    for observation in policy.seen[1:4]:
        nearest = reports[int(np.argmin(np.abs(times - observation.time_s)))].state
        newest = reports[int(np.argmin(np.abs(times - observation.time_s - 0.09)))].state
        np.testing.assert_allclose(observation.state_S, nearest.q_J, atol=1e-6)
        moved.append(np.abs(newest.q_J - nearest.q_J).max())
    assert max(moved) > 0.02, "the newest reading would have been another one"


def test_done_ends_it_and_the_next_episode_goes_on_from_there(scene: Scene) -> None:
    played = scene.play(Reach(), seconds=5.0, until=lambda: scene.away < 0.1)
    assert played.ended == "done" and 0.3 < played.seconds < 2.0
    again = scene.play(Reach(np.zeros(6)), seconds=5.0, until=lambda: float(np.abs(scene.bench.positions).max()) < 0.05)
    assert again.ended == "done" and not again.refused


def test_the_same_seed_is_the_same_episode() -> None:
    """On a virtual clock, wire included. Another seed asks with other seeds."""
    runs = []
    for seed in (1, 1, 2):
        scene, policy = Scene(), Reach()
        scene.play(policy, seed=seed, seconds=1.0)
        runs.append((policy.seeds, scene.bench.positions.tolist()))
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]


def test_a_policy_that_is_too_slow_starves_and_pauses(scene: Scene) -> None:
    played = scene.play(Reach(), seconds=10.0, latency_s=0.6)
    assert played.ended.startswith("latency") or "no setpoints" in played.ended, played
    assert scene.bench.state == State.PAUSED
    scene.bench.rested(0.1)


def test_nan_is_dropped_and_in_the_end_pauses(scene: Scene) -> None:
    def nan(chunks: list[ActionChunk]) -> list[ActionChunk]:
        return [ActionChunk(actions_HA=chunk.actions_HA * np.nan, start_s=0.0, dt_s=DT_S) for chunk in chunks]

    played = scene.play(Broken(nan), seconds=10.0)
    assert "no setpoints" in played.ended and played.refused["non_finite"] >= 3
    scene.bench.bounded()


def test_a_policy_that_raises_pauses_at_once(scene: Scene) -> None:
    def gone(chunks: list[ActionChunk]) -> list[ActionChunk]:
        raise GrasplineError("ws://gpu:8000: the server closed the connection twice")

    played = scene.play(Broken(gone), seconds=10.0)
    assert "policy-1: ws://gpu:8000" in played.ended and played.seconds < 1.5
    scene.bench.rested(0.5)


@pytest.mark.parametrize(("fault", "word"), [("die", "late"), ("freeze", "frozen"), ("darken", "black")])
def test_a_bad_camera_withholds_its_pictures_and_ends_the_episode(scene: Scene, fault: str, word: str) -> None:
    policy, began_s = Reach(), scene.bench.now

    def break_it() -> bool:
        if scene.bench.now > began_s + 0.8 and not broken:
            getattr(scene.camera, fault)()
            broken.append(scene.bench.now)
        return False

    broken: list[float] = []
    played = scene.play(policy, seconds=10.0, until=break_it)
    assert played.ended.startswith("observation_stale") and word in played.ended, played.ended
    assert scene.bench.now - broken[0] < 1.3
    assert max(observation.time_s for observation in policy.seen) < broken[0] + 0.2


def test_without_the_watch_a_dead_camera_would_go_on_being_shown(scene: Scene, monkeypatch) -> None:
    """The mutation: pictures pass as they are, and the policy is asked about one frozen moment without end."""
    monkeypatch.setattr("real_robot.cameras.watch.lateness", lambda *_: [])
    monkeypatch.setattr("real_robot.cameras.watch.flaws", lambda *_: [])
    scene.camera.freeze()
    assert scene.play(Reach(), seconds=1.5).ended == "time"


def test_a_first_posture_far_away_needs_a_confirmed_slow_move(scene: Scene) -> None:
    far = Broken(lambda chunks: chunks, after=100)
    far.act = lambda observations, seeds: [  # type: ignore[method-assign]
        ActionChunk(actions_HA=np.tile(GOAL, (HORIZON, 1)).astype(np.float32), start_s=0.0, dt_s=DT_S)
    ]
    refused = scene.play(far, align=False)
    assert refused.chunks == 0 and refused.refused["alignment"] >= 1 and "no setpoints" in refused.ended
    assert float(np.abs(scene.bench.positions).max()) < 0.01
    played = scene.play(far, align=True, seconds=1.0)
    assert played.ended == "time" and played.refused == {"alignment": 1} and scene.away < 0.03
    fastest = max(np.abs(r.tick.command.dq_J[:5]).max() for r in scene.bench.reports if r.tick.command is not None)
    assert fastest < 0.35


def test_an_estop_ends_it_and_says_so(scene: Scene) -> None:
    presses = iter([False] * 80 + [True])

    def press() -> bool:
        if next(presses, False):
            scene.bench.daemon.estop("test")
        return False

    played = scene.play(Reach(), until=press)
    assert "estop: by test" in played.ended and scene.bench.state == State.ESTOP
    with pytest.raises(RefusedError, match="estop"):
        scene.play(Reach())


def test_what_was_played_can_be_recorded(scene: Scene) -> None:
    recorder = Recorder(arm="arm", cameras=("front",), rate_hz=30.0)
    recorder.driver = Driver.POLICY
    scene.bench.daemon.subscribe(recorder.tick)
    recorder.start("reach")
    played = scene.play(Reach(), recorder=recorder)
    episode = recorder.finish(success=True)
    assert len(episode) == pytest.approx(30 * (played.seconds + 0.1), abs=5)
    assert episode.observations[5].images["front"].shape == (24, 32, 3)
    assert (episode.columns["source"] == Driver.POLICY).all()
    np.testing.assert_allclose(episode.actions_TA[-1], GOAL, atol=0.03)


@pytest.fixture
def live() -> Iterator[Daemon]:
    """A cell on the real clock that nobody ticks."""
    clock = RealClock()
    twin = so101(clock=clock.now)
    link = VirtualLink(twin, sleep_until=clock.sleep_until)
    calibration = stored_calibration(twin, so101_spec(normal_speed=True))
    arm = so101_arm(calibration=calibration, open_port=link.open, clock=clock, normal_speed=True)
    daemon = Daemon({"arm": arm}, clock=clock)
    daemon.connect()
    daemon.enable()
    yield daemon
    daemon.shutdown("the test is over")


def test_in_real_time_a_policy_that_hangs_does_not_stop_the_loop(live: Daemon) -> None:
    hang = threading.Event()

    def stuck(chunks: list[ActionChunk]) -> list[ActionChunk]:
        hang.wait(8.0)
        return chunks

    policy = Broken(stuck)
    policy.cameras = ()
    ticks = len(live.lateness)
    start_s = time.monotonic()
    played = play_episode(live, "arm", policy, task="reach", cameras={}, playing=PLAYING, seconds=30.0)
    passed_s = time.monotonic() - start_s
    hang.set()
    assert "no setpoints" in played.ended and 2.0 < passed_s < 6.0
    assert len(live.lateness) - ticks > 60 * passed_s
    assert live.sides["arm"].state == State.PAUSED


class Cells:
    """Opens a bench for each call and writes down what was done with it."""

    def __init__(self) -> None:
        self.speeds: list[bool] = []
        self.enabled: list[bool] = []

    @contextlib.contextmanager
    def open(self, normal_speed: bool) -> Iterator[Daemon]:
        bench = Bench("sts")
        self.speeds.append(normal_speed)
        bench.daemon.connect()
        yield bench.daemon
        self.enabled.append(bool(bench.supervisor.energised))
        bench.daemon.shutdown("over")
        assert not any(bench.twin.torque_flags().values())


def played(ended: str = "time") -> Played:
    return Played(
        ended=ended,
        seconds=1.0,
        chunks=1,
        clamped=0,
        refused={},
        verdicts={},
        filtered=0,
        ticks=100,
        starved_s=0.0,
        latency_s=(0.0, 0.0),
    )


WELL = [Line(name="units", ok=True, detail="rad"), Line(name="state", ok=None, detail="not known")]


def test_the_first_episode_is_at_reduced_speed_whatever_is_asked_for() -> None:
    for normal_speed, speeds in ((False, [False]), (True, [False, True])):
        cells, numbers, said = Cells(), [], []

        def play(_: Daemon, number: int, numbers: list[int] = numbers) -> Played:
            numbers.append(number)
            return played()

        done = deploy(cells.open, lambda _: WELL, play, episodes=3, normal_speed=normal_speed, say=said.append)
        assert (len(done), numbers, cells.speeds) == (3, [0, 1, 2], speeds) and all(cells.enabled)
        assert "state         unknown" in said[0] and "episode 2: time after 1.0 s" in said[-1]


def test_a_refused_pre_flight_gives_no_torque_and_names_the_line() -> None:
    cells = Cells()
    wrong = [*WELL, Line(name="camera wrist", ok=False, detail="the policy looks through it; there are ['front']")]
    with pytest.raises(PreflightError, match=r"camera wrist.*there are \['front'\]") as refused:
        deploy(cells.open, lambda _: wrong, lambda *_: played())
    assert "units" not in str(refused.value)


def test_an_episode_that_was_stopped_is_the_last_one() -> None:
    cells = Cells()
    done = deploy(cells.open, lambda _: WELL, lambda *_: played("stall at elbow_flex"), episodes=5, normal_speed=True)
    assert [each.ended for each in done] == ["stall at elbow_flex"] and cells.speeds == [False]


def test_the_arm_is_watched_while_the_operator_takes_time() -> None:
    """An over-hot servo during the wait: FAULT, although no episode runs."""
    cells, ticks = Cells(), []

    def wait(words: str) -> Callable[[], bool]:
        left = iter([True] * 50)
        return lambda: bool(ticks.append(words)) or next(left, False)

    def play(daemon: Daemon, number: int) -> Played:
        assert len(daemon.lateness) >= 100  # two waits of fifty ticks
        return played()

    deploy(cells.open, lambda _: WELL, play, wait=wait)
    assert {words.split(";")[0] for words in ticks} == {"the torque comes on", "episode 0 begins"}


def test_nothing_here_needs_torch() -> None:
    assert "torch" not in vars(module)
