"""scripts.improve_online as a user runs it, tiny; then what a user can get wrong."""

import json
from pathlib import Path

import pytest

from scripts.entry import entry
from scripts.improve_online import main
from sim.slow_reach import SlowReachEnv
from vla.rl.player import load_player

TINY = (
    *("base.episodes=4", "base.steps=20", "rounds=1", "groups=1", "tries=3", "attempts=3", "seeds=[0]"),
    *("actor_width=16", "actor_layers=1", "evaluation.episodes=3", "env.horizon=15"),
)


def run(out: Path, *overrides: str) -> dict:
    entry("improve_online", main, [*TINY, f"out={out}", *overrides])
    return json.loads((out / "results.json").read_text())


def refused(*overrides: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        entry("improve_online", main, [*TINY, *overrides])
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ")
    return message


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo", "dpo", "raft"])
def test_every_method_leaves_results_and_a_player(method: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = run(tmp_path, f"method={method}", "actor=tokens" if method == "rloo" else "actor=laplace")
    assert found["method"] == method and len(found["seeds"][0]["steps"]["improved"]) == 3
    assert 3 <= found["seeds"][0]["episodes"] <= 9 and found["compared"]["improved"]["of"] == 3
    assert "steps a cycle" in capsys.readouterr().out
    player, env = load_player(tmp_path / "seed_0"), SlowReachEnv()
    env.reset("reach", 40, 0)
    assert player.act([env.observe(())], [0])[0].actions_HA.shape == (3, 2)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    once, again = (run(tmp_path / name, "base.steps=100") for name in ("a", "b"))
    assert once["seeds"] == again["seeds"]
    assert once["seeds"] != run(tmp_path / "c", "base.steps=100", "seeds=[1]")["seeds"]


def test_specialists_are_merged(tmp_path: Path) -> None:
    found = run(tmp_path, "merge=true")
    assert set(found["compared"]) == {"left", "right", "task_arithmetic", "ties", "breadcrumbs"}
    assert set(found["seeds"][0]["sides"]) <= {"left", "right"}


def test_mistakes(tmp_path: Path) -> None:
    assert "Did you mean 'grpo'" in refused("method=gpro", f"out={tmp_path}")
    assert "attempts is 1, expected at least 2" in refused("attempts=1", f"out={tmp_path}")
    assert "rounds is 0" in refused("rounds=0", f"out={tmp_path}")
