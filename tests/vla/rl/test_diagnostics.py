"""Numbers about critics that are known by construction, and the alarm."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vla.rl.chains import all_chunks
from vla.core.errors import GrasplineError
from vla.rl.diagnostics import DivergenceError, calibration_error, check_divergence, critic_metrics


class SumOfActions:
    """Two critics: the sum of the chunk so far, and that plus one."""

    ensemble, horizon, columns = 2, 3, slice(0, 3)

    def __call__(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        sums_BH = actions_BHA.sum(dim=2).cumsum(dim=1)
        return torch.stack([sums_BH, sums_BH + 1])

    def value(self, outputs: Tensor) -> Tensor:
        return outputs


def test_metrics_are_what_they_say() -> None:
    batch, _ = all_chunks(3)
    returns_B = torch.arange(len(batch), dtype=torch.float32)
    returns_B[::2] = torch.nan
    batch = replace(batch, return_mc_B=returns_B)
    policy_BHA = torch.full_like(batch.actions_BHA, 0.5)
    metrics = critic_metrics(SumOfActions(), batch, policy_BHA)
    sums_B = batch.actions_BHA.sum(dim=(1, 2))
    assert metrics["q/data"] == pytest.approx(float(sums_B.mean() + 0.5))
    assert metrics["q/policy"] == pytest.approx(2.0)
    assert metrics["q/spread"] == pytest.approx(0.5)
    assert metrics["return"] == pytest.approx(float(returns_B[1::2].mean()))
    assert metrics["q/bias"] == pytest.approx(float((sums_B + 0.5 - returns_B)[1::2].mean()))
    assert metrics["q/policy_gap"] == pytest.approx(float((2.0 - returns_B)[1::2].mean()))


def test_calibration_forgives_noise_but_not_bias() -> None:
    rng = np.random.default_rng(0)
    chance = torch.from_numpy(rng.random(20_000))
    outcomes = (torch.from_numpy(rng.random(20_000)) < chance).double()
    assert calibration_error(chance, outcomes) < 0.02
    assert calibration_error(chance + 0.3, outcomes) == pytest.approx(0.3, abs=0.02)
    assert calibration_error(torch.full_like(chance, 0.5), outcomes) < 0.02  # says little, but nothing false
    assert calibration_error(1 - chance, outcomes) > 0.4  # right on average, wrong everywhere
    assert math.isnan(calibration_error(chance[:0], outcomes[:0]))


SOUND = {"q/data": 0.5, "q/policy": 0.6, "q/policy_gap": 0.2}


def test_a_sound_critic_passes() -> None:
    check_divergence(SOUND, low=0.0, high=1.0)
    check_divergence({**SOUND, "q/policy_gap": math.nan}, low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q/data", 1.2, "q/data is 1.2, but returns lie in 0..1"),
        ("q/policy", -0.3, "q/policy is -0.3"),
        ("q/data", math.nan, "q/data is nan"),
        ("q/policy_gap", 0.6, "valued 0.6 above the measured returns"),
    ],
)
def test_the_alarm_keeps_the_evidence(name: str, value: float, message: str) -> None:
    metrics = {**SOUND, name: value}
    with pytest.raises(DivergenceError, match=message) as caught:
        check_divergence(metrics, low=0.0, high=1.0)
    assert caught.value.evidence == metrics
    assert isinstance(caught.value, GrasplineError)
