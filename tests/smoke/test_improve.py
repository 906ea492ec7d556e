"""scripts.improve as a user runs it, on the slow_reach suite, a few steps; then what a user can get wrong."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from scripts.entry import entry
from scripts.improve import main

RECIPE = ("experiment=debug_improve", "algorithm.critic_layers=1", "algorithm.actor_layers=1")


def must(*overrides: object) -> None:
    entry("improve", main, [*RECIPE, *map(str, overrides)])


def refused(*overrides: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        must(*overrides)
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes in `data`, a run in `run`."""
    folder = tmp_path_factory.mktemp("improve")
    must(f"out={folder / 'run'}", f"data=[{folder / 'data'}]")
    return folder


def test_everything_is_there(made: Path) -> None:
    results = json.loads((made / "run" / "results.json").read_text())
    assert results["data"]["demonstrations"]["episodes"] == 4 and results["data"]["attempts"]["episodes"] == 0
    assert results["algorithm"] == "co_rft" and results["success"]["episodes"] == 2
    assert results["cycle_steps"]["mean"] <= 100 and results["ranking"]["passes"] in (True, False)
    assert results["provenance"]["software"]["torch"]
    rows = [json.loads(line) for line in (made / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20] and {"critic_loss", "q/policy_gap"} <= rows[0].keys()


def test_a_killed_run_ends_with_the_same_bits(made: Path, tmp_path: Path) -> None:
    """As if killed after the checkpoint at step 10; its episodes are not played again."""
    shutil.copytree(made / "run", tmp_path / "run")
    for path in ("checkpoints/step_00000020.safetensors", "player.json", "player.safetensors", "results.json"):
        (tmp_path / "run" / path).unlink()
    shutil.rmtree(tmp_path / "run" / "evaluation")
    before = sorted((path, path.stat().st_mtime_ns) for path in (made / "data").glob("*/*.safetensors"))
    must(f"out={tmp_path / 'run'}", f"data=[{made / 'data'}]")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (made / "data").glob("*/*.safetensors"))
    expected, found = (load_file(folder / "run" / "player.safetensors") for folder in (made, tmp_path))
    assert expected.keys() == found.keys() and all((expected[name] == found[name]).all() for name in expected)
    results = [json.loads((folder / "run" / "results.json").read_text()) for folder in (made, tmp_path)]
    assert results[0]["cycle_steps"] == results[1]["cycle_steps"] and results[0]["ranking"] == results[1]["ranking"]


def test_a_players_own_attempts_join_the_data(made: Path, tmp_path: Path) -> None:
    """A second round: the first round's player plays under noise, fails, and its failures are learnt from."""
    data = tmp_path / "data"
    attempts = (f"gather.attempts.player={made / 'run'}", "gather.attempts.episodes=2")
    must(f"out={tmp_path / 'run'}", f"data=[{data},{made / 'data'}]", *attempts, "gather.demonstrations.episodes=0")
    told = json.loads((tmp_path / "run" / "results.json").read_text())["data"]
    assert told["demonstrations"]["episodes"] == 4 and told["attempts"]["episodes"] == 2
    assert told["attempts"]["successes"] < 2, "a useless policy fails, and that is kept"


def test_mistakes(made: Path, tmp_path: Path) -> None:
    data = f"data=[{made / 'data'}]"
    assert "Did you mean 'co_rft'" in refused("algorithm=co_rtf")
    assert "Did you mean 'algorithm.alpha'" in refused("algorithm.alhpa=1")
    message = refused(f"out={made / 'run'}", data, "batch=8")
    assert "other settings (batch): batch was 16, is now 8" in message
    message = refused(f"out={tmp_path / 'a'}", data, "gather.demonstrations.noise=[0,0]")
    assert "noise was [0.0, 0.3], is now [0, 0]" in message
    assert "policy=state plays nothing" in refused(f"out={tmp_path / 'b'}", data, "gather.attempts.episodes=1")
    assert "expected a list of folders" in refused(f"out={tmp_path / 'c'}", "data=outputs/x")
    assert "steps is 0" in refused("steps=0")
