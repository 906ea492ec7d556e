"""What happens to numbers between dataset and network, the same object at training and at run time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray

from vla.core.errors import SpecMismatchError
from vla.core.spec import Embodiment
from vla.core.types import Float
from vla.data.normalize import Normalize

STATE_CLIP = 1.5  # a state a little outside the demonstrations should look so, one far outside must not explode


@dataclass(frozen=True, kw_only=True, eq=False)
class Transforms:
    """Forward for states and actions, inverse for actions. Images go to the network as they are (uint8)."""

    state: Normalize
    action: Normalize

    @classmethod
    def fit(cls, spec: Embodiment, states_NS: ArrayLike, actions_NA: ArrayLike) -> Self:
        """From the raw columns of the frames to be trained on."""
        binary_S = [axis.binary for axis in spec.state]
        return cls(
            state=Normalize.fit(states_NS, binary_S, clip=STATE_CLIP),
            action=Normalize.fit(actions_NA, spec.binary_A, clip=1.0),
        )

    def observation(self, state_S: NDArray) -> Float:
        """State(s) (..., S) as the network sees them."""
        return self.state.forward(state_S)

    def actions(self, actions_HA: NDArray) -> Float:
        """Actions (..., A) as the network is asked to predict them."""
        return self.action.forward(actions_HA)

    def inverse_actions(self, scaled_HA: NDArray) -> Float:
        """What the network predicted (..., A), in physical units."""
        return self.action.inverse(scaled_HA)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"state": self.state.to_dict(), "action": self.action.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SpecMismatchError when a key is missing."""
        if missing := [name for name in ("state", "action") if name not in plain]:
            raise SpecMismatchError(f"transforms lack {missing}, expected ['state', 'action']")
        return cls(state=Normalize.from_dict(plain["state"]), action=Normalize.from_dict(plain["action"]))
