"""`python -m scripts.evaluate` as a user runs it, on the fake suite."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.entry import entry
from scripts.evaluate import main
from sim.fake import FAKE
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.load import save_policy
from vla.policies.tiny import tiny_policy
from vla.rollout.baselines import RandomPolicy

ROOT = Path(__file__).resolve().parents[3]


def evaluate(out: Path, *overrides: str) -> str | None:
    """Runs the script in this process; None, or the line with which it fails."""
    try:
        entry("evaluate", main, ["env=fake", f"out={out}", *overrides])
    except SystemExit as stop:
        return str(stop.code)
    return None


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def save_tiny(folder: Path, spec: Embodiment) -> Path:
    rng = np.random.default_rng(0)
    states_NS = rng.standard_normal((50, spec.state_dim)).astype(np.float32)
    actions_NA = np.concatenate([spec.random_chunk(rng, 25).actions_HA for _ in range(2)])
    transforms = Transforms.fit(spec, states_NS, actions_NA)
    small = {"width": 32, "layers": 1, "heads": 2, "image_size": 32, "channels": (8, 16)}
    policy = tiny_policy(spec=spec, transforms=transforms, cameras=("agentview",), horizon=5, **small)
    save_policy(folder, policy)
    return folder


def test_the_expert_scores_and_films(tmp_path: Path) -> None:
    out = tmp_path / "out"
    overrides = ["env=fake", f"out={out}", "episodes=6", "videos=1", "workers=1", "batch=2"]
    command = [sys.executable, "-m", "scripts.evaluate", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    content = results(out)
    assert content["total"]["successes"] == 6
    assert content["provenance"]["protocol"] | {"tasks": 0} == {
        "tasks": 0, "episodes": 6, "init_states": "heldout", "seed": 0, "horizon": 1, "execute": 1, "ensemble": None
    }  # fmt: skip
    assert content["provenance"]["software"]["numpy"] == np.__version__
    assert content["provenance"]["hardware"]["cpu"] and isinstance(content["provenance"]["hardware"]["gpus"], list)
    assert len(list((out / "videos").glob("*-success.mp4"))) == 3
    assert json.loads((out / "replays.json").read_text()) == {"rows": 3, "differing": []}
    assert "6 of    6" in done.stdout
    assert "protocol.episodes was 6, is now 7" in (evaluate(out, "episodes=7", "workers=0") or "")


def test_a_run_directory_whatever_workers_and_batch(tmp_path: Path) -> None:
    policy = save_tiny(tmp_path / "policy", FAKE)
    rows = []
    for number, overrides in enumerate([("workers=0", "batch=1"), ("workers=1", "batch=3")]):
        out = tmp_path / str(number)
        common = (f"policy={policy}", "tasks=[reach_red,reach_blue]", "episodes=4", "videos=0")
        assert evaluate(out, *common, *overrides) is None
        rows.append(
            [
                {key: row[key] for key in ("task", "init_state", "seed", "success", "steps")}
                for row in results(out)["rows"]
            ]
        )
        provenance = results(out)["provenance"]
        assert provenance["protocol"]["execute"] == 5, "capped to the policy's horizon"
        assert len(provenance["policy"]["hash"]) == 64
    assert rows[0] == rows[1]


def test_a_served_policy_scores_as_it_does_here(
    serving: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("episodes=3", "workers=0", "videos=0")
    monkeypatch.setenv("GRASPLINE_TOKEN", "secret")
    with serving(RandomPolicy(spec=FAKE), token="secret") as server:
        url = server.url
        assert evaluate(tmp_path / "there", *common, f"policy={url}") is None
        monkeypatch.setenv("GRASPLINE_TOKEN", "wrong")
        assert "error: " in (evaluate(tmp_path / "refused", *common, f"policy={url}") or "")
    assert evaluate(tmp_path / "here", *common, "policy=random") is None
    there, here = results(tmp_path / "there"), results(tmp_path / "here")
    assert there["provenance"]["policy"] == {"name": url, "hash": None}
    assert [(row["success"], row["steps"]) for row in there["rows"]] == [
        (row["success"], row["steps"]) for row in here["rows"]
    ]
    assert "cannot" in (evaluate(tmp_path / "gone", *common, f"policy={url}") or ""), "nobody listens any more"


def test_a_clear_answer_comes_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("workers=0", "videos=0", "episodes=60")
    assert evaluate(tmp_path, *common, "stop_when={target: 0.5, alpha: 0.1}") is None
    content = results(tmp_path)
    assert content["stopping"] == {"target": 0.5, "alpha": 0.1, "decision": "above", "planned": 60}
    assert content["total"]["successes"] == content["total"]["episodes"] < 10 and content["total"]["low"] > 0.5
    assert content["provenance"]["stop_when"] == {"target": 0.5, "alpha": 0.1}
    assert "of 60 episodes: success is above 50.0%" in capsys.readouterr().out
    assert "stop_when.alpha was 0.1, is now 0.05" in (evaluate(tmp_path, *common, "stop_when={target: 0.5}") or "")


def test_another_body_is_refused_before_anything_runs(tmp_path: Path) -> None:
    plain = FAKE.to_dict()
    plain["control_hz"] = 10.0
    policy = save_tiny(tmp_path / "policy", Embodiment.from_dict(plain))
    assert "embodiment.control_hz differs" in (evaluate(tmp_path / "out", f"policy={policy}") or "")
    assert not (tmp_path / "out").exists()


def test_errors_make_the_exit_status_fail(tmp_path: Path) -> None:
    faulty = ("env._target_=sim.fake.FaultyEnv", "+env.faults={41: kill}", "tasks=reach_red", "videos=0")
    done = evaluate(tmp_path, *faulty, "episodes=3", "workers=1", "batch=1")
    assert done is not None and "error: 1 of 3 episodes ended in an error" in done and "init state 41" in done
    content = results(tmp_path)
    assert content["errors"] == 1 and content["total"]["successes"] == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tasks=reach_rad", "Did you mean 'reach_red'"),
        ("policy=exprt", "Did you mean 'expert'"),
        ("init_states=held", "Did you mean 'heldout'"),
        ("episodes=2", "3 tasks need at least one each"),
        ("epsodes=9", "Did you mean 'episodes'"),
        ("stop_when=0.9", "expected a table such as"),
        ("stop_when={target: 0.9, alhpa: 0.1}", "Did you mean 'stop_when.alpha'"),
        ("stop_when={target: 90}", "stop_when.target is 90"),
        ("policy=http://robot", "unknown policy"),
        ("env=fak", "Did you mean 'fake'"),
    ],
)
def test_a_mistake_is_one_line(override: str, words: str, tmp_path: Path) -> None:
    line = evaluate(tmp_path / "out", override, "workers=0")
    assert line is not None and words in line and "\n" not in line
    assert not (tmp_path / "out").exists()
