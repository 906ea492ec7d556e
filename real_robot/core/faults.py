"""What can go wrong with an arm, and what is done about it: codes, reactions, and one frozen record of a fault.

Reactions grow in severity and a higher one replaces a lower one. Stop categories are those of IEC 60204-1, in the loose
sense in which software may speak of them: nothing here is safety-rated.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from vla.core.errors import GrasplineError


class Reaction(IntEnum):
    """WARN is logged; DROP refuses an item; CLAMP corrects it; the rest stop the arm.

    HOLD      decelerate and hold, resume on request (like category 2)
    LATCH     controlled stop, hold, nothing moves before a reset
    LOWER     controlled stop, park, torque off (like category 1)
    RELEASE   torque off at once (like category 0): an arm without brakes falls
    """

    WARN = -1
    DROP = 0
    CLAMP = 1
    HOLD = 2
    LATCH = 3
    LOWER = 4
    RELEASE = 5


class FaultCode(StrEnum):
    """Names for logs, the dashboard and the conformance table."""

    LINK_LOST = "link_lost"
    LINK_NOISY = "link_noisy"
    JOINT_SILENT = "joint_silent"
    GOAL_NOT_TAKEN = "goal_not_taken"
    TORQUE_LOST = "torque_lost"
    OVERLOAD = "overload"
    WARM = "warm"
    HELD_LONG = "held_long"
    OVER_TEMPERATURE = "over_temperature"
    VOLTAGE = "voltage"
    STALL = "stall"
    TRACKING = "tracking"
    ENCODER_JUMP = "encoder_jump"
    BAD_CHUNKS = "bad_chunks"
    OVERRUN = "overrun"
    OVERRUN_LONG = "overrun_long"
    CONTROLLER_LOST = "controller_lost"
    OBSERVATION_STALE = "observation_stale"
    STARVED = "starved"
    LATENCY = "latency"
    DEVICE = "device"
    INTERNAL = "internal"
    ESTOP = "estop"


REACTIONS: dict[FaultCode, Reaction] = {
    FaultCode.LINK_LOST: Reaction.LATCH,
    FaultCode.LINK_NOISY: Reaction.LATCH,
    FaultCode.JOINT_SILENT: Reaction.LATCH,
    FaultCode.GOAL_NOT_TAKEN: Reaction.LATCH,
    FaultCode.TORQUE_LOST: Reaction.LATCH,
    FaultCode.OVERLOAD: Reaction.LATCH,
    FaultCode.WARM: Reaction.WARN,
    FaultCode.HELD_LONG: Reaction.WARN,
    FaultCode.OVER_TEMPERATURE: Reaction.LOWER,
    FaultCode.VOLTAGE: Reaction.LATCH,
    FaultCode.STALL: Reaction.LATCH,
    FaultCode.TRACKING: Reaction.LATCH,
    FaultCode.ENCODER_JUMP: Reaction.LATCH,
    FaultCode.BAD_CHUNKS: Reaction.LATCH,
    FaultCode.OVERRUN: Reaction.WARN,
    FaultCode.OVERRUN_LONG: Reaction.HOLD,
    FaultCode.CONTROLLER_LOST: Reaction.HOLD,
    FaultCode.OBSERVATION_STALE: Reaction.HOLD,
    FaultCode.STARVED: Reaction.HOLD,
    FaultCode.LATENCY: Reaction.HOLD,
    FaultCode.DEVICE: Reaction.LATCH,
    FaultCode.INTERNAL: Reaction.LATCH,
    FaultCode.ESTOP: Reaction.LATCH,
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One finding: what, where, when, and what it asks for.

    joint   the joint's name, or None when it is the whole arm's
    detail  the numbers, in words an operator can act on
    time_s  monotonic clock [s]
    """

    code: FaultCode
    detail: str
    time_s: float
    joint: str | None = None
    reaction: Reaction = Reaction.LATCH

    def __str__(self) -> str:
        where = f" at {self.joint}" if self.joint else ""
        return f"{self.code}{where}: {self.detail}"


def fault(code: FaultCode, detail: str, time_s: float, joint: str | None = None) -> Fault:
    """A fault with the reaction that its code asks for."""
    return Fault(code=code, detail=detail, time_s=time_s, joint=joint, reaction=REACTIONS[code])


class RefusedError(GrasplineError, ValueError):
    """A request that the supervisor cannot grant in the present state; the message says what would be accepted."""
