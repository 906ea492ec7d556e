"""How a driver reaches a twin: through a pseudo-terminal in real time, or in-process on a clock that the test moves.

Special: the pseudo-terminal stands behind a symlink, as /dev/serial/by-id does, so unplugging closes both of its ends
and replugging makes another one that the same name points to. The host's baud is read back from the terminal, so a
wrong one is as deaf here as on a wire.
"""

import contextlib
import fcntl
import math
import os
import select
import struct
import sys
import threading
import tty
from collections.abc import Callable
from pathlib import Path

from real_robot.errors import LinkLost, PortBusyError
from real_robot.twin.bus import BusTwin

TCGETS2 = 0x802C542A  # Linux: termios2 carries the speed as a number, also the odd ones
IDLE_S = 0.005  # how far physics may fall behind on a silent wire


class PtyLink:
    """Serves a twin, whose clock must be real, on `folder`/usb-<name>-if00. A context manager."""

    def __init__(self, twin: BusTwin, folder: Path, *, name: str = "graspline_twin") -> None:
        self.twin = twin
        self.path = folder / f"usb-{name}-if00"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._ends = (-1, -1)
        self.replug()

    def unplug(self) -> None:
        """The cable is pulled: whoever holds the port loses it, and its name is gone. The arm stays powered."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        for end in self._ends:
            os.close(end)
        self.path.unlink(missing_ok=True)

    def replug(self) -> None:
        """The cable is back: another terminal under the same name."""
        self.unplug()
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._ends = (master, slave)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.symlink_to(os.ttyname(slave))
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, args=(master, slave), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.unplug()

    def __enter__(self) -> "PtyLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, master: int, slave: int) -> None:
        twin = self.twin
        while not self._stop.is_set():
            # a burst leaves as a whole when its last byte is through, as an adapter's buffer does
            wait_s = min(max(twin.next_s(1 << 30) - twin.clock(), 0.0), IDLE_S)
            if select.select([master], [], [], wait_s)[0]:
                with contextlib.suppress(BlockingIOError):
                    twin.receive(os.read(master, 4096), _baud(slave))
            data = twin.transmit()
            if data:
                with contextlib.suppress(BlockingIOError):  # nobody reads: a real adapter drops too
                    os.write(master, data)


class VirtualLink:
    """Serves a twin in-process. `clock` reads the time and `sleep_until` moves it: those of any virtual clock."""

    def __init__(self, twin: BusTwin, *, sleep_until: Callable[[float], None]) -> None:
        self.twin = twin
        self.sleep_until = sleep_until
        self.plugs = 0  # how many times it has been plugged in; even an old number is not today's
        self.plugged = False
        self.opened: TwinTransport | None = None
        self.replug()

    def unplug(self) -> None:
        """The cable is pulled: every open transport is lost for good."""
        self.plugged = False
        self.opened = None

    def replug(self) -> None:
        self.plugged = True
        self.plugs += 1

    def open(self, *, baud: int | None = None) -> "TwinTransport":
        """A port on this end of the cable. Raises LinkLost while unplugged, PortBusyError while open."""
        if not self.plugged:
            raise LinkLost("twin: the link is lost (unplugged)")
        if self.opened is not None:
            raise PortBusyError("twin: the port is open already")
        self.opened = TwinTransport(self, baud or self.twin.baud)
        return self.opened


class TwinTransport:
    """A `Transport` without a port: reading moves the clock to when the bytes are there, or to the deadline."""

    def __init__(self, link: VirtualLink, baud: int) -> None:
        self.baud = baud
        self._link = link
        self._plug = link.plugs
        self._open = True
        self._waiting = b""

    def write(self, data: bytes) -> None:
        self._twin().receive(data, self.baud)

    def read(self, size: int, deadline_s: float) -> bytes:
        while True:
            twin = self._twin()
            self._waiting += twin.transmit()
            now_s = twin.clock()
            if len(self._waiting) >= size or now_s >= deadline_s:
                data, self._waiting = self._waiting[:size], self._waiting[size:]
                return data
            self._link.sleep_until(
                min(max(twin.next_s(size - len(self._waiting)), math.nextafter(now_s, math.inf)), deadline_s)
            )

    def drain(self, quiet_s: float) -> bytes:
        data = b""
        while piece := self.read(1, self._twin().clock() + quiet_s):
            data += piece + self._waiting
            self._waiting = b""
        return data

    def close(self) -> None:
        self._open = False
        if self._link.opened is self:
            self._link.opened = None

    def _twin(self) -> BusTwin:
        if not self._open:
            raise LinkLost("twin: the port was closed")
        if not self._link.plugged or self._plug != self._link.plugs:
            raise LinkLost("twin: the link is lost (unplugged)")
        return self._link.twin


def _baud(fd: int) -> int | None:
    """What the host has set the terminal to, or None where the system cannot tell."""
    if sys.platform != "linux":
        return None
    raw = fcntl.ioctl(fd, TCGETS2, bytes(44))
    return struct.unpack_from("<I", raw, 40)[0] or None
