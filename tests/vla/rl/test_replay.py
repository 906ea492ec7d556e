"""Replays, the chunks cut from them, the sampler and the file: identifiable numbers, and every refusal."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.vla.rl.chains import DISCOUNT, Attempt, replay_of
from vla.core.errors import CorruptFileError, MissingAssetError, NonFiniteError, UnknownNameError
from vla.rl.interfaces import ChunkBatch
from vla.rl.replay import NO_CLOCK, Replay, Rewards, concatenate
from vla.rl.replay_files import load_replay, save_replay
from vla.rl.sampling import Sampler, chunks, success_weights

LENGTHS = (5, 1, 7)


@pytest.fixture(scope="module")
def replay() -> Replay:
    """Three episodes; the observation before step t of episode e is 100 e + t, its action (e + t / 10) / 3."""
    total, ends = sum(LENGTHS), np.cumsum(LENGTHS)
    episode_N = np.repeat(np.arange(3), LENGTHS)
    step_N = np.arange(total) - np.repeat(ends - LENGTHS, LENGTHS)
    action_N = ((episode_N + step_N / 10) / 3).astype(np.float32)
    planned_N = np.minimum(4, 6 - step_N % 4)
    return Replay(
        features_ND=np.stack([100 * episode_N + step_N, step_N], axis=1).astype(np.float32),
        actions_NA=np.stack([action_N, -action_N], axis=1),
        episode_N=episode_N,
        executed_N=np.ones(total, bool),
        demo_N=episode_N == 0,
        rewards={"env": Rewards(reward_N=(10 * episode_N + step_N).astype(np.float32), provenance={"source": "test"})},
        final_features_ED=np.array([[5, 5], [101, 1], [np.nan, np.nan]], np.float32),
        final_known_E=np.array([True, True, False]),
        terminated_E=np.array([True, False, False]),
        truncated_E=np.array([False, True, True]),
        clock_limit_E=np.array([6, 1, 7]),
        success_E=np.array([True, False, False]),
        task_E=np.array([1, 0, 1]),
        tasks=("reach", "push"),
        predicted_NPA=np.broadcast_to((np.arange(6, dtype=np.float32) / 100)[None, :, None], (total, 6, 2)).copy(),
        predicted_N=planned_N,
        open_loop_N=4 - step_N % 4,
    ).with_returns("env", 0.5, "nothing")


def cut(replay: Replay, starts: list[int], horizon: int = 3, seed: int = 0, **changes) -> ChunkBatch:
    settings = {"version": "env", "discount": 0.5, "rng": np.random.default_rng(seed), **changes}
    return chunks(replay, np.array(starts), horizon=horizon, **settings)


def test_a_chunk_inside_an_episode(replay: Replay) -> None:
    batch = cut(replay, [1])
    assert batch.features_BGD[0, :, 0].tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(batch.actions_BHA[0, :, 0], torch.tensor([0.1, 0.2, 0.3]) / 3)
    assert batch.valid_BH.all() and batch.rows_BH.all() and batch.known_B.all() and not batch.terminated_B.any()
    assert batch.rewards_BH.tolist() == [[1, 2, 3]]
    assert batch.return_mc_B.tolist() == [1 + 2 / 2 + 3 / 4 + 4 / 8]
    assert (batch.success_B.item(), batch.demo_B.item(), batch.task_B.item()) == (True, True, 1)


def test_a_chunk_that_terminates_early(replay: Replay) -> None:
    """Two steps to the end, a clock that would have allowed three, two of the plan left for the tail."""
    batch = cut(replay, [3], horizon=4)
    assert batch.features_BGD[0, :, 0].tolist() == [3, 4, 5, 5, 5]
    assert batch.valid_BH.tolist() == [[True, True, False, False]]
    assert batch.rows_BH.tolist() == [[True, True, True, False]]
    assert batch.rewards_BH.tolist() == [[3, 4, 0, 0]]
    assert batch.terminated_B.item() and batch.known_B.item() and batch.length_B.item() == 2
    torch.testing.assert_close(batch.actions_BHA[0, 2:, 0], torch.tensor([0.01, 0.02]))  # planned at the last step


def test_a_chunk_cut_by_the_clock(replay: Replay) -> None:
    batch = cut(replay, [5, 11])
    assert batch.features_BGD[:, :, 0].tolist() == [[100, 101, 101, 101], [205, 206, 206, 206]]
    assert batch.rows_BH.tolist() == batch.valid_BH.tolist() == [[True, False, False], [True, True, False]]
    assert batch.known_B.tolist() == [True, False]  # of the second, the last observation is missing: not guessed
    assert not batch.terminated_B.any()
    assert not batch.features_BGD.isnan().any()


def test_what_was_not_planned_is_drawn_from_the_data(replay: Replay) -> None:
    executed = {tuple(row) for row in replay.actions_NA.tolist()}
    tails = torch.cat([cut(replay, [4], seed=seed, padding="random").actions_BHA[0, 1:] for seed in range(60)])
    assert {tuple(row) for row in tails.tolist()} == executed
    unplanned = replace(replay, predicted_NPA=None, predicted_N=None)
    torch.testing.assert_close(cut(unplanned, [4]).actions_BHA, cut(replay, [4], padding="random").actions_BHA)


def test_padding_does_not_know_how_the_chunk_ended(replay: Replay) -> None:
    """The same draws whether the episode was a success or was cut."""
    failed = replace(
        replay,
        terminated_E=np.zeros(3, bool),
        truncated_E=np.ones(3, bool),
        success_E=np.zeros(3, bool),
        clock_limit_E=np.array([5, 1, 7]),
    )
    for padding in ("predicted", "random"):
        torch.testing.assert_close(
            cut(failed, [3, 4], padding=padding).actions_BHA, cut(replay, [3, 4], padding=padding).actions_BHA
        )


def test_a_step_that_was_not_executed_ends_chunks_and_starts_none(replay: Replay) -> None:
    executed_N = replay.executed_N.copy()
    executed_N[2] = False
    gap = replace(replay, executed_N=executed_N).with_returns("env", 0.5, "nothing")
    batch = cut(gap, [0, 3])
    assert batch.valid_BH.tolist() == [[True, True, False], [True, True, False]]
    assert batch.rows_BH.tolist() == [[True, True, False], [True, True, True]]
    assert batch.terminated_B.tolist() == [False, True]
    assert batch.features_BGD[0, :, 0].tolist() == [0, 1, 2, 2]
    assert batch.known_B.all()
    assert np.isnan(gap.returns["env"].return_N[:3]).all() and np.isfinite(gap.returns["env"].return_N[3:]).all()
    assert 2 not in gap.starts
    with pytest.raises(ValueError, match="not executed"):
        cut(gap, [2])


def test_one_look_ends_chunks_where_the_player_looked(replay: Replay) -> None:
    batch = cut(replay, [0, 2, 3], one_look=True, horizon=4)
    assert batch.valid_BH.tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False]]
    assert batch.rows_BH.tolist() == batch.valid_BH.tolist()
    with pytest.raises(ValueError, match="at most 4 steps were played at one look"):
        cut(replay, [0], one_look=True, horizon=5)
    with pytest.raises(ValueError, match="no open_loop_N"):
        cut(replace(replay, open_loop_N=None), [0], one_look=True)


def test_one_look_keeps_the_schedule_of_a_look_that_ended_early(replay: Replay) -> None:
    """Step 4 starts a look of four and terminates: all the rows that the clock allows count."""
    batch = cut(replay, [4], one_look=True, horizon=4)
    assert batch.rows_BH.tolist() == [[True, True, False, False]] and batch.terminated_B.item()


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_returns_agree_with_a_loop(replay: Replay, discount: float) -> None:
    returned = replay.with_returns("env", discount, "nothing").returns["env"].return_N
    reward_N, following = replay.reward("env"), 0.0
    for n in reversed(range(len(replay))):
        if n + 1 in replay.end_E:
            following = 0.0
        following = reward_N[n] + discount * following
        assert returned[n] == pytest.approx(following, rel=1e-6)


def test_what_follows_a_truncation_is_said() -> None:
    def returns(after: str) -> list[float]:
        cost = [-1.0] * 4
        failed = Attempt(states=[0] * 5, actions=[1] * 4, rewards=cost, terminated=False)
        reached = Attempt(states=[0] * 5, actions=[1] * 4, rewards=cost[:3] + [0.0], terminated=True)
        return replay_of([failed, reached]).with_returns("env", 0.9, after).returns["env"].return_N.tolist()  # pyright: ignore

    reached = [-1 - 0.9 - 0.81, -1.9, -1.0, 0.0]
    assert returns("nothing") == pytest.approx([-3.439, -2.71, -1.9, -1.0] + reached)
    assert returns("forever") == pytest.approx([-10.0] * 4 + reached)
    assert np.isnan(returns("unknown")[:4]).all() and returns("unknown")[4:] == pytest.approx(reached)
    with pytest.raises(UnknownNameError, match="Did you mean 'forever'"):
        returns("for ever")


def test_rewards_are_rewritten_and_their_returns_with_them(replay: Replay) -> None:
    better = replay.relabelled("classifier-2", np.ones(len(replay)), {"source": "classifier", "threshold": 0.7})
    assert better.rewards["classifier-2"].provenance["threshold"] == 0.7
    assert cut(better, [0]).rewards_BH.tolist() == [[0, 1, 2]]  # the old version is still there
    with pytest.raises(ValueError, match="no returns of rewards 'classifier-2'"):
        cut(better, [0], version="classifier-2")
    ready = better.with_returns("classifier-2", 0.5, "nothing")
    assert cut(ready, [0], version="classifier-2").rewards_BH.tolist() == [[1, 1, 1]]
    again = ready.relabelled("classifier-2", np.zeros(len(replay)), {"source": "classifier"})
    assert "classifier-2" not in again.returns and "env" in again.returns


def test_other_questions_than_the_data_can_answer(replay: Replay) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown reward version 'enw'\. Did you mean 'env'"):
        cut(replay, [0], version="enw")
    with pytest.raises(ValueError, match=r"discount is 0\.6, but the returns of 'env' were made at 0\.5"):
        cut(replay, [0], discount=0.6)
    with pytest.raises(ValueError, match="horizon is 0"):
        cut(replay, [0], horizon=0)
    with pytest.raises(ValueError, match=r"starts must lie in 0\.\.12"):
        cut(replay, [13])
    with pytest.raises(UnknownNameError, match="unknown padding 'edge'"):
        cut(replay, [0], padding="edge")
    with pytest.raises(ValueError, match="below 1 with after_truncation='forever'"):
        replay.with_returns("env", 1.0, "forever")


def changed(replay: Replay, name: str, index: int, value: float) -> dict:
    array = getattr(replay, name).copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("name", "index", "value", "error", "message"),
    [
        ("features_ND", 3, np.nan, NonFiniteError, "features_ND is not finite in row 3"),
        ("actions_NA", 2, np.inf, NonFiniteError, "actions_NA is not finite in row 2"),
        ("final_features_ED", 1, np.nan, NonFiniteError, "final_features_ED is not finite in row 1"),
        ("predicted_NPA", 4, np.nan, NonFiniteError, "predicted_NPA is not finite in row 4"),
        ("actions_NA", 0, 1.2, ValueError, "actions_NA reaches 1.200: normalise, then clip"),
        ("clock_limit_E", 0, 4, ValueError, "clock_limit_E: 4 for episode 0, which took 5 steps and terminated"),
        ("clock_limit_E", 2, 12, ValueError, "clock_limit_E: 12 for episode 2, which took 7 steps and did not"),
        ("task_E", 0, 2, ValueError, "task_E must lie in 0..1"),
        ("predicted_N", 0, 7, ValueError, "predicted_N must lie in 0..6"),
        ("open_loop_N", 0, 0, ValueError, "open_loop_N must be at least 1"),
        ("episode_N", 0, 1, ValueError, "episode_N must run 0, 0"),
    ],
)
def test_bad_data_are_refused(replay: Replay, name: str, index: int, value: float, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        replace(replay, **changed(replay, name, index, value))


def test_bad_rewards_and_shapes_are_refused(replay: Replay) -> None:
    with pytest.raises(NonFiniteError, match=r"rewards\['r'\] is not finite in row 1"):
        replay.relabelled("r", np.array([0, np.nan] + [0] * 11), {})
    with pytest.raises(ValueError, match=r"rewards\['r'\] has shape \(2,\), expected N = 13"):
        replay.relabelled("r", np.zeros(2), {})
    with pytest.raises(ValueError, match=r"demo_N is int64 \(13,\), expected bool"):
        replace(replay, demo_N=np.zeros(13, np.int64))
    with pytest.raises(ValueError, match="give both or none"):
        replace(replay, predicted_N=None)


def sampler(replay: Replay, **changes) -> Sampler:
    settings = {"batch_size": 26, "horizon": 3, "version": "env", "discount": 0.5, "seed": 3, **changes}
    return Sampler(replay, **settings)


def same(a: ChunkBatch, b: ChunkBatch) -> bool:
    return all(
        torch.equal(torch.nan_to_num(getattr(a, f.name)), torch.nan_to_num(getattr(b, f.name))) for f in fields(a)
    )


def test_every_step_of_every_episode_starts_a_chunk(replay: Replay) -> None:
    starts = torch.cat([sampler(replay).batch(step).features_BGD[:, 0, 0] for step in range(4)])
    values, counts = starts.unique(return_counts=True)
    assert values.tolist() == sorted(replay.features_ND[:, 0].tolist())
    assert counts.min() >= 4  # two starts a step and a batch on average, and never far from it


def test_a_sampler_resumes_at_the_batch(replay: Replay) -> None:
    whole = [batch for batch, _ in zip(sampler(replay).batches(), range(6), strict=False)]
    later = [batch for batch, _ in zip(sampler(replay).batches(4), range(2), strict=False)]
    assert all(same(a, b) for a, b in zip(whole[4:], later, strict=True))
    assert not same(whole[0], whole[1])
    assert not same(whole[0], sampler(replay, seed=4).batch(0))


def test_weights_choose_starts(replay: Replay) -> None:
    weights_N = success_weights(replay, last=2, factor=50.0)
    assert weights_N.tolist() == [1, 1, 1, 50, 50] + [1] * 8
    starts = sampler(replay, batch_size=4000, weights_N=weights_N).batch(0).features_BGD[:, 0, 0]
    assert float(((starts == 3) | (starts == 4)).float().mean()) == pytest.approx(100 / 111, abs=0.005)
    with pytest.raises(ValueError, match=r"weights_N has shape \(3,\), expected \(13,\)"):
        sampler(replay, weights_N=np.ones(3))


def test_a_file_gives_back_every_number(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "replay.safetensors"
    save_replay(path, replay)
    assert [file.name for file in path.parent.iterdir()] == ["replay.safetensors"]
    again = load_replay(path)
    for field in fields(replay):
        if isinstance(getattr(replay, field.name), np.ndarray):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(replay, field.name))
    assert again.tasks == replay.tasks and again.rewards["env"].provenance == {"source": "test"}
    assert again.returns["env"].discount == 0.5 and again.returns["env"].after_truncation == "nothing"
    assert same(cut(again, [3, 5]), cut(replay, [3, 5]))


def test_other_files_are_refused(replay: Replay, tmp_path: Path) -> None:
    path = tmp_path / "replay.safetensors"
    with pytest.raises(MissingAssetError, match="no replay at"):
        load_replay(path)
    save_replay(path, replay)
    content = path.read_bytes()
    for damaged in (content[:-9], content[:40], b""):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError, match="cut short"):
            load_replay(path)
    path.write_bytes(content)
    arrays = load_file(path)
    save_file(arrays, path)
    with pytest.raises(CorruptFileError, match="format is 'None', expected 'graspline-replay-1'"):
        load_replay(path)


@pytest.mark.parametrize(("drop", "add"), [("demo_N", None), (None, "surprise"), ("reward/env", None)])
def test_files_with_other_arrays_are_refused(replay: Replay, tmp_path: Path, drop: str | None, add: str | None) -> None:
    path = tmp_path / "replay.safetensors"
    save_replay(path, replay)
    header = {"format": "graspline-replay-1", "replay": _header(path)}
    arrays = {name: array for name, array in load_file(path).items() if name != drop}
    save_file(arrays | ({add: np.zeros(3)} if add else {}), path, header)
    with pytest.raises(CorruptFileError, match=drop or add):
        load_replay(path)


def _header(path: Path) -> str:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["replay"]


def test_a_write_that_fails_leaves_what_was_there(replay: Replay, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "replay.safetensors"
    save_replay(path, replay)
    before = path.read_bytes()
    monkeypatch.setattr("vla.rl.replay_files.sync", _full_disk)
    with pytest.raises(OSError, match="was not written"):
        save_replay(path, replay.relabelled("more", np.zeros(13), {}))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def _full_disk(path: Path) -> None:
    raise OSError(28, "No space left on device")


def test_replays_join_end_to_end(replay: Replay) -> None:
    other = replay_of([Attempt(states=[1, 2, 3], actions=[1, 1], rewards=[0.0, 1.0], terminated=True, plan=[1] * 9)])
    other = replace(
        other,
        features_ND=np.ones((2, 2), np.float32),
        final_features_ED=np.ones((1, 2), np.float32),
        actions_NA=np.ones((2, 2), np.float32),
        predicted_NPA=np.ones((2, 9, 2), np.float32),
    )
    joined = concatenate([replay, other]).with_returns("env", 0.5, "nothing")
    assert len(joined) == 15 and joined.tasks == ("reach", "push", "chain") and joined.task_E.tolist() == [1, 0, 1, 2]
    assert joined.episode_N.tolist() == [*replay.episode_N, 3, 3]
    assert joined.rewards["env"].provenance == {"source": "test | chain"}
    assert joined.clock_limit_E.tolist() == [6, 1, 7, NO_CLOCK]
    assert same(cut(joined, [1, 7]), cut(replay, [1, 7]))
    assert cut(joined, [13]).rewards_BH.tolist() == [[0, 1, 0]]


def test_replays_that_do_not_fit_are_not_joined(replay: Replay) -> None:
    with pytest.raises(ValueError, match=r"versions \['env', 'more'\] and \['env'\]"):
        concatenate([replay, replay.relabelled("more", np.zeros(13), {})])
    with pytest.raises(ValueError, match="open_loop_N: given in some replays only"):
        concatenate([replay, replace(replay, open_loop_N=None)])


def test_an_episode_without_a_clock_counts_every_row() -> None:
    demo = replay_of([Attempt(states=[0, 1, 2], actions=[1, 1], rewards=[0.0, 1.0], terminated=True)])
    assert cut(demo, [0], horizon=6, discount=DISCOUNT).rows_BH.all()
