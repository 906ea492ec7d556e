"""Strips of frames: rows chosen evenly, partings found where they were made, and a page of limited size."""

import base64
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sim.fake import FAKE, FakeEnv, FakeExpert
from sim.perturb import Perturbed
from vla.core.errors import CorruptFileError
from vla.core.types import ActionChunk, Observation
from vla.rollout.baselines import ZeroPolicy
from vla.rollout.evaluate import evaluate
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.report import write_report
from vla.rollout.report_gallery import (
    APART_M,
    Room,
    failures_of,
    film_of,
    in_turn,
    pairs_gallery,
    parting,
    rows_to_film,
    unlike_pairs,
)
from vla.rollout.runner import EpisodePlan, OnResult, run_episode
from vla.rollout.video import FilmedEnv, Trace, film_name, read_frames, read_trace

PLAN = make_plan(list(FakeEnv().tasks.values()), 6, "heldout", 0)


class StopsAfter(FakeExpert):
    """The expert, which stands still from some step on. Chunk for chunk the same before."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        [chunk] = super().act(observations, seeds)
        if round(chunk.start_s * FAKE.control_hz) >= self._step:
            chunk.actions_HA[0] = 0.0
        return [chunk]


def film(policy: Any, folder: Path, every: int = 2) -> Path:
    """Plays and films the first row; the film's path."""
    env = FilmedEnv(make_env=FakeEnv, folder=folder / "videos", every=every)
    result = run_episode(env, policy, PLAN[0], RecedingHorizon(1))
    return folder / "videos" / film_name(result.task, result.init_state, result.seed, result.success)


def row(task: str, state: int, success: bool, **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "init_state": state,
        "seed": 7,
        "success": success,
        "terminated": success,
        "error": None,
        "steps": 9,
    } | more


def trace(states_TS: np.ndarray, unit: str = "m") -> Trace:
    steps_F, units_S = np.arange(len(states_TS)), np.array([unit] * states_TS.shape[1])
    return Trace(states_TS=states_TS.astype(np.float32), steps_F=steps_F, units_S=units_S, control_hz=10.0)


def test_rows_are_spread_over_the_tasks() -> None:
    rows = [
        row("a", 0, False),
        row("a", 1, False),
        row("a", 2, True),
        row("b", 0, False, error="x"),
        row("b", 1, False),
    ]
    assert [(each["task"], each["init_state"]) for each in in_turn(rows)] == [("a", 0), ("b", 1), ("a", 1), ("a", 2)]
    assert [(each["task"], each["init_state"]) for each in failures_of(rows, 2)] == [("a", 0), ("b", 1)]
    assert failures_of(rows, 0) == []


def test_pairs_are_those_that_ended_differently() -> None:
    mine = [row("a", 0, False), row("a", 1, True), row("a", 2, False), row("b", 0, True), row("c", 0, True)]
    theirs = [
        row("a", 1, True),
        row("a", 0, True),
        row("b", 0, False, error="x"),
        row("a", 2, False),
        row("d", 0, False),
    ]
    assert unlike_pairs(mine, theirs, 9) == [(mine[0], theirs[1])]
    wanted, others = rows_to_film(mine, theirs, 9)
    assert wanted == [mine[0], mine[2]] and others == [theirs[1]]
    assert rows_to_film(mine, None, 9) == ([mine[0], mine[2]], [])


@pytest.mark.parametrize("step", [0, 3, 7])
def test_two_episodes_part_where_they_were_made_to(tmp_path: Path, step: int) -> None:
    """Up to step n the actions are the same; so the states first differ after the action of step n, which is n + 1."""
    a, b = (
        read_trace(film(policy, tmp_path / name)) for name, policy in (("a", FakeExpert()), ("b", StopsAfter(step)))
    )
    apart = parting(a, b)
    assert apart.any == step + 1
    common = min(a.steps, b.steps) + 1
    positions = [each.states_TS[:common, [0, 1, 2, 6, 7]] for each in (a, b)]
    by_hand = next(t for t in range(common) if np.abs(positions[0][t] - positions[1][t]).max() > APART_M)
    assert apart.seen == by_hand > step + 1, "2 cm take more than one step"
    assert parting(a, a).any is None and parting(a, a).seen is None


def test_partings_in_closed_form() -> None:
    base_TS = np.zeros((8, 2))
    slow_TS = base_TS + 0.008 * np.arange(8)[:, None] * [1, 0]  # 8 mm a step: 2 cm are passed at step 3
    assert (parting(trace(base_TS), trace(slow_TS)).any, parting(trace(base_TS), trace(slow_TS)).seen) == (1, 3)
    assert parting(trace(base_TS[:3]), trace(slow_TS)).seen is None, "only as far as both go"
    # without lengths: 5 % of the 0.056 that the axis moves are 0.0028, passed at the first step
    joints = parting(trace(base_TS, "rad"), trace(slow_TS, "rad"))
    assert (joints.seen, joints.tolerance) == (1, "5 % of the range of motion")
    # a rotation vector that jumps from pi to -pi is no parting where there are lengths to go by
    flip_TS = np.array([[0.0, np.pi], [0.0, -np.pi]])
    mixed = [
        Trace(states_TS=states, steps_F=np.arange(2), units_S=np.array(["m", "rad"]), control_hz=10.0)
        for states in (np.array([[0.0, np.pi]] * 2), flip_TS)
    ]
    assert (parting(*mixed).any, parting(*mixed).seen) == (1, None)


def test_a_trace_is_of_every_step_and_names_its_frames(tmp_path: Path) -> None:
    path = film(FakeExpert(), tmp_path)
    found, env = read_trace(path), FakeEnv()
    env.reset(PLAN[0].task, PLAN[0].init_state, PLAN[0].seed)
    for t in range(found.steps):
        assert (env.observe(()).state_S == found.states_TS[t]).all()
        env.step(FakeExpert().act([env.observe(())], [0])[0].actions_HA[0])
    assert found.steps_F.tolist() == sorted({*range(0, found.steps + 1, 2), found.steps}) and found.control_hz == 20
    path.with_suffix(".npz").write_bytes(b"PK not an archive")
    with pytest.raises(CorruptFileError, match="is damaged"):
        read_trace(path)
    with pytest.raises(CorruptFileError, match="has no frame 99"):
        read_frames(path, [0, 99])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFileError, match="delete it to have it made anew"):
        read_frames(path, [0])


def test_a_film_of_another_course_is_not_shown(tmp_path: Path) -> None:
    path = film(FakeExpert(), tmp_path)
    steps = read_trace(path).steps
    played = {"task": PLAN[0].task, "init_state": PLAN[0].init_state, "seed": PLAN[0].seed, "success": True}
    assert film_of(played | {"steps": steps}, tmp_path) == path
    assert film_of(played | {"steps": steps + 1}, tmp_path) is None
    assert film_of(played | {"steps": steps, "success": False}, tmp_path) is None
    path.with_suffix(".npz").unlink()
    assert film_of(played | {"steps": steps}, tmp_path) is None


def test_the_pictures_are_those_of_the_times_below_them(tmp_path: Path) -> None:
    """Each picture, decoded from the page, is nearest to what the env looked like at the time that stands under it."""
    rows = []
    for name, policy in (("a", FakeExpert()), ("b", StopsAfter(4))):
        path = film(policy, tmp_path / name, every=1)
        rows.append(row(PLAN[0].task, PLAN[0].init_state, name == "a", seed=PLAN[0].seed, steps=read_trace(path).steps))
    folders = (tmp_path / "a", tmp_path / "b")
    html = pairs_gallery([(rows[0], rows[1])], folders, ("left", "<right>"), Room(10**7))
    assert "&lt;right&gt;" in html and "first differ at step 5 (0.25 s)" in html
    seen = re.search(r"2 cm first at step (\d+) \((.+?) s\), in the second column", html)
    assert seen is not None
    cells = re.findall(r'<span class="(\w*)"><img [^>]*base64,([^"]+)"><i>(?:end, )?([\d.]+) s', html)
    assert len(cells) == 12 and {cells[1][2], cells[7][2]} == {seen[2]} and {cells[1][0], cells[7][0]} == {"marked"}
    for number, (_, data, time_s) in enumerate(cells):
        shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), 1), cv2.COLOR_BGR2RGB)
        path = folders[number // 6] / "videos" / film_name(PLAN[0].task, PLAN[0].init_state, PLAN[0].seed, number < 6)
        drawn = read_frames(path, range(read_trace(path).steps + 1))
        away = {t: np.abs(drawn[t].astype(int) - shown).mean() for t in drawn}
        assert away[round(float(time_s) * 20)] < min(away.values()) + 0.02, (
            "another moment than the one it is said to be"
        )


def test_room_is_counted_in_base64() -> None:
    room = Room(100)
    assert room.take(60) and not room.take(16) and room.take(15) and room.left == 0
    assert len(base64.b64encode(bytes(60))) == 80


# --- the size of a page ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five_hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 rows, each with a real film of about the size of LIBERO's; noise on the pictures makes them so large."""
    folder = tmp_path_factory.mktemp("large")
    plan = make_plan(list(FakeEnv().tasks.values()), 500, "heldout", 0)

    def run(rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        env, zero = FakeEnv(), ZeroPolicy(spec=FAKE)
        for number, each in enumerate(rows):
            policy = zero if number % 2 else FakeExpert()
            on_result(run_episode(env, policy, each, RecedingHorizon(policy.horizon)))

    results = evaluate(run, plan, folder, {"policy": {"name": "half"}})
    noisy = partial(Perturbed, make_env=partial(FakeEnv, horizon=100), kind="noise", severity=0.5)
    env = FilmedEnv(make_env=noisy, folder=folder / "made")
    run_episode(env, ZeroPolicy(spec=FAKE), plan[1], RecedingHorizon(8))
    [made] = (folder / "made").glob("*.mp4")
    assert 100_000 < made.stat().st_size < 300_000, made.stat().st_size
    (folder / "videos").mkdir()
    for each in results["rows"]:
        name = film_name(each["task"], each["init_state"], each["seed"], each["success"])
        (folder / "videos" / name).hardlink_to(made)
    return folder


def test_a_page_of_five_hundred_episodes_stays_small_and_says_what_it_left_out(
    five_hundred: Path, tmp_path: Path
) -> None:
    films = list((five_hundred / "videos").glob("*.mp4"))
    whole = sum(path.stat().st_size for path in films) * 4 / 3
    assert len(films) == 500 and whole > 60e6, "the films alone are more than the page may be"
    write_report(tmp_path / "r.html", [five_hundred])
    size = (tmp_path / "r.html").stat().st_size
    assert 15e6 < size < 30e6
    page = (tmp_path / "r.html").read_text()
    left_out = re.search(r"(\d+) of 500 films \(([\d.]+) MB\) are left out", page)
    assert left_out is not None and int(left_out[1]) + page.count("<video") == 500
    by_task = [page.count(f"</span> reach {colour}<br>") for colour in ("red", "green", "blue")]
    assert max(by_task) - min(by_task) <= 1, "what is shown is spread over the tasks"
    # the bug that this guards against: with no limit to speak of, the page is as large as its films
    write_report(tmp_path / "all.html", [five_hundred], media_mb=50)
    assert (tmp_path / "all.html").stat().st_size > 45e6


def test_a_small_limit_leaves_strips_out_too(five_hundred: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [five_hundred], media_mb=0.0)
    page = (tmp_path / "r.html").read_text()
    assert "500 of 500 films" in page and "base64," not in page
    assert "6 more cannot be shown: no film of exactly that episode" in page
