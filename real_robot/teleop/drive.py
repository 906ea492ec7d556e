"""Drives one arm of a daemon from a source: heartbeat, setpoints, and what the supervisor did told to the source.

A source that lost its device says so in `trouble`; the arm is then paused (decelerate, hold, no resumption by itself)
and goes on only after `start`, which is where a person presses the clutch again.
"""

from typing import Protocol

from real_robot.core.admission import Admitted
from real_robot.core.supervisor import State
from real_robot.core.types import ArmState, Chunk
from real_robot.daemon import Daemon

_EVENTS = {
    State.ACTIVE: "active",
    State.STARVED: "active",
    State.PAUSED: "paused",
    State.FAULT: "fault",
    State.ESTOP: "fault",
    State.CONNECTED: "released",
    State.DISCONNECTED: "released",
}


class Teleop(Protocol):
    """A `Source` with a session's name. `trouble` is not empty once its device is lost or cannot be believed."""

    @property
    def session(self) -> str: ...

    @property
    def trouble(self) -> str: ...

    def next(self, state: ArmState) -> Chunk | None: ...

    def on_event(self, event: str) -> None: ...


class Drive:
    """One source on one arm. `step` is called at the arm's rate, from the loop of the daemon or beside it.

    Args:
        daemon: owns the arm.
        source: see `Teleop`.
        token: of the lease.
        arm: name in the daemon.
    """

    def __init__(self, daemon: Daemon, source: Teleop, *, token: str, arm: str = "arm") -> None:
        self.source = source
        self._daemon, self._token, self._arm = daemon, token, arm
        self._event = ""
        self._since_s = 0.0

    def start(self, *, align: bool = False) -> None:
        """Takes over, at speed if another session plays. `align` confirms a slow move to a target that is far away.

        Raises RefusedError.
        """
        self._daemon.activate(self._token, self.source.session, arm=self._arm, align=align)
        self._since_s = self._daemon.clock.now()
        self._event = "active"
        self.source.on_event("active")

    def step(self) -> Admitted | None:
        """One tick of the source. None: it had nothing to say, or may not drive."""
        daemon, side = self._daemon, self._daemon.sides[self._arm]
        if daemon.leases.holder is not None and not daemon.leases.expired(daemon.clock.now()):
            daemon.heartbeat(self._token)
        event = _EVENTS.get(side.state, str(side.state))
        if event != self._event:
            self._event = event
            self.source.on_event(event)
        reading = side.reading
        if event != "active" or reading is None or reading.time_s < self._since_s:
            return None
        chunk = self.source.next(reading)
        if self.source.trouble:
            daemon.pause(f"{self.source.session}: {self.source.trouble}")
            return None
        return None if chunk is None else daemon.submit(chunk, self._token, arm=self._arm)
