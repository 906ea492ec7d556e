from collections.abc import Callable

import numpy as np
import pytest

from rewards.success import SparseSuccess, StepCost, first_success
from vla.core.types import Episode

type Make = Callable[..., Episode]


def test_paid_once_however_long_the_episode_goes_on(make_episode: Make):
    for linger in (0, 3):
        reward_T = SparseSuccess()(make_episode(5 + linger, done_at=4))["success"]
        assert reward_T.dtype == np.float32 and reward_T.tolist() == [0, 0, 0, 0, 1] + [0] * linger


def test_step_cost_is_minus_one_until_done(make_episode: Make):
    assert StepCost()(make_episode(6, done_at=3))["step_cost"].tolist() == [-1, -1, -1, 0, 0, 0]
    assert StepCost()(make_episode(4))["step_cost"].tolist() == [-1] * 4


@pytest.mark.parametrize("steps", [1, 7])
def test_return_of_the_step_cost_in_closed_form(make_episode: Make, steps: int):
    """n undone steps and then success: -(1 - g^n) / (1 - g)."""
    reward_T = StepCost()(make_episode(steps + 1, done_at=steps))["step_cost"]
    gamma = 0.9
    assert (reward_T * gamma ** np.arange(steps + 1)).sum() == pytest.approx(-(1 - gamma**steps) / (1 - gamma))


def test_what_was_recorded_says_when(make_episode: Make):
    assert first_success(make_episode(6, done_at=2)) == 2
    assert first_success(make_episode(6, done_at=2, recorded=False)) == 5, "only the flag: the last step"
    assert first_success(make_episode(6)) is None
    assert SparseSuccess()(make_episode(3))["success"].tolist() == [0, 0, 0]
