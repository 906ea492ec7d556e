"""The page: honest, self-contained, and alive in a real browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sim.experts import expert_for
from sim.fake import FAKE, FakeEnv, FaultyEnv
from vla.core.errors import CorruptFileError, MissingAssetError
from vla.rollout.baselines import ZeroPolicy
from vla.rollout.charts import curves, outcome_strip, percent
from vla.rollout.evaluate import evaluate
from vla.rollout.executor import RecedingHorizon
from vla.rollout.plan import make_plan
from vla.rollout.report import write_report
from vla.rollout.runner import EpisodePlan, OnResult, run_episode
from vla.rollout.video import FilmedEnv, choose_rows, film_name, write_video

TASKS = list(FakeEnv().tasks.values())
PLAN = make_plan(TASKS, 12, "heldout", 0)
IDENTITY = {
    "policy": {"name": "<b>run</b>", "hash": "0123"},
    "protocol": {"init_states": "heldout"},
    "software": {"mujoco": "3.8.1"},
}


def play(horizon: int, folder: Path | None, rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
    """The expert under a clock so short that it fails on far targets."""
    env = FakeEnv(horizon=horizon)
    if folder is not None:
        env = FilmedEnv(make_env=partial(FakeEnv, horizon=horizon), folder=folder)
    for row in rows:
        on_result(run_episode(env, expert_for(FakeEnv()), row, RecedingHorizon(1)))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "main"
    results = evaluate(partial(play, 15, None), PLAN, out, IDENTITY)
    assert 0 < results["total"]["successes"] < 12
    chosen = choose_rows(results["rows"], 1)
    play(
        15, out / "videos", [EpisodePlan(row["task"], row["init_state"], row["seed"]) for row in chosen], lambda _: None
    )
    rows = [{"step": step, "loss": 1 / step, "val_loss": 2 / step} for step in range(20, 400, 20)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')
    return out


def zero(out: Path) -> Path:
    def run(rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        for row in rows:
            on_result(run_episode(FakeEnv(), ZeroPolicy(spec=FAKE), row, RecedingHorizon(8)))

    evaluate(run, PLAN, out, {"policy": {"name": "zero"}})
    return out


def test_films_replay_their_rows_exactly(evaluated: Path) -> None:
    rows = json.loads((evaluated / "results.json").read_text())["rows"]
    films = sorted(path.name for path in (evaluated / "videos").glob("*.mp4"))
    chosen = choose_rows(rows, 1)
    assert films == sorted(film_name(row["task"], row["init_state"], row["seed"], row["success"]) for row in chosen)
    assert {row["success"] for row in chosen} == {True, False}
    for row in chosen:
        name = film_name(row["task"], row["init_state"], row["seed"], row["success"])
        with av.open(str(evaluated / "videos" / name)) as container:
            [stream] = container.streams.video
            frames = list(container.decode(stream))
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height) == (256, 128) and stream.average_rate == 10
        assert len(frames) == 1 + -(-row["steps"] // 2)


def test_a_film_shows_what_was_drawn(tmp_path: Path) -> None:
    frames = [np.full((33, 47, 3), 20 * index, np.uint8) for index in range(10)]
    write_video(tmp_path / "a/film.mp4", frames, 10)
    with av.open(str(tmp_path / "a/film.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert shown[0].shape == (32, 46, 3) and len(shown) == 10
    for index, picture in enumerate(shown):
        assert abs(picture.mean() - 20 * index) < 4
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["film.mp4"]


def test_filming_changes_nothing(tmp_path: Path) -> None:
    plain, filmed = FakeEnv(), FilmedEnv(make_env=FakeEnv, folder=tmp_path)
    for row in PLAN[:3]:
        bare = run_episode(plain, expert_for(plain), row, RecedingHorizon(1))
        shot = run_episode(filmed, expert_for(filmed.inner), row, RecedingHorizon(1))
        assert (bare.success, bare.steps) == (shot.success, shot.steps)


def test_the_page_says_what_the_results_say(evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    zeros = zero(tmp_path / "zero")
    write_report(out, [evaluated, zeros / "results.json"], training=evaluated, title="A & B", summary="one <line>")
    page = out.read_text()
    total = json.loads((evaluated / "results.json").read_text())["total"]
    assert f"{total['successes']} of 12 episodes succeeded" in page
    assert percent(total["low"]) in page and percent(total["high"]) in page
    assert "A &amp; B" in page and "one &lt;line&gt;" in page and "&lt;b&gt;run&lt;/b&gt;" in page
    assert "<b>run</b>" not in page
    assert page.count("<video") == len(list((evaluated / "videos").glob("*.mp4")))
    assert page.count('class="failure"') == 12 - total["successes"]
    assert "All played the same episodes" in page and ">zero<" in page
    assert "3.8.1" in page and "training loss" in page and "held-out loss" in page
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", page)), "no address to fetch from"


def test_errors_are_shown(tmp_path: Path) -> None:
    def run(rows: Sequence[EpisodePlan], on_result: OnResult) -> None:
        from sim.vector import EnvPool
        from vla.rollout.runner import run_in_workers

        with EnvPool(partial(FaultyEnv, faults={41: "raise"}), num_slots=1, num_workers=0) as pool:
            run_in_workers(pool, expert_for, rows, RecedingHorizon(1), on_result)

    evaluate(run, PLAN, tmp_path / "faulty", IDENTITY)
    write_report(tmp_path / "r.html", [tmp_path / "faulty"])
    page = (tmp_path / "r.html").read_text()
    assert "3 episodes ended in an error" in page and "the physics exploded" in page
    assert page.count('class="error"') == 3 and "75<span>%" in page


def test_what_is_missing_or_damaged_is_named(evaluated: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match=r"scripts\.evaluate"):
        write_report(tmp_path / "r.html", [tmp_path])
    with pytest.raises(MissingAssetError, match="none given"):
        write_report(tmp_path / "r.html", [])
    with pytest.raises(MissingAssetError, match="no metrics"):
        write_report(tmp_path / "r.html", [evaluated], training=tmp_path)
    for content in ('{"total": ', "[]", "{}"):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(CorruptFileError, match=r"results\.json"):
            write_report(tmp_path / "r.html", [tmp_path])
    assert not (tmp_path / "r.html").exists()


def test_curves_are_drawn_to_scale() -> None:
    svg = curves([(0, 1.0), (50, 0.1), (100, 0.01)], [])
    points = re.search(r'class="raw" points="([^"]+)"', svg)
    assert points is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 > y1 > y0, "a falling loss goes down the page"
    for label in (">1<", ">0.1<", ">0.01<", ">100<"):
        assert label in svg
    assert curves([(1, 0.5)], []) == "" and curves([(1, 0.0), (2, -1.0)], []) == ""


@pytest.mark.parametrize("losses", [(0.031, 0.030), (5.0, 4.99), (1e-6, 1e3), (0.2, 0.2)])
def test_curves_have_ticks_at_any_scale(losses: tuple[float, float]) -> None:
    svg = curves([(7, losses[0]), (9, losses[1])], [(8, losses[0])])
    assert 1 <= svg.count('class="grid"') <= 12
    assert "nan" not in svg


def test_strip_order_is_the_plan() -> None:
    row: dict[str, Any] = {"init_state": 1, "steps": 3}
    strip = outcome_strip(
        [
            row | {"success": True, "error": None},
            row | {"success": False, "error": "x"},
            row | {"success": False, "error": None},
        ]
    )
    assert re.findall(r'class="(\w+)" title', strip) == ["success", "error", "failure"]


PROBE = """<pre id="probe"></pre><script>
window.problems = [];
addEventListener("error", e => problems.push(String(e.message || e.target.tagName)), true);
const films = [...document.querySelectorAll("video")], began = Date.now();
const timer = setInterval(() => {
  if (films.some(v => v.readyState < 2) && Date.now() - began < 8000) return;
  clearInterval(timer);
  document.getElementById("probe").textContent = JSON.stringify({
    films: films.map(v => [v.videoWidth, v.videoHeight, v.readyState]), problems,
    fetched: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
    wide: document.documentElement.scrollWidth - innerWidth });
}, 50);
</script>"""


@pytest.mark.parametrize("size", ["1200,900", "500,900"])
def test_the_page_lives_in_chromium(evaluated: Path, tmp_path: Path, size: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    write_report(tmp_path / "r.html", [evaluated], training=evaluated)
    page = (tmp_path / "r.html").read_text()
    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=9000 --dump-dom"
    command = [chromium, *flags.split(), *more.split(), f"--window-size={size}", f"--user-data-dir={tmp_path / 'user'}"]
    done = subprocess.run([*command, f"file://{tmp_path}/probe.html"], capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    probe = json.loads(found[1].replace("&gt;", ">"))
    assert len(probe["films"]) == len(list((evaluated / "videos").glob("*.mp4"))) > 0
    assert all(film[:2] == [256, 128] and film[2] >= 2 for film in probe["films"])
    assert probe["problems"] == [] and probe["fetched"] == []
    assert probe["wide"] <= 0, "the page must not scroll sideways"
    assert "CONSOLE" not in done.stderr
