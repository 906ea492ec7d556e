"""`python -m scripts.report` as a user runs it: pairs, episodes played again, results files that are not trusted."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts import evaluate, report, robustness
from scripts.entry import entry
from vla.rollout.compare import compare
from vla.rollout.evaluate import read_results
from vla.rollout.video import FilmedEnv, film_name, read_trace

SMALL = ("env=fake", "workers=0", "batch=3", "videos=0")
MAINS = {"evaluate": evaluate.main, "report": report.main, "robustness": robustness.main}


def run(script: str, *overrides: object) -> str | None:
    """Runs a script in this process; None, or the line with which it fails."""
    try:
        entry(script, MAINS[script], [str(each) for each in overrides])
    except SystemExit as stop:
        return str(stop.code)
    return None


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    for name in ("expert", "random"):
        assert run("evaluate", *SMALL, f"policy={name}", "episodes=9", f"out={folder / name}") is None
    cells = ("policy=random", "episodes=3", "kinds=[noise]", "severities=[1]", f"out={folder / 'robust'}")
    assert run("robustness", *SMALL, *cells) is None
    return folder


@pytest.fixture
def folders(played: Path, tmp_path: Path) -> Path:
    shutil.copytree(played, tmp_path / "all")
    return tmp_path / "all"


def made(folders: Path, *overrides: object) -> str:
    common = (
        "workers=0",
        f"results={folders / 'random'}",
        f"against={folders / 'expert'}",
        f"out={folders / 'r.html'}",
    )
    assert run("report", *common, *overrides) is None
    return (folders / "r.html").read_text()


def change(folder: Path, where: str, value: Any) -> None:
    """Sets one entry of a results.json, e.g. `provenance.policy.name`."""
    content = read_results(folder)
    inner = content
    *path, last = where.split(".")
    for key in path:
        inner = inner[key]
    inner[last] = value
    (folder / "results.json").write_text(json.dumps(content))


def test_pairs_are_played_again_and_the_page_says_what_compare_says(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = made(folders, "gallery=2", f"robustness={folders / 'robust'}")
    expert, random = read_results(folders / "expert"), read_results(folders / "random")
    told = compare(expert, random)
    assert f"{100 * told['difference']:+.1f} points</b> for random" in page
    assert f"p = {told['mcnemar_p']:.2g}; valid also" in page and f"p = {told['anytime_p']:.2g}. The" in page
    assert f"{100 * told['smallest_difference']:.1f} points: a smaller one" in page
    for task, counts in [
        *((name.replace("_", " "), each) for name, each in told["per_task"].items()),
        ("all tasks", told),
    ]:
        numbers = "".join(f"<td>{counts[key]}</td>" for key in ("both", "only_b", "only_a", "neither"))
        assert f"<tr><td>{task}</td>{numbers}</tr>" in page
    assert "<th>only random</th><th>only expert</th>" in page
    assert page.count('<figure class="strip">') == 4 and "cannot be shown" not in page
    assert "Success against severity" in page and "Note: not of what is evaluated" not in page
    # every film is of exactly its row: the same outcome after the same number of steps
    for name, results in (("expert", expert), ("random", random)):
        films = {path.name: path for path in (folders / name / "videos").glob("*.mp4")}
        rows = {film_name(r["task"], r["init_state"], r["seed"], r["success"]): r for r in results["rows"]}
        assert len(films) == 2 and films.keys() <= rows.keys()
        assert all(read_trace(path).steps == rows[film]["steps"] for film, path in films.items())
    assert "playing 2 episodes" in capsys.readouterr().out

    monkeypatch.setattr(FilmedEnv, "reset", lambda *_: pytest.fail("what has a film is not played again"))
    again = made(folders, "gallery=2", f"robustness={folders / 'robust'}")
    assert again == page


def test_without_a_gallery_nothing_is_played(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FilmedEnv, "reset", lambda *_: pytest.fail("played"))
    page = made(folders, "gallery=0")
    assert '<figure class="strip">' not in page and "McNemar" in page


def test_an_episode_that_comes_out_differently_is_not_shown(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_results(folders / "random")["rows"]
    rows[0]["steps"] -= 1
    change(folders / "random", "rows", rows)
    page = made(folders, "gallery=1")
    assert page.count("1 more cannot be shown: no film of exactly that episode") == 2
    assert "came out differently when played again" in page and "came out differently" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("provenance.env._target_", "os.system", "unknown env of the results 'os.system'"),
        ("provenance.env._target_", "sim.fake.os.system", "unknown env of the results 'sim.fake.os.system'"),
        ("provenance.env.horizon", [{"x": {"_target_": "os.getcwd"}}], "unknown env of the results 'os.getcwd'"),
        ("provenance.env", {}, "do not say of which env"),
        ("provenance.policy.name", "os:system", "policy os:system is neither a folder"),
        ("provenance.policy.name", "ws://elsewhere:1", "policy ws://elsewhere:1 is neither a folder"),
        ("provenance.policy.hash", "0" * 64, "is not the one that was evaluated"),
    ],
)
def test_a_results_file_names_no_code_and_no_address(
    folders: Path, monkeypatch: pytest.MonkeyPatch, where: str, value: Any, words: str
) -> None:
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("code named by a results file ran"))
    change(folders / "random", where, value)
    page = made(folders, "gallery=1", "allow_differences=true")
    assert "were not played again" in page and words in page.replace("&#x27;", "'")


def test_mistakes_are_one_line(folders: Path, tmp_path: Path) -> None:
    common = ("workers=0", f"results={folders / 'random'}", f"out={tmp_path / 'r.html'}", "gallery=0")
    assert "no results at" in (run("report", *common, f"against={tmp_path / 'none'}") or "")
    assert "no robustness.json" in (run("report", *common, f"robustness={tmp_path}") or "")
    (tmp_path / "robustness.json").write_text("[]")
    assert "not a summary of perturbations" in (run("report", *common, f"robustness={tmp_path}") or "")
    assert "Did you mean 'against'" in (run("report", *common, "agianst=x") or "")
    assert "none given" in (run("report", *common, "results=[]") or "")
    change(folders / "expert", "provenance.software.mujoco", "0.0")
    line = run("report", *common, f"against={folders / 'expert'}") or ""
    assert "not comparable: software.mujoco" in line and not (tmp_path / "r.html").exists()
    assert run("report", *common, f"against={folders / 'expert'}", "allow_differences=true") is None
    assert "NOT COMPARABLE: software.mujoco" in (tmp_path / "r.html").read_text()


def test_other_policies_charts_are_said_to_be_so(folders: Path) -> None:
    change_to = json.loads((folders / "robust" / "robustness.json").read_text())
    change_to["provenance"]["policy"]["name"] = "<other>"
    (folders / "robust" / "robustness.json").write_text(json.dumps(change_to))
    page = made(folders, "gallery=0", f"robustness={folders / 'robust'}")
    assert "Note: not of what is evaluated above, but of policy: &lt;other&gt;" in page


PROBE = """<pre id="probe"></pre><script>
const began = Date.now(), pictures = [...document.querySelectorAll(".frames img")];
pictures.forEach(each => each.loading = "eager");
const timer = setInterval(() => {
  if (pictures.some(each => !each.complete) && Date.now() - began < 8000) return;
  clearInterval(timer);
  document.getElementById("probe").textContent = JSON.stringify({
    pictures: pictures.map(each => each.naturalWidth),
    fetched: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
    wide: document.documentElement.scrollWidth - innerWidth });
}, 50);
</script>"""


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_lives_in_chromium_without_a_network(folders: Path, tmp_path: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed")
    page = made(folders, "gallery=2", f"robustness={folders / 'robust'}")
    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=9000 --dump-dom"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [chromium, *flags.split(), *more.split(), offline, f"--window-size={width},900"]
    command += [f"--user-data-dir={tmp_path / 'user'}", f"file://{tmp_path}/probe.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout)
    assert found is not None, done.stderr[-2000:]
    probe = json.loads(found[1].replace("&gt;", ">"))
    assert len(probe["pictures"]) == 2 * 6 + 2 * 2 * 6 and set(probe["pictures"]) == {256}
    assert probe["fetched"] == [] and "CONSOLE" not in done.stderr
    assert probe["wide"] <= 0, "the page must not scroll sideways"
