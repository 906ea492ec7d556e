"""The embodiment validates and generates."""

import numpy as np
import pytest

from sim.tabletop import panda_spec
from vla.core.errors import NonFiniteError, SpecMismatchError, unknown_name
from vla.core.spec import Embodiment
from vla.core.types import Episode, Observation

SPEC = panda_spec("panda", 16)
RNG = np.random.default_rng(0)


def changed(**fields) -> Observation:
    observation = SPEC.random(RNG)
    values = {name: getattr(observation, name) for name in ("images", "state_S", "instruction", "time_s")}
    return Observation(**{**values, **fields})


def test_random_and_zeros_are_valid() -> None:
    SPEC.validate(SPEC.random(RNG))
    SPEC.validate(SPEC.zeros())


def test_plain_round_trip_keeps_infinite_bounds() -> None:
    assert Embodiment.from_dict(SPEC.to_dict()) == SPEC


@pytest.mark.parametrize(
    ("fields", "error", "names"),
    [
        ({"state_S": np.zeros(7, np.float32)}, SpecMismatchError, "expected \\(8,\\)"),
        ({"state_S": np.full(8, np.nan, np.float32)}, NonFiniteError, "eef_x"),
        ({"images": {}}, SpecMismatchError, "agentview"),
        ({"images": {c: np.zeros((8, 8, 3), np.uint8) for c in SPEC.camera_names}}, SpecMismatchError, "16, 16"),
        ({"images": {c: np.zeros((16, 16, 3)) for c in SPEC.camera_names}}, SpecMismatchError, "uint8"),
    ],
)
def test_validate_names_what_is_wrong(fields: dict, error: type, names: str) -> None:
    with pytest.raises(error, match=names):
        SPEC.validate(changed(**fields))


def test_clip_bounds_and_refuses_nan() -> None:
    np.testing.assert_array_equal(SPEC.clip(np.full(7, 3.0)), np.ones(7, np.float32))
    with pytest.raises(NonFiniteError, match="gripper_close"):
        SPEC.clip(np.array([0, 0, 0, 0, 0, 0, np.inf]))
    with pytest.raises(SpecMismatchError, match="expected"):
        SPEC.clip(np.zeros(6))


def test_check_same_names_the_field() -> None:
    with pytest.raises(SpecMismatchError, match=r"embodiment\.cameras differs: env .* 16x16.* policy .* 32x32"):
        SPEC.check_same(panda_spec("panda", 32), here="env", there="policy")


def test_random_chunk_is_within_bounds_and_binary_where_it_must_be() -> None:
    chunk = SPEC.random_chunk(RNG, 5)
    assert chunk.actions_HA.shape == (5, 7) and chunk.actions_HA.dtype == np.float32
    assert set(np.unique(chunk.actions_HA[:, 6])) <= {-1.0, 1.0}


def test_unknown_name_offers_the_nearest() -> None:
    assert "Did you mean 'wrist'" in str(unknown_name("camera", "wirst", ["agentview", "wrist"]))


def test_an_episode_counts_its_observations() -> None:
    actions = np.zeros((3, 7), np.float32)
    fields = {"rewards": {}, "terminated": True, "truncated": False, "success": True, "meta": {}}
    with pytest.raises(ValueError, match="expected 4"):
        Episode(observations=[SPEC.zeros()] * 3, actions_TA=actions, labels_TA=actions, **fields)
