"""What a user of a real arm can meet on the way to it."""

from vla.core.errors import GrasplineError


class LinkLost(GrasplineError):  # noqa: N818  (the name of the fault, in logs and in the conformance table)
    """The cable, the adapter or its driver is gone: whatever the operating system called it, open the port again."""


class PortBusyError(GrasplineError):
    """Another process holds the serial port."""
