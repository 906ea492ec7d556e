"""A player on disk and in an env: the same chunk before and after, alone and in a batch; damage is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sim.slow_reach import SLOW_REACH, SlowReachEnv
from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError, NonFiniteError, UnknownNameError
from vla.rl.features import StateFeatures
from vla.rl.player import ChunkPlayer, load_player, make_algorithm, player_hash, problem_of, save_player
from vla.rollout.executor import RecedingHorizon
from vla.rollout.runner import EpisodePlan, run_episode

FEATURES = StateFeatures(spec=SLOW_REACH, instructions=["move to the goal and stay there"])
PROBLEM = problem_of(FEATURES, horizon=4, discount=0.97, tasks=1)
SETTINGS = {"actor_width": 16, "critic_width": 16, "candidates": 4}


def saved(folder: Path) -> ChunkPlayer:
    torch.manual_seed(0)
    algorithm = make_algorithm("q_chunking", PROBLEM, SETTINGS)
    player = ChunkPlayer(features=FEATURES, algorithm=algorithm, horizon=4)
    save_player(folder, player=player, name="q_chunking", problem=PROBLEM, settings=SETTINGS)
    return player


def observations(count: int) -> list:
    env, found = SlowReachEnv(), []
    for number in range(count):
        env.reset("reach", number, 0)
        found.append(env.observe(()))
    return found


def test_it_plays_the_same_from_disk(tmp_path: Path) -> None:
    player, seen = saved(tmp_path), observations(3)
    again = load_player(tmp_path)
    assert again.horizon == 4 and again.cameras == () and again.spec == SLOW_REACH
    for one, other in zip(player.act(seen, [1, 2, 3]), again.act(seen, [1, 2, 3]), strict=True):
        np.testing.assert_array_equal(one.actions_HA, other.actions_HA)
    features_D, chunks_NHA = FEATURES(seen[0]), np.zeros((5, 4, 2), np.float32)
    np.testing.assert_array_equal(player.judge(features_D, chunks_NHA), again.judge(features_D, chunks_NHA))
    row = EpisodePlan("reach", 31, 4)
    results = [run_episode(SlowReachEnv(), each, row, RecedingHorizon(4)) for each in (player, again)]
    assert results[0].steps == results[1].steps


def test_a_chunk_depends_on_its_own_row_alone(tmp_path: Path) -> None:
    player, seen = saved(tmp_path), observations(4)
    together = [chunk.actions_HA for chunk in player.act(seen, [7, 8, 9, 10])]
    alone = [player.act([each], [seed])[0].actions_HA for each, seed in zip(seen, [7, 8, 9, 10], strict=True)]
    np.testing.assert_array_equal(together, alone)
    assert (player.act(seen[:1], [11])[0].actions_HA != together[0]).any(), "its draws come from the seed"
    assert np.abs(together).max() <= 1


def test_every_algorithm_with_a_config_can_be_made() -> None:
    """The name of the file is the name in configs/algorithm, and its settings are those of the YAML."""
    from omegaconf import OmegaConf

    from scripts.entry import CONFIG_DIR

    found = sorted((CONFIG_DIR / "algorithm").glob("*.yaml"))
    assert found
    for path in found:
        settings = dict(OmegaConf.load(path))
        assert str(settings.pop("_target_")).split(".")[-2] == path.stem
        small = {key: 8 if key.endswith("_width") else value for key, value in settings.items()}
        make_algorithm(path.stem, PROBLEM, small)


def test_wrong_names_and_settings() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'co_rft'"):
        make_algorithm("co_rtf", PROBLEM, {})
    with pytest.raises(UnknownNameError):
        make_algorithm("../../os", PROBLEM, {})
    with pytest.raises(GrasplineError, match=r"algorithm 'bc'.*widht"):
        make_algorithm("bc", PROBLEM, {"widht": 3})


def test_damage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingAssetError, match=r"player\.json is missing"):
        load_player(tmp_path / "nowhere")
    saved(tmp_path)
    before = player_hash(tmp_path)
    recipe = json.loads((tmp_path / "player.json").read_text())
    (tmp_path / "player.json").write_text(json.dumps({**recipe, "algorithm": "os.system"}))
    assert player_hash(tmp_path) != before
    with pytest.raises(UnknownNameError, match="algorithm"):
        load_player(tmp_path)
    (tmp_path / "player.json").write_text(json.dumps({**recipe, "problem": {**recipe["problem"], "features": 6}}))
    with pytest.raises(CorruptFileError):
        load_player(tmp_path)
    (tmp_path / "player.json").write_text(json.dumps(recipe))
    state = tmp_path / "player.safetensors"
    state.write_bytes(state.read_bytes()[:-3])
    with pytest.raises(CorruptFileError, match="not the file that"):
        load_player(tmp_path)


def test_damaged_weights_do_not_move_a_robot(tmp_path: Path) -> None:
    player = saved(tmp_path)
    for weight in vars(player.algorithm)["actor"].parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        player.act(observations(1), [0])


def test_a_longer_horizon_than_the_policys_chunk_is_refused() -> None:
    class WithBase(StateFeatures):
        base_horizon = 3

    features = WithBase(spec=SLOW_REACH, instructions=["x"])
    with pytest.raises(GrasplineError, match="horizon is 4"):
        problem_of(features, horizon=4, discount=0.9, tasks=1)
