"""A file system that really gets full: a little memory, mounted where only one process of ours can see it."""

import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(size: int) -> Iterator[tuple[Path, str]]:
    """(a folder on a file system of `size` bytes, what fills it).

    A child mounts it in a namespace of its own (`unshare`: no rights are needed), and it is reached through the child's
    root in /proc. Where the system forbids that, no file of this process may grow beyond `size` meanwhile.
    """
    with tempfile.TemporaryDirectory() as folder:
        mount = f'mount -t tmpfs -o size={size} none "$0" && echo ready && exec cat'
        command = ["unshare", "-Urm", "sh", "-c", mount, folder]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            assert child.stdout is not None
            if child.stdout.readline() == "ready\n":
                yield Path(f"/proc/{child.pid}/root{folder}"), "a full file system"
            else:
                with _short_files(size // 3):
                    yield Path(folder), "a limit on file sizes (no namespaces here)"
        finally:
            child.communicate()  # closes its input, which ends it and the mount


@contextmanager
def _short_files(size: int) -> Iterator[None]:
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
