"""Writes finished recordings in a thread of its own; a full disk stops the recording, never the arm.

Functional choice: whatever the disk says, it is said in `trouble` and to nobody else. The control loop never waits for
a file.
"""

import queue
import threading
from collections.abc import Callable

from real_robot.record.recorder import Recording


class Writer:
    """Passes recordings to `write`, one at a time, in order. A context manager: leaving it waits for what is queued.

    Args:
        write: stages one recording; all or nothing. An OSError (StorageError is one) or ValueError discards that
            recording and those that follow.
    """

    def __init__(self, write: Callable[[Recording], None]) -> None:
        self._write = write
        self._queue: queue.SimpleQueue[Recording | None] = queue.SimpleQueue()
        self.written = self.discarded = 0
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name="recordings")
        self._thread.start()

    def put(self, recording: Recording) -> None:
        """Never waits."""
        self._queue.put(recording)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (recording := self._queue.get()) is not None:
            if self.trouble:
                self.discarded += 1
                continue
            try:
                self._write(recording)
                self.written += 1
            except (OSError, ValueError) as error:
                self.discarded += 1
                self.trouble = str(error)
