"""Recorded episodes against the runner, the closed form and their own plans."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sim.experts import expert_for
from sim.fake import FAKE
from sim.slow_reach import REACH_M, SLOW_REACH, STEP_M, TABLE_M, SlowReachEnv, optimal_steps
from vla.core.errors import CorruptFileError
from vla.core.types import Float
from vla.rl.features import StateFeatures
from vla.rl.gather import (
    DECAY,
    Demonstrator,
    Drift,
    Explorer,
    Recording,
    Row,
    read_recording,
    record,
    to_replay,
    write_recording,
)
from vla.rl.sampling import chunks

FEATURES = StateFeatures(spec=SLOW_REACH, instructions=["move to the goal and stay there"])
demonstrator = partial(Demonstrator, make_expert=expert_for, features=FEATURES)


def homing(features_D: Float, seed: int, speed: float = 0.8) -> Float:
    """A chunk of five steps towards the goal, without looking again."""
    left, chunk = 2 * TABLE_M * features_D[2:4], []
    for _ in range(5):
        wanted = left / STEP_M
        chunk.append(wanted * min(1.0, speed / max(np.abs(wanted).max(), 1e-9)))
        left = left - STEP_M * chunk[-1]
    return np.array(chunk, np.float32)


def explorer(execute: int, noise: float = 0.0) -> Explorer:
    return Explorer(propose=homing, features=FEATURES, execute=execute, noise=noise)


def play(number: int, controller: Demonstrator | Explorer, **env: int) -> Recording:
    return record(SlowReachEnv(**env), Row(task="reach", init_state=number, seed=number), controller, FEATURES)


@pytest.mark.parametrize("number", [0, 1, 2, 31])
def test_a_clean_demonstration_is_the_experts_episode(number: int) -> None:
    found = play(number, demonstrator())
    left = 2 * TABLE_M * found.features_TD[0, 2:4]
    assert len(found) == optimal_steps(np.zeros(2), left) and found.success and found.terminated and found.demo
    assert found.features_TD.shape == (len(found) + 1, 5)
    np.testing.assert_array_equal(found.success_T, [0] * (len(found) - 1) + [1])
    # What was executed leads from each point to the next one.
    np.testing.assert_allclose(
        np.diff(found.features_TD[:, :2], axis=0) * TABLE_M, STEP_M * found.actions_TA, atol=1e-6
    )


def test_half_speed_takes_twice_the_way() -> None:
    found = play(0, demonstrator(speed=(0.5, 0.5)))
    far = np.abs(2 * TABLE_M * found.features_TD[0, 2:4]).max()
    assert np.abs(found.actions_TA).max() <= 0.5 + 1e-6
    fewest, at_full_speed = (far - REACH_M) / (0.5 * STEP_M), (far - REACH_M) / STEP_M
    assert fewest < len(found) < fewest + 6 and len(found) > 1.6 * at_full_speed


def test_an_episode_is_a_function_of_its_row() -> None:
    mixed = demonstrator(speed=(0.4, 1.0), noise=(0.0, 0.3))
    env = SlowReachEnv()
    one = record(env, Row(task="reach", init_state=4, seed=9), mixed, FEATURES)
    record(env, Row(task="reach", init_state=5, seed=9), mixed, FEATURES)
    again = record(env, Row(task="reach", init_state=4, seed=9), mixed, FEATURES)
    other = record(env, Row(task="reach", init_state=4, seed=10), mixed, FEATURES)
    np.testing.assert_array_equal(one.actions_TA, again.actions_TA)
    assert len(one) != len(other) or (one.actions_TA != other.actions_TA).any()


def test_a_failure_is_kept_with_its_clock() -> None:
    found = play(0, demonstrator(speed=(0.2, 0.2)), horizon=12)
    assert not found.success and found.truncated and not found.terminated
    assert len(found) == found.clock_limit == 12 and not found.success_T.any()


def test_plans_say_what_was_to_come() -> None:
    """Chunks of five of which four are played: the plan's head is the action, its tail the next ones of the chunk."""
    found = play(2, explorer(execute=4, noise=0.1))
    assert not found.demo
    for t in range(len(found)):
        assert found.open_loop_T[t] == 4 - t % 4 and found.planned_T[t] == 5 - t % 4
        np.testing.assert_allclose(np.clip(found.plan_TPA[t, 0], -1, 1), found.actions_TA[t], atol=1e-6)
        if t % 4:
            np.testing.assert_array_equal(found.plan_TPA[t, 0], found.plan_TPA[t - t % 4, t % 4])
        assert not found.plan_TPA[t, found.planned_T[t] :].any()


def test_a_chunk_that_success_cuts_is_padded_with_its_own_plan() -> None:
    replay = to_replay([play(n, explorer(execute=5, noise=0.1)) for n in range(4)], {"source": "simulator"})
    replay = replay.with_returns("success", 0.9, after_truncation="nothing")
    last = int(replay.end_E[0]) - 1
    start = last - last % 5  # where the last chunk of the first episode began
    assert last - start < 4, "this chunk was cut short"
    rng = np.random.default_rng(0)
    batch = chunks(replay, np.array([start]), horizon=5, version="success", discount=0.9, rng=rng)
    planned_HA = replay.predicted_NPA[start]  # pyright: ignore[reportOptionalSubscript]
    np.testing.assert_allclose(batch.actions_BHA[0], np.clip(planned_HA, -1.05, 1.05), atol=1e-6)
    assert batch.valid_BH.sum() == last - start + 1 and batch.terminated_B.all()
    assert batch.return_mc_B.item() == pytest.approx(0.9 ** (last - start))


def test_recordings_survive_the_disk(tmp_path: Path) -> None:
    found = play(1, explorer(execute=3, noise=0.2))
    path = write_recording(tmp_path, found)
    again = read_recording(path)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptFileError, match="play it again"):
        read_recording(path)


def test_the_noises_law() -> None:
    """Standard deviation and correlation of neighbours as promised, none on the gripper."""
    drift = Drift(np.random.default_rng(0), 0.3, FAKE)
    noise_TA = np.array([drift() for _ in range(20_000)])
    assert noise_TA[:, :6].std() == pytest.approx(0.3, rel=0.03)
    correlation = np.corrcoef(noise_TA[:-1, 0], noise_TA[1:, 0])[0, 1]
    assert correlation == pytest.approx(DECAY, abs=0.03)
    assert not noise_TA[:, 6].any()
    first = np.array([Drift(np.random.default_rng(seed), 0.3, FAKE)()[0] for seed in range(4000)])
    assert first.std() == pytest.approx(0.3, rel=0.05), "stationary from the start"
