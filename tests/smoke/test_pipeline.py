"""The scripts as a user runs them, on the fake suite, a few steps; then everything a user can get wrong."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from scripts.entry import entry
from vla.data.lerobot import LeRobotSource

ROOT = Path(__file__).resolve().parents[2]
COLLECT = ("collect", "env=fake", "tasks=all", "episodes=6", "workers=1")
TRAIN = ("train", "experiment=debug_train", "steps=4", "checkpoint_every=2")
EVALUATE = ("evaluate", "env=fake", "tasks=all", "episodes=3", "workers=0", "videos=1")


def start(script: str, *overrides: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-W", "ignore", "-m", f"scripts.{script}", *map(str, overrides)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True, **pipes)


def must(script: str, *overrides: object) -> None:
    """Runs a script in this process (a new one costs seconds of imports); it must exit as if with status 0."""
    entry(script, importlib.import_module(f"scripts.{script}").main, [str(each) for each in overrides])


def refused(script: str, *overrides: object) -> str:
    """The one line of a refusal. A string given to sys.exit is printed to stderr, and the status is 1."""
    with pytest.raises(SystemExit) as stopped:
        must(script, *overrides)
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset and a policy, made by the scripts."""
    folder = tmp_path_factory.mktemp("pipeline")
    must(*COLLECT, f"out={folder / 'dataset'}")
    must(*TRAIN, f"dataset={folder / 'dataset'}", f"out={folder / 'policy'}")
    return folder


def test_exit_status_is_that_of_the_work(tmp_path: Path) -> None:
    """In real processes: 0 and files when done; 1 and one line on stderr when not."""
    done = start("evaluate", "env=fake", "policy=expert", "episodes=3", "workers=1", "videos=0", f"out={tmp_path}")
    output, _ = done.communicate(timeout=240)
    assert done.returncode == 0 and (tmp_path / "results.json").exists(), output
    wrong = start("evaluate", "env=fake", "tasks=reach_redd", f"out={tmp_path}")
    output, _ = wrong.communicate(timeout=240)
    assert wrong.returncode == 1 and "Did you mean 'reach_red'" in output and "Traceback" not in output


def test_from_nothing_to_a_page(made: Path) -> None:
    assert len(LeRobotSource(made / "dataset")) == 6
    must(*EVALUATE, f"policy={made / 'policy'}", f"out={made / 'eval'}")
    results = json.loads((made / "eval" / "results.json").read_text())
    assert len(results["rows"]) == results["total"]["episodes"] == 3
    must("report", f"results={made / 'eval'}", f"training={made / 'policy'}", f"out={made / 'report.html'}")
    page = (made / "report.html").read_text()
    assert "<video" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_expert_beats_doing_nothing(tmp_path: Path) -> None:
    scores = {}
    for policy in ("expert", "zero", "random"):
        must(*EVALUATE, "videos=0", f"policy={policy}", f"out={tmp_path / policy}")
        scores[policy] = json.loads((tmp_path / policy / "results.json").read_text())["total"]["success"]
    assert scores["expert"] == 1.0 and scores["zero"] < 1.0 and scores["random"] < 1.0


def test_two_steps_and_two_more_are_four(made: Path, tmp_path: Path) -> None:
    """Killed after the checkpoint at step 2, the same command ends with the same bits as the run that was not."""
    shutil.copytree(made / "policy", tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step_*4"):
        shutil.rmtree(path)
    (tmp_path / "run" / "model.safetensors").unlink()
    must(*TRAIN, f"dataset={made / 'dataset'}", f"out={tmp_path / 'run'}")
    expected, found = (load_file(folder / "model.safetensors") for folder in (made / "policy", tmp_path / "run"))
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)


def test_a_killed_collection_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL to the whole group: what was finished is used, and only the rest is recorded."""
    command = (*COLLECT[:-2], "episodes=12", "workers=1", f"out={tmp_path / 'dataset'}")
    process = start(*command)
    staging = tmp_path / "dataset.staging"
    deadline = time.monotonic() + 120
    while len(list(staging.glob("[!.]*.safetensors"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name for path in staging.glob("[!.]*.safetensors")}
    assert 3 <= len(kept) < 12
    must(*command)
    assert f"/{12 - len(kept)} " in capsys.readouterr().err, "only the missing ones are recorded"
    names = {
        f"{m['task']}-{m['init_state']}-{m['seed']}.safetensors"
        for m in LeRobotSource(tmp_path / "dataset").episode_meta
    }
    assert len(names) == 12 and kept <= names
    assert not staging.exists()


def test_a_dataset_is_extended_and_not_repeated(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "dataset", tmp_path / "dataset")
    before = LeRobotSource(tmp_path / "dataset").columns().states_NS
    must(*COLLECT[:-2], "episodes=7", "workers=1", f"out={tmp_path / 'dataset'}")
    source = LeRobotSource(tmp_path / "dataset")
    assert len(source) == 7
    assert (source.columns().states_NS[: len(before)] == before).all()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to mount a small disk")
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        message = refused(*COLLECT[:-2], "episodes=60", "workers=1", f"out={disk / 'dataset'}")
        assert "disk is full" in message
        staged = list((disk / "dataset.staging").glob("[!.]*.safetensors"))
        assert staged, "finished episodes are kept"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        must(*COLLECT[:-2], f"episodes={len(staged) + 1}", "workers=1", f"out={disk / 'dataset'}")
        assert len(LeRobotSource(disk / "dataset")) == len(staged) + 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_unknown_names(tmp_path: Path) -> None:
    assert "Did you mean 'reach_red'" in refused("collect", "env=fake", "tasks=[reach_redd]", f"out={tmp_path}")
    assert "Did you mean 'fake'" in refused("evaluate", "env=fakee")
    assert "Did you mean 'steps'" in refused("train", "step=3")
    assert "unknown policy 'outputs/nowhere'" in refused("evaluate", "env=fake", "policy=outputs/nowhere")


def test_unknown_camera(made: Path, tmp_path: Path) -> None:
    message = refused(*TRAIN, "cameras=[frontt]", f"dataset={made / 'dataset'}", f"out={tmp_path}")
    assert "unknown camera 'frontt'" in message


def test_no_dataset(tmp_path: Path) -> None:
    assert "dataset" in refused("train", f"dataset={tmp_path / 'none'}", f"out={tmp_path / 'run'}")


def test_another_embodiment(made: Path, tmp_path: Path) -> None:
    message = refused("evaluate", "env=tabletop", f"policy={made / 'policy'}", f"out={tmp_path}")
    assert "embodiment" in message
    message = refused("collect", "env=tabletop", "tasks=goal_press", "episodes=9", f"out={made / 'dataset'}")
    assert "embodiment" in message
    assert len(LeRobotSource(made / "dataset")) == 6, "the dataset is as it was"


def test_a_truncated_policy(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "policy", tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors" in refused(*EVALUATE, f"policy={tmp_path / 'policy'}", f"out={tmp_path / 'eval'}")


def test_weights_that_are_not_the_policys(made: Path, tmp_path: Path) -> None:
    """Whole, but changed after they were saved: here, to NaN."""
    shutil.copytree(made / "policy", tmp_path / "policy")
    path = tmp_path / "policy" / "model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(path).items()}, path)
    assert "not the file" in refused(*EVALUATE, f"policy={tmp_path / 'policy'}", f"out={tmp_path / 'eval'}")


def test_no_opengl() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "scripts.check_gl"],
        cwd=ROOT,
        env={**os.environ, "MUJOCO_GL": "osmesa_missing"},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode != 0 and done.stderr.strip().startswith("error: MUJOCO_GL=") and "Traceback" not in done.stderr
    )


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for script in ("collect", "train", "evaluate", "report", "demo"):
        must(script, "--help")
        output = capsys.readouterr().out
        assert f"python -m scripts.{script}" in output and len(output) > 300


def test_demo_leaves_what_it_promises(tmp_path: Path) -> None:
    must("demo", "experiment=debug_demo", "workers=1", f"out={tmp_path / 'demo'}")
    out = tmp_path / "demo"
    assert len(LeRobotSource(out / "dataset")) == 6
    assert (out / "policy" / "model.safetensors").exists() and (out / "report.html").exists()
    summary = json.loads((out / "summary.json").read_text())
    results = json.loads((out / "results.json").read_text())
    assert summary["episodes"] == len(results["rows"]) == 3
    assert 0 <= summary["low"] <= summary["success"] <= summary["high"] <= 1 and summary["minutes"] > 0


def test_bench_prints_each_promise_beside_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    must("bench", "episodes=2", "repeats=5", "tasks=goal_press", f"out={tmp_path / 'bench.json'}")
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["loader_ratio"] > 1 and figures["render_ratio"] > 1 and figures["render_ms_128"] > 0
    assert "loader_ratio" in capsys.readouterr().out
