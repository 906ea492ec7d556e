"""A twin in a process of its own, on a pseudo-terminal in real time, as an arm on a cable would be.

with pty_twin("sts") as path: SerialTransport(path)
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from real_robot.conformance.bench import Device
from real_robot.loop import first_in_line
from real_robot.twin.arms import koch, so101
from real_robot.twin.link import PtyLink


@contextlib.contextmanager
def pty_twin(device: Device) -> Iterator[Path]:
    """The path of the port, while the twin's process lives."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "real_robot.conformance.pty_twin", device, folder]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield Path(process.stdout.readline().strip())
        finally:
            process.communicate()  # closes its input, which ends it


def serve(device: str, folder: str) -> None:
    """Until standard input closes."""
    twin = so101() if device == "sts" else koch()
    with first_in_line(level=20), PtyLink(twin, Path(folder)) as link:  # an arm has processors of its own
        sys.stdout.write(f"{link.path}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    serve(*sys.argv[1:])
