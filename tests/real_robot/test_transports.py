"""The serial transport on pseudo-terminals: deadlines, exclusiveness, echo, one exception for every loss."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import tty
from pathlib import Path

import pytest

from real_robot.errors import LinkLost, PortBusyError
from real_robot.protocols import sts
from real_robot.transports import SerialTransport
from real_robot.twin.arms import so101
from real_robot.twin.link import PtyLink

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pty():
    master, slave = os.openpty()
    tty.setraw(slave)
    yield master, os.ttyname(slave)
    for end in (master, slave):
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(end)


def test_reads_what_is_there_or_to_the_deadline(pty) -> None:
    master, path = pty
    port = SerialTransport(path)
    os.write(master, b"abcdef")
    assert port.read(4, time.monotonic() + 1.0) == b"abcd"
    start_s = time.monotonic()
    assert port.read(4, start_s + 0.05) == b"ef"
    assert 0.049 < time.monotonic() - start_s < 0.5
    assert port.read(1, start_s) == b"", "a deadline that is over"
    port.close()


def test_the_deadline_is_that_of_the_clock_it_was_given(pty) -> None:
    _, path = pty
    port = SerialTransport(path, clock=lambda: 1000.0)
    start_s = time.monotonic()
    assert port.read(1, 1000.03) == b""
    assert 0.029 < time.monotonic() - start_s < 0.5
    port.close()


def test_drain_waits_for_quiet(pty) -> None:
    master, path = pty
    port = SerialTransport(path)

    def chatter() -> None:
        for _ in range(5):
            os.write(master, b"x")
            time.sleep(0.02)

    thread = threading.Thread(target=chatter)
    thread.start()
    assert port.drain(0.5) == b"xxxxx"
    thread.join()
    assert port.drain(0.0) == b""
    port.close()


def test_echo_is_dropped_and_only_that(pty) -> None:
    master, path = pty
    port = SerialTransport(path, echo=True)
    port.write(b"hello")
    assert os.read(master, 99) == b"hello"
    os.write(master, b"hel")
    os.write(master, b"loreply")
    assert port.read(5, time.monotonic() + 0.5) == b"reply"
    port.write(b"hello")
    os.write(master, b"jelly")
    assert port.read(5, time.monotonic() + 0.5) == b"jelly", "not our bytes: no echo"
    port.close()


def test_the_hang_up_is_link_lost_everywhere(pty) -> None:
    master, path = pty
    port = SerialTransport(path)
    os.close(master)
    for call in (
        lambda: port.read(1, time.monotonic() + 0.2),
        lambda: port.write(b"x"),
        lambda: port.drain(0.01),
    ):
        with pytest.raises(LinkLost, match="the link is lost"):
            call()
    port.close()
    port.close()
    with pytest.raises(LinkLost, match="was closed"):
        port.read(1, 0.0)


def test_a_reader_in_wait_is_woken_by_the_pull(pty) -> None:
    master, path = pty
    port = SerialTransport(path)
    threading.Timer(0.05, os.close, [master]).start()
    start_s = time.monotonic()
    with pytest.raises(LinkLost):
        port.read(1, start_s + 5.0)
    assert time.monotonic() - start_s < 1.0
    port.close()


def test_no_such_port() -> None:
    with pytest.raises(LinkLost, match="cannot be opened"):
        SerialTransport("/dev/ttyNONE0")


def test_a_full_line_is_a_lost_one(pty) -> None:
    _, path = pty
    port = SerialTransport(path)
    with pytest.raises(LinkLost, match="takes no more"):
        for _ in range(100):
            port.write(bytes(4096))
    port.close()


def test_a_second_opening_is_refused(pty, tmp_path: Path) -> None:
    """In this process and in another, under another name of the same device, until it is closed."""
    _, path = pty
    alias = tmp_path / "usb-arm-if00"
    alias.symlink_to(path)
    port = SerialTransport(path)
    with pytest.raises(PortBusyError, match=str(os.getpid())):
        SerialTransport(alias)
    code = f"from real_robot.transports import SerialTransport; SerialTransport({str(alias)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "PortBusyError" in done.stderr
    port.close()
    SerialTransport(alias).close()


def test_a_stranger_with_flock_is_respected(pty) -> None:
    """Another program that opened the port exclusively, without our lock file."""
    import serial

    _, path = pty
    other = serial.Serial(path, exclusive=True)
    with pytest.raises(PortBusyError, match="another process"):
        SerialTransport(path)
    other.close()
    SerialTransport(path).close()


def ping(port: SerialTransport) -> bytes:
    port.write(sts.ping(1))
    return port.read(6, time.monotonic() + 1.0)


def test_unplug_and_replug_on_the_twin(tmp_path: Path) -> None:
    twin = so101()
    with PtyLink(twin, tmp_path) as link:
        first = str(link.path.readlink())
        port = SerialTransport(link.path)
        assert len(ping(port)) == 6
        link.unplug()
        with pytest.raises(LinkLost):
            ping(port)
        with pytest.raises(LinkLost):
            SerialTransport(link.path)
        link.replug()
        with pytest.raises(LinkLost):
            ping(port)  # the old handle stays lost
        again = SerialTransport(link.path)
        assert len(ping(again)) == 6
        assert str(link.path.readlink()) == os.ttyname(again._port.fileno())
        assert link.path.name.startswith("usb-")
        assert first.startswith("/dev/pts/")
        port.close()
        again.close()


@pytest.mark.parametrize(("size", "expected_ms"), [(2, 10.8), (15, 24.3), (31, 41.0)])
def test_the_pseudo_terminal_is_paced(tmp_path: Path, size: int, expected_ms: float) -> None:
    """At 57.6k: never early, and within 10 % as soon as the machine gives both threads their turn."""
    request_ = sts.sync_read([1, 2, 3, 4, 5, 6], 40, size)
    with PtyLink(so101(baud=57_600), tmp_path) as link:
        port = SerialTransport(link.path, 57_600)
        best_ms, give_up_s = float("inf"), time.monotonic() + 10.0
        while best_ms > 1.1 * expected_ms and time.monotonic() < give_up_s:
            start_s = time.monotonic()
            port.write(request_)
            assert len(port.read(6 * (6 + size), start_s + 1.0)) == 6 * (6 + size)
            best_ms = min(best_ms, 1000.0 * (time.monotonic() - start_s))
        port.close()
    assert best_ms == pytest.approx(expected_ms, rel=0.1)


@pytest.mark.parametrize("baud", [115_200, 250_000])
def test_the_pseudo_terminal_knows_the_hosts_baud(tmp_path: Path, baud: int) -> None:
    with PtyLink(so101(), tmp_path) as link:
        port = SerialTransport(link.path, baud)
        port.write(sts.ping(1))
        assert port.read(6, time.monotonic() + 0.1) == b""
        port.close()
        port = SerialTransport(link.path, 1_000_000)
        assert len(ping(port)) == 6
        port.close()
