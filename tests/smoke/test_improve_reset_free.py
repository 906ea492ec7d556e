"""scripts.improve_reset_free as a user runs it, tiny; then what a user can get wrong."""

import json
from pathlib import Path

import pytest

from scripts.entry import entry
from scripts.improve_reset_free import main, make_env, read_attempts
from sim.reset_free import ResetFreeEnv
from vla.rl.player import load_player

TINY = (
    *("env.horizon=25", "demonstrations.episodes=2", "offline_steps=4", "batch=16", "seeds=[0]"),
    *("practice.steps=40", "practice.warm_up=5", "practice.apart=false", "evaluation.episodes=2"),
    *(
        f"+methods.{name}.settings.{size}"
        for name in ("filtered_bc", "cal_ql_wsrl")
        for size in ("actor_width=16", "actor_layers=1")
    ),
)


def run(out: Path, *overrides: str) -> dict:
    entry("improve_reset_free", main, [*TINY, f"base={out.parent / 'base'}", f"out={out}", *overrides])
    return json.loads((out / "results.json").read_text())


def refused(out: Path, *overrides: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(out, *overrides)
    message = stopped.value.code
    assert isinstance(message, str) and message.startswith("error: ")
    return message


def test_from_demonstrations_to_a_player_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = run(tmp_path / "run", "help.budget=7", "help.after=10")
    [one] = found["seeds"]
    assert len(one["before"]) == len(one["after"]) == 2 and found["after"]["low"] <= found["after"]["mean"]
    assert one["practice"]["steps"] >= 40 and one["practice"]["resets"]["first"] == 1
    assert one["practice"]["helped_steps"] == 7
    attempts = read_attempts(tmp_path / "run/seed_0/attempts")
    assert len(attempts) == one["practice"]["attempts"] and (tmp_path / "run/visits.png").stat().st_size > 5000
    assert "judged by oracle" in capsys.readouterr().out
    env = make_env(found["config"])
    assert isinstance(env, ResetFreeEnv)
    env.reset("goal_push", 30, 0)
    assert load_player(tmp_path / "run/seed_0").act([env.observe(())], [0])[0].actions_HA.shape == (5, 7)

    base = (tmp_path / "base/filtered_bc_0/before.json").stat().st_mtime_ns
    again = run(tmp_path / "again", "help.budget=7", "help.after=10")
    assert again["seeds"][0]["after"] == one["after"], "by turns, a run is a function of its seed"
    assert (tmp_path / "base/filtered_bc_0/before.json").stat().st_mtime_ns == base, "shared, not made again"


def test_offline_first_then_warm_started(tmp_path: Path) -> None:
    told = "methods.cal_ql_wsrl"
    small = [f"{told}.{at}settings.{size}" for at in ("", "then.") for size in ("critic_width=16", "critic_layers=1")]
    small += [f"+{told}.then.settings.{size}" for size in ("actor_width=16", "actor_layers=1")]
    found = run(tmp_path / "run", "method=cal_ql_wsrl", *small)
    assert found["seeds"][0]["practice"]["updates"] > 0
    assert json.loads((tmp_path / "run/seed_0/player.json").read_text())["algorithm"] == "wsrl"


def test_mistakes(tmp_path: Path) -> None:
    assert "Did you mean 'rlpd'" in refused(tmp_path / "a", "method=rlpt")
    assert "practice: publish is 300" in refused(tmp_path / "a", "practice.publish=300")
    assert "no trained reward in" in refused(tmp_path / "b", f"judge={tmp_path}")
    assert "other settings (discount)" in refused(tmp_path / "b", "discount=0.9", f"judge={tmp_path}")
