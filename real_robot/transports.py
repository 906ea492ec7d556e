"""A serial port as the drivers want it: exclusive, with absolute deadlines, and one exception for every loss.

Special: pyserial only opens and sets the port; bytes go through the file descriptor, so a deadline is kept to the
microsecond and a pulled cable is `LinkLost` whatever the kernel says that day (EIO, hang-up, empty read,
termios.error). Three locks, because each alone has a hole: flock (pyserial) is advisory, TIOCEXCL does not bind root,
a lock file does not bind strangers.
"""

import errno
import fcntl
import os
import select
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import serial

from real_robot.errors import LinkLost, PortBusyError

WRITE_TIMEOUT_S = (
    0.1  # a packet is 60 bytes and the kernel's buffer 4096: a write that blocks means that nobody drains it
)
_GONE = (OSError, termios.error, serial.SerialException)


class Transport(Protocol):
    """What a driver sees of a wire. All times are those of the clock that it was given."""

    def write(self, data: bytes) -> None:
        """Sends all of `data`. Raises LinkLost."""
        ...

    def read(self, size: int, deadline_s: float) -> bytes:
        """Returns as soon as `size` bytes are there, or at the deadline with what has come. Raises LinkLost."""
        ...

    def drain(self, quiet_s: float) -> bytes:
        """Throws away and returns what comes, until nothing has come for `quiet_s`. Raises LinkLost."""
        ...

    def close(self) -> None:
        """Lets go of the port. Never raises, may be called twice."""
        ...


class SerialTransport:
    """An open serial port. `echo`: the adapter sends back what we write; it is compared and dropped.

    Raises PortBusyError when another process holds the port, LinkLost when there is no such port.
    """

    def __init__(
        self,
        path: str | Path,
        baud: int = 1_000_000,
        *,
        echo: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.baud = Path(path), baud
        self._clock = clock
        self._echo = echo
        self._expected_echo = b""
        self._lock_fd = _take_lock(self.path)
        try:
            self._port = _open_port(self.path, baud)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._fd: int | None = self._port.fileno()

    def write(self, data: bytes) -> None:
        fd = self._open_fd()
        self._expected_echo += data if self._echo else b""
        rest = memoryview(data)
        give_up_s = time.monotonic() + WRITE_TIMEOUT_S
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                left_s = give_up_s - time.monotonic()
                if left_s <= 0 or not select.select([], [fd], [], left_s)[1]:
                    raise self._lost("it takes no more bytes") from None
            except _GONE as error:
                raise self._lost(str(error)) from error

    def read(self, size: int, deadline_s: float) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._piece(size - len(data), deadline_s - self._clock())
            if not piece:
                break
            data += self._without_echo(piece)
        return data

    def drain(self, quiet_s: float) -> bytes:
        data = b""
        while piece := self._piece(4096, quiet_s):
            data += piece
        self._expected_echo = b""
        return data

    def close(self) -> None:
        if self._fd is None:
            return
        try:
            fcntl.ioctl(self._fd, termios.TIOCNXCL)
            self._port.close()
        except _GONE:
            pass  # the port has gone before us
        os.close(self._lock_fd)
        self._fd = None

    def _piece(self, size: int, wait_s: float) -> bytes:
        """One read of at most `size` bytes (more if an echo is due); empty when nothing comes within `wait_s`."""
        fd = self._open_fd()
        try:
            if not select.select([fd], [], [], max(0.0, wait_s))[0]:
                return b""
            data = os.read(fd, size + len(self._expected_echo))
        except _GONE as error:
            raise self._lost(str(error)) from error
        if not data:
            raise self._lost("it hung up")
        return data

    def _without_echo(self, data: bytes) -> bytes:
        due = self._expected_echo[: len(data)]
        if not data.startswith(due):  # not our own bytes: the decoder above judges what they are
            self._expected_echo = b""
            return data
        self._expected_echo = self._expected_echo[len(due) :]
        return data[len(due) :]

    def _open_fd(self) -> int:
        if self._fd is None:
            raise LinkLost(f"{self.path}: the port was closed")
        return self._fd

    def _lost(self, why: str) -> LinkLost:
        return LinkLost(f"{self.path}: the link is lost ({why})")


def _open_port(path: Path, baud: int) -> serial.Serial:
    try:
        port = serial.Serial(str(path), baudrate=baud, timeout=0, exclusive=True)
        fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
        port.reset_input_buffer()
    except _GONE as error:
        if getattr(error, "errno", None) in (errno.EBUSY, errno.EAGAIN):
            raise PortBusyError(f"{path} is open in another process; close it first") from error
        raise LinkLost(f"{path}: cannot be opened ({error})") from error
    return port


def port_owner(path: str | Path) -> int | None:
    """The process that holds a port through `SerialTransport`, or None."""
    try:
        fd = os.open(_lock_path(Path(path)), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return int(os.read(fd, 32) or 0) or None
    finally:
        os.close(fd)


def _lock_path(path: Path) -> Path:
    """Named after the real device, so that two names of one port exclude each other."""
    folder = Path(tempfile.gettempdir()) / "graspline-ports"
    folder.mkdir(exist_ok=True)
    return folder / str(path.resolve()).strip("/").replace("/", "_")


def _take_lock(path: Path) -> int:
    """Holds the port's lock file. Raises PortBusyError."""
    fd = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise PortBusyError(f"{path} is held by process {owner or 'unknown'}; close it first") from None
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd
