"""What the network needs of a cell of arms, and how a cell is shown: plain values, for msgpack and JSON alike."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from real_robot.core.admission import Admitted
from real_robot.core.leases import Lease
from real_robot.core.types import ArmSpec, Chunk, Clock
from real_robot.daemon import CellArm


class Cell(Protocol):
    """`real_robot.daemon.Daemon`, as clients see it. Calls wait for the tick at hand at most, `estop` for nothing."""

    @property
    def clock(self) -> Clock: ...

    def state(self) -> Mapping[str, CellArm]: ...

    def lease(self, client: str) -> Lease: ...

    def heartbeat(self, token: str) -> None: ...

    def release(self, token: str | None) -> None: ...

    def activate(self, token: str, session: str, *, arm: str | None = None, align: bool = False) -> None: ...

    def submit(self, chunk: Chunk, token: str, *, arm: str | None = None) -> Admitted: ...

    def pause(self, reason: str) -> None: ...

    def estop(self, source: str) -> None: ...

    def reset(self) -> None: ...


def shown(cell: Cell, specs: Mapping[str, ArmSpec]) -> dict[str, Any]:
    """The state of every arm; what is not measured is None."""
    return {
        "now_s": cell.clock.now(),
        "arms": {name: _arm(arm, specs[name]) for name, arm in cell.state().items()},
    }


def cause(cell: Cell) -> str:
    """What an operator acknowledges with a reset: the latched causes, as `shown` tells them."""
    return "; ".join(f"{name}: {arm.latched}" for name, arm in sorted(cell.state().items()) if arm.latched)


def _arm(arm: CellArm, spec: ArmSpec) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "state": str(arm.state),
        "latched": arm.latched,
        "paused": arm.paused,
        "warnings": list(arm.warnings),
        "trouble": arm.trouble,
        "hot_c": spec.ratings.hot_c,
        "joints": [],
    }
    reading = arm.reading
    if reading is None:
        return shown
    columns = {
        "q": reading.q_J,
        "dq": reading.dq_J,
        "effort": reading.effort_J,
        "current_a": reading.current_J,
        "temperature_c": reading.temperature_J,
        "voltage_v": reading.voltage_J,
        "age_s": reading.age_J,
    }
    shown["time_s"] = reading.time_s
    shown["joints"] = [
        {
            "name": joint.name,
            "low": joint.soft_low,
            "high": joint.soft_high,
            "torque_on": bool(reading.torque_on_J[i]),
            **{key: _finite(column_J[i]) for key, column_J in columns.items()},
        }
        for i, joint in enumerate(spec.joints)
    ]
    return shown


def _finite(value: np.floating | float) -> float | None:
    return float(value) if math.isfinite(value) else None
