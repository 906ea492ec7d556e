"""What an episode refuses."""

import numpy as np
import pytest

from vla.core.types import Episode, Observation


def episode(**changed) -> Episode:
    seen = Observation(images={}, state_S=np.zeros(2, np.float32), instruction="", time_s=0.0)
    fields = {
        "observations": [seen] * 4,
        "actions_TA": np.zeros((3, 2), np.float32),
        "labels_TA": np.zeros((3, 2), np.float32),
        "rewards": {},
        "terminated": True,
        "truncated": False,
        "success": True,
        "meta": {},
    }
    return Episode(**fields | changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"columns": {"source": np.zeros(2)}}, r"columns\['source'\] has 2 rows, expected 3"),
        ({"rewards": {"reach": np.zeros(4)}}, r"rewards\['reach'\]"),
        ({"labels_TA": np.zeros((2, 2))}, "labels_TA"),
        ({"observations": []}, "observations: 0 for 3 actions"),
    ],
)
def test_what_does_not_fit_its_steps_is_refused(changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        episode(**changed)


def test_columns_have_a_row_a_step_of_any_shape() -> None:
    columns: dict[str, np.ndarray] = {"one": np.arange(3), "many": np.zeros((3, 5))}
    assert episode(columns=columns).columns.keys() == columns.keys() and not episode().columns
