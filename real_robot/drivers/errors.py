"""What a driver refuses, and why, in words an operator can act on."""

from vla.core.errors import GrasplineError


class BusError(GrasplineError):
    """A servo did not answer, or answered something else than it should."""


class IdentityError(BusError):
    """The servos on the bus are not those of this arm; the message is a table with one line per ID."""


class CalibrationMismatchError(BusError):
    """What the servos hold is not what the calibration says; the message shows each difference."""


class EnableError(BusError):
    """Torque could not be switched on safely; it is off again."""


class TorqueOffError(BusError):
    """Some servos did not confirm that their torque is off. Every servo was told, and the broadcast went out."""
