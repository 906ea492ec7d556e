"""Keys to joint speeds. One column of keys a joint: q up, a down; w, s; e, d; ... Space is the e-stop.

A terminal tells presses and not releases, so a key counts as held for a quarter of a second after its last repetition.
"""

import numpy as np

from real_robot.core.types import ArmSpec
from real_robot.teleop.jog import Jog

UP, DOWN = "qwertyuiop", "asdfghjkl;"
ESTOP = " "
HELD_S = 0.25


def jog(held: frozenset[str], spec: ArmSpec) -> Jog:
    """What these keys ask for; any key of a joint is also the deadman. Opposite keys cancel."""
    count = len(spec.joints)
    share_J = np.array([float(up in held) - float(down in held) for up, down in zip(UP[:count], DOWN[:count])])
    return Jog(share_J=share_J, deadman=bool(held & {*UP[:count], *DOWN[:count]}))


class Keys:
    """Which keys are held, from presses alone."""

    def __init__(self) -> None:
        self._pressed: dict[str, float] = {}

    def press(self, key: str, now_s: float) -> None:
        self._pressed[key.lower()] = now_s

    def held(self, now_s: float) -> frozenset[str]:
        return frozenset(key for key, time_s in self._pressed.items() if now_s - time_s <= HELD_S)
