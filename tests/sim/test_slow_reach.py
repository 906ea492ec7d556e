"""The slow_reach suite against its closed form and against brute force."""

import itertools

import numpy as np
import pytest

from sim.slow_reach import HOLD, REACH_M, STEP_M, SlowReachEnv, SlowReachExpert, optimal_steps
from vla.rollout.executor import RecedingHorizon
from vla.rollout.runner import EpisodePlan, run_episode


def start_and_goal(env: SlowReachEnv, row: EpisodePlan) -> tuple[np.ndarray, np.ndarray]:
    env.reset(row.task, row.init_state, row.seed)
    truth = env.observe(()).privileged
    return truth["point"], truth["goal"]


@pytest.mark.parametrize("speed", [1.0, 0.5, 0.37])
def test_the_expert_takes_the_time_of_the_closed_form(speed: float) -> None:
    env = SlowReachEnv()
    for number in range(60):
        row = EpisodePlan("reach", number, number)
        expected = optimal_steps(*start_and_goal(env, row), speed)
        result = run_episode(env, SlowReachExpert(speed=speed), row, RecedingHorizon(1))
        assert result.success and result.steps == expected


def test_no_sequence_is_faster() -> None:
    """All sequences of commands from a grid, on one axis, one step shorter than the closed form: none succeeds."""
    goal = 0.09
    fewest = optimal_steps(np.zeros(2), np.array([goal, 0.0]))
    assert fewest == 4 + HOLD - 1

    def succeeds(commands: tuple[float, ...]) -> bool:
        inside = [abs(x - goal) <= REACH_M + 1e-12 for x in STEP_M * np.cumsum(commands)]
        return any(all(inside[i : i + HOLD]) for i in range(len(inside) - HOLD + 1))

    grid = (-0.5, 0.0, 0.5, 0.75, 1.0)
    assert not any(succeeds(commands) for commands in itertools.product(grid, repeat=fewest - 1))
    assert any(succeeds(commands) for commands in itertools.product(grid, repeat=fewest))


def test_staying_is_required() -> None:
    """Full speed through the goal does not succeed; standing in it does, at the third step."""
    env = SlowReachEnv(horizon=30)
    point, goal = start_and_goal(env, EpisodePlan("reach", 0, 0))
    far = int(np.abs(goal - point).argmax())
    away_A = np.sign(goal - point) * (np.arange(2) == far)
    assert not any(env.step(away_A).success for _ in range(29))
    assert env.step(away_A).truncated

    env.reset("reach", 0, 0)
    env.restore(np.array([*goal, *goal, 0, 0], "<f8").tobytes())
    steps = [env.step(np.zeros(2)) for _ in range(HOLD)]
    assert [step.success for step in steps] == [False, False, True] and steps[-1].terminated
    assert env.observe(()).state_S[-1] == HOLD


def test_held_counts_from_anew_after_leaving() -> None:
    env = SlowReachEnv()
    _, goal = start_and_goal(env, EpisodePlan("reach", 1, 0))
    env.restore(np.array([*goal, *goal, 2, 0], "<f8").tobytes())
    assert not env.step(np.array([1.0, 0.0])).success and env.observe(()).state_S[-1] == 0


def test_noise_comes_from_the_seed_and_slows_down() -> None:
    env, row = SlowReachEnv(), EpisodePlan("reach", 3, 5)
    env.reset(row.task, row.init_state, row.seed)
    seen = env.observe(())
    noisy = SlowReachExpert(speed=0.5, noise=0.3)
    one, same, other = (noisy.act([seen], [seed])[0].actions_HA for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    with pytest.raises(ValueError, match="speed"):
        SlowReachExpert(speed=0.0)
