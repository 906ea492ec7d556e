"""A gamepad to joint speeds, through Linux's joystick device (/dev/input/js*).

Left stick: the first two joints; right stick: the next two; cross: the fifth; A closes and B opens the gripper. The
left shoulder button is the deadman, the middle one is the e-stop. Numbers as the kernel's xpad driver gives them.
"""

import contextlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from real_robot.core.types import ArmSpec
from real_robot.teleop.jog import Jog

DEADMAN, ESTOP, CLOSE, OPEN = 4, 8, 0, 1  # buttons
AXES = ((0, -1.0), (1, -1.0), (4, -1.0), (3, -1.0), (6, 1.0))  # axis and sign of each joint
DEAD_SHARE = 0.12  # of a stick's travel, around its middle
_EVENT = struct.Struct("<IhBB")  # time [ms], value, type, number
_BUTTON, _AXIS, _INITIAL = 0x01, 0x02, 0x80


@dataclass(kw_only=True)
class Pad:
    """Where sticks (-1 to 1) and buttons are. `stops` counts presses of the e-stop, however short."""

    axes: dict[int, float] = field(default_factory=dict)
    buttons: dict[int, bool] = field(default_factory=dict)
    stops: int = 0

    def update(self, data: bytes) -> None:
        """Takes whole events of the device; a piece of one at the end is ignored."""
        for start in range(0, len(data) - _EVENT.size + 1, _EVENT.size):
            _, value, kind, number = _EVENT.unpack_from(data, start)
            if kind & ~_INITIAL == _AXIS:
                self.axes[number] = max(-1.0, value / 32767.0)
            elif kind & ~_INITIAL == _BUTTON:
                self.stops += number == ESTOP and bool(value) and not self.estop
                self.buttons[number] = bool(value)

    @property
    def estop(self) -> bool:
        return self.buttons.get(ESTOP, False)


def jog(pad: Pad, spec: ArmSpec) -> Jog:
    """What sticks and buttons ask for; nothing within the dead zone, and finer near it."""
    share_J = np.zeros(len(spec.joints))
    for j, (axis, sign) in zip(spec.arm_N.tolist(), AXES):
        share_J[j] = sign * _shaped(pad.axes.get(axis, 0.0))
    if spec.gripper is not None and spec.gripper_index is not None:
        opening = np.sign(spec.gripper.open - spec.gripper.closed)
        share_J[spec.gripper_index] = opening * (pad.buttons.get(OPEN, False) - pad.buttons.get(CLOSE, False))
    return Jog(share_J=share_J, deadman=pad.buttons.get(DEADMAN, False))


class Joystick:
    """An open device; `read` is what `JogSource` wants, and raises OSError once it is pulled."""

    def __init__(self, path: Path, spec: ArmSpec) -> None:
        self._fd, self._spec, self.pad = os.open(path, os.O_RDONLY | os.O_NONBLOCK), spec, Pad()
        self._seen = 0

    def read(self, now_s: float) -> Jog:
        self._update()
        return jog(self.pad, self._spec)

    def stops(self) -> int:
        """Presses of the e-stop since the last call; asked every tick, whoever drives and whatever the state."""
        before = self._seen
        with contextlib.suppress(OSError):  # gone: `read` says so
            self._update()
        self._seen = self.pad.stops
        return self._seen - before

    def _update(self) -> None:
        try:
            while data := os.read(self._fd, 64 * _EVENT.size):
                self.pad.update(data)
        except BlockingIOError:
            pass  # nothing new

    def close(self) -> None:
        os.close(self._fd)


def _shaped(stick: float) -> float:
    beyond = max(0.0, abs(stick) - DEAD_SHARE) / (1.0 - DEAD_SHARE)
    return float(np.sign(stick)) * beyond * beyond
