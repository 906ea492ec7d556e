"""Readings of an arm, made by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from real_robot.core.arms import so101_spec
from real_robot.core.types import ArmSpec, ArmState


def make_reading(spec: ArmSpec, time_s: float = 0.0, **changed: object) -> ArmState:
    """A healthy arm at zero with torque on; scalars are spread over the joints."""
    joints = len(spec.joints)
    fields = {
        "q_J": 0.0,
        "dq_J": 0.0,
        "effort_J": 0.0,
        "current_J": 0.05,
        "temperature_J": 30.0,
        "voltage_J": 12.0,
        "goal_J": np.nan,
        "torque_on_J": True,
        "status_J": 0,
        "age_J": 0.0,
    } | changed
    return ArmState(time_s=time_s, **{name: np.broadcast_to(value, (joints,)).copy() for name, value in fields.items()})


@pytest.fixture
def spec() -> ArmSpec:
    return so101_spec(normal_speed=True)


@pytest.fixture
def reading(spec: ArmSpec) -> Callable[..., ArmState]:
    return lambda time_s=0.0, **changed: make_reading(spec, time_s, **changed)
