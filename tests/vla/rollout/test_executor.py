"""Executors against numbers worked out by hand."""

from math import exp

import numpy as np
import pytest

from sim.fake import FAKE
from vla.core.spec import Axis, Embodiment
from vla.core.types import ActionChunk
from vla.rollout.executor import RecedingHorizon, TemporalEnsemble

BODY = Embodiment(
    name="body",
    state=(Axis(name="x", unit="m"),),
    action=(Axis(name="x", unit="1"), Axis(name="gripper", unit="1", low=-1, high=1, binary=True)),
    cameras=(),
    control_hz=10,
)


def chunk(rows: list[list[float]]) -> ActionChunk:
    return ActionChunk(actions_HA=np.array(rows, np.float32), start_s=0.0, dt_s=0.1)


def test_receding_horizon_plays_the_first_actions() -> None:
    play = RecedingHorizon(2).start(BODY)
    assert play(chunk([[1, -1], [2, -1], [3, 1]])).tolist() == [[1, -1], [2, -1]]
    assert play(chunk([[4, 1], [5, 1], [6, 1]])).tolist() == [[4, 1], [5, 1]]


def test_receding_horizon_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RecedingHorizon(0)
    with pytest.raises(ValueError, match=r"execute is 4.*hold only 3"):
        RecedingHorizon(4).start(BODY)(chunk([[1, 1]] * 3))


def test_the_ensemble_averages_all_predictions_for_this_step() -> None:
    play = TemporalEnsemble(0.5).start(BODY)
    assert play(chunk([[1, -1], [2, -1], [3, -1]])).tolist() == [[1, -1]]
    # Now the first chunk says 2 and the new one 10; the oldest weighs exp(0), the next exp(-0.5).
    [[x, _]] = play(chunk([[10, -1], [20, -1], [30, -1]]))
    assert x == pytest.approx((2 + exp(-0.5) * 10) / (1 + exp(-0.5)), rel=1e-6)
    [[x, _]] = play(chunk([[100, -1], [200, -1], [300, -1]]))
    assert x == pytest.approx((3 + exp(-0.5) * 20 + exp(-1) * 100) / (1 + exp(-0.5) + exp(-1)), rel=1e-6)
    # The first chunk has nothing to say about the fourth step.
    [[x, _]] = play(chunk([[7, -1], [7, -1], [7, -1]]))
    assert x == pytest.approx((30 + exp(-0.5) * 200 + exp(-1) * 7) / (1 + exp(-0.5) + exp(-1)), rel=1e-6)


def test_binary_axes_stay_binary() -> None:
    play = TemporalEnsemble(0.0).start(BODY)
    grips = [float(play(chunk([[0, g]] * 3))[0, 1]) for g in (-1.0, -1.0, 1.0, 1.0)]
    assert grips == [-1.0, -1.0, -1.0, 1.0]


def test_players_share_nothing() -> None:
    executor = TemporalEnsemble(0.1)
    first, second = executor.start(FAKE), executor.start(FAKE)
    rng = np.random.default_rng(0)
    one, two = FAKE.random_chunk(rng, 4), FAKE.random_chunk(rng, 4)
    first(one)
    np.testing.assert_array_equal(second(two)[0], two.actions_HA[0])


def test_constant_predictions_come_out_as_they_are() -> None:
    play = TemporalEnsemble(0.01).start(FAKE)
    same = FAKE.random_chunk(np.random.default_rng(1), 1).actions_HA
    for _ in range(12):
        action_1A = play(ActionChunk(actions_HA=np.tile(same, (8, 1)), start_s=0.0, dt_s=0.05))
        assert action_1A.shape == (1, 7) and action_1A.dtype == np.float32
        np.testing.assert_allclose(action_1A, same, rtol=1e-6)
