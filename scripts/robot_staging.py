"""Episodes of a session on their way into a dataset: staged one by one as they end, published when the session is over.

A session that was killed loses the episode at hand; the next one on the same folder publishes what is staged.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from real_robot.record.writer import Writer
from vla.core.errors import GrasplineError
from vla.core.spec import Embodiment
from vla.core.types import Episode
from vla.data.lerobot import LeRobotSource, write_dataset
from vla.data.staging import SUFFIX, read_staged, write_staged


class Staging:
    """The dataset at `out`, and the folder beside it. `first`: number of the next episode."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, Path(f"{out}.staging")
        self.first = len(self._staged()) + (len(LeRobotSource(out)) if out.exists() else 0)
        self._numbers = itertools.count(self.first)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """A writer of this session's episodes; leaving waits for it. Raises GrasplineError when the disk refused."""
        with Writer(self._stage) as writer:
            yield writer
        if writer.trouble:
            raise GrasplineError(f"{writer.discarded} episodes discarded: {writer.trouble}; the rest: {self.folder}")

    def publish(self, spec: Embodiment) -> int:
        """Moves what is staged into the dataset; how many episodes that were."""
        staged = self._staged()
        if not staged:
            raise GrasplineError("no episode was recorded")
        write_dataset((read_staged(path) for path in staged), self.out, spec, total=len(staged))
        for path in staged:
            path.unlink()
        self.folder.rmdir()
        return len(staged)

    def _stage(self, episode: Episode) -> None:
        write_staged(self.folder, f"{next(self._numbers):06d}", episode)

    def _staged(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
