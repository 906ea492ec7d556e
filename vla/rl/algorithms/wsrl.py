"""WSRL: RLPD that starts from what offline training left, and then lives on fresh data alone.

`warm_start` takes actor and critics over from a Cal-QL (or RLPD) state; optimisers and temperature start anew. The
caller then plays some thousand steps with that actor before the first update, and keeps no offline data: those steps
stop the values from collapsing as the data change.
Source: Zhou et al. 2024 (WSRL).
"""

from collections.abc import Mapping
from typing import Any

from vla.core.errors import CorruptFileError
from vla.rl.algorithms.rlpd import RLPD

INHERITED = ("actor", "critic", "target_critic")


class WSRL(RLPD):
    """RLPD and a start."""

    def warm_start(self, state: Mapping[str, Any]) -> None:
        """Takes the networks over from another algorithm's `state_dict`.

        Raises:
            CorruptFileError: networks are missing or of other sizes; Cal-QL must be trained with as many critics.
        """
        for name in INHERITED:
            if name not in state:
                raise CorruptFileError(f"state has no '{name}', expected {', '.join(INHERITED)} as in a cal_ql state")
            theirs = {key: tuple(tensor.shape) for key, tensor in state[name].items()}
            ours = {key: tuple(tensor.shape) for key, tensor in getattr(self, name).state_dict().items()}
            if theirs != ours:
                differ = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
                raise CorruptFileError(f"'{name}' is of another size than here; first at '{differ[0]}'")
        for name in INHERITED:
            getattr(self, name).load_state_dict(state[name])
