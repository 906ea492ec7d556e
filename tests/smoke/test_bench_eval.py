"""What `scripts.bench_eval` makes of its measurements; the measurement itself on the envs without pixels' cost."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from scripts import bench_eval, bench_peers
from scripts.bench_eval import SETTINGS, lerobot_ways, play, ratios, save_random_policy
from scripts.bench_peers import Match
from scripts.entry import entry
from sim.fake import FAKE, FakeEnv, FaultyEnv
from sim.libero import libero_panda
from vla.core.errors import GrasplineError
from vla.policies.load import load_policy
from vla.rollout.baselines import ZeroPolicy
from vla.rollout.runner import EpisodePlan

PLAN = [EpisodePlan("reach_red", state, 0) for state in range(3)]


def row(rate: float) -> dict[str, float]:
    return {"episodes": 4.0, "seconds": 4 * 3600 / rate, "episodes_per_hour": rate}


def test_ratios_are_best_against_best() -> None:
    ways = {
        "ours, 2 envs": row(900),
        "ours, 4 envs": row(1000),
        "ours, one process": row(5000),  # not among those that are compared
        "LIBERO's loop": row(125),
        "LIBERO's loop, one process": row(900),
        "ours, drawing every step": row(200),
        "lerobot-eval, 2 processes, tried": row(250),
        "lerobot-eval, 4 processes, tried": row(100),
        "lerobot-eval, 2 processes": row(240),
    }
    expected = {"vs_render_every_step": 8, "vs_own_env_every_step": 5, "vs_lerobot_eval": 4}
    assert ratios(ways) == pytest.approx(expected)
    assert ratios({**ways, "vla-eval": row(500)})["vs_vla_eval"] == pytest.approx(2)


def test_a_plan_is_timed_and_shared_out() -> None:
    result = play(ZeroPolicy(spec=FAKE), 8, partial(FakeEnv, horizon=16), PLAN, 2, 0)
    assert (result["episodes"], result["steps"]) == (3, 48)
    assert result["episodes_per_hour"] == pytest.approx(3600 * 3 / result["seconds"])
    assert sum(result[part] for part in bench_eval.PARTS) == pytest.approx(1)
    with pytest.raises(GrasplineError, match="1 of 3 episodes"):
        play(ZeroPolicy(spec=FAKE), 8, partial(FaultyEnv, faults={1: "raise"}), PLAN, 1, 0)


def test_lerobot_plays_all_episodes_in_its_best_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(match: Match, episodes: int, folder: Path, **setting) -> float:
        assert folder.is_dir()
        calls.append((episodes, setting))
        return episodes * (1.0 if setting == SETTINGS["4 processes, soft resets"] else 2.0)

    monkeypatch.setattr(bench_eval, "lerobot_eval", fake)
    match = Match(
        suite="x", tasks=1, horizon=1, execute=1, workers=2, image_size=8, policy=tmp_path / "policy", assets=None
    )
    rows = lerobot_ways(match, 4, 32, tmp_path)
    assert calls[-1] == (32, SETTINGS["4 processes, soft resets"]) and len(calls) == len(SETTINGS) + 1
    assert rows["lerobot-eval, 4 processes, soft resets"] == {"episodes": 32, "seconds": 32, "episodes_per_hour": 3600}


def test_the_policy_is_loadable_and_answers(tmp_path: Path) -> None:
    save_random_policy(tmp_path / "policy")
    policy = load_policy(tmp_path / "policy").eval()
    observation = libero_panda(256).random(np.random.default_rng(0), "push")
    assert policy.act([observation], [0])[0].actions_HA.shape == (8, 7)


def test_a_process_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with bench_peers._process(["sh", "-c", "echo why; exit 3"], {}, log) as process:
        process.wait()
    with pytest.raises(GrasplineError, match=r"failed \(3\): why"):
        bench_peers._succeeded(process, log)


@pytest.mark.parametrize(
    ("override", "told"), [("execute=9", "1 to 8"), ("episodes=3", "multiple"), ("tune=-1", "tune")]
)
def test_wrong_settings_are_refused(override: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=told):
        entry("bench_eval", bench_eval.main, [override, f"out={tmp_path / 'out.json'}"])
    assert not list(tmp_path.iterdir()), "nothing is written"
