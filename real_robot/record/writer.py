"""Writes finished episodes in a thread of its own; a full disk stops the recording, never the arm.

Functional choice: whatever the disk says, it is said in `trouble` and to nobody else. The control loop never waits for
a file.
"""

import queue
import threading
from collections.abc import Callable

from vla.core.types import Episode


class Writer:
    """Passes episodes to `write`, one at a time, in order. A context manager: leaving it waits for what is queued.

    Args:
        write: stages one episode; all or nothing. An OSError (StorageError is one) or ValueError discards that
            episode and those that follow.
    """

    def __init__(self, write: Callable[[Episode], None]) -> None:
        self._write = write
        self._queue: queue.SimpleQueue[Episode | None] = queue.SimpleQueue()
        self.written = self.discarded = 0
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name="episodes")
        self._thread.start()

    def put(self, episode: Episode) -> None:
        """Never waits."""
        self._queue.put(episode)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (episode := self._queue.get()) is not None:
            if self.trouble:
                self.discarded += 1
                continue
            try:
                self._write(episode)
                self.written += 1
            except (OSError, ValueError) as error:
                self.discarded += 1
                self.trouble = str(error)
