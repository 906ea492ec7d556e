"""Videos of chosen episodes. An episode is a function of its row, so it is recorded by playing it again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from vla.core.protocols import Env, Task
from vla.core.spec import Embodiment
from vla.core.types import Image, Observation, Step

HEIGHT = 128  # [px] of a film


class FilmedEnv:
    """The env it wraps, but every episode that ends leaves `<task>-<init>-<seed>-<success|failure>.mp4`.

    Args:
        make_env: builds the wrapped env; picklable.
        folder: where the films go.
        every: one frame for so many control steps; the film runs at the speed of the robot.
    """

    def __init__(self, *, make_env: Callable[[], Env], folder: Path, every: int = 2) -> None:
        self.inner = make_env()
        self._folder = folder
        self._every = every
        self._row = ("", 0, 0)
        self._frames: list[Image] = []
        self._steps = 0

    @property
    def spec(self) -> Embodiment:
        return self.inner.spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.inner.tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        self.inner.reset(task, init_state, seed)
        self._row = (task, init_state, seed)
        self._frames, self._steps = [self._frame()], 0

    def step(self, action_A: np.ndarray) -> Step:
        step = self.inner.step(action_A)
        self._steps += 1
        over = step.terminated or step.truncated
        if over or self._steps % self._every == 0:
            self._frames.append(self._frame())
        if over:
            task, init_state, seed = self._row
            path = self._folder / film_name(task, init_state, seed, step.success)
            write_video(path, self._frames, self.spec.control_hz / self._every)
        return step

    def observe(self, cameras: Sequence[str] | None = None) -> Observation:
        return self.inner.observe(cameras)

    def snapshot(self) -> bytes:
        return self.inner.snapshot()

    def restore(self, snapshot: bytes) -> None:
        self.inner.restore(snapshot)

    def close(self) -> None:
        self.inner.close()

    def _frame(self) -> Image:
        """All cameras side by side."""
        images = self.inner.observe().images
        return np.concatenate([_resize(images[name], HEIGHT) for name in self.spec.camera_names], axis=1)


def film_name(task: str, init_state: int, seed: int, success: bool) -> str:
    """The file name of a row's film."""
    return f"{task}-{init_state}-{seed}-{'success' if success else 'failure'}.mp4"


def choose_rows(rows: Sequence[Mapping[str, Any]], each: int) -> list[Mapping[str, Any]]:
    """Of each task, the first `each` successes and the first `each` failures among rows without error."""
    chosen: list[Mapping[str, Any]] = []
    taken: dict[tuple[str, bool], int] = {}
    for row in rows:
        kind = (row["task"], row["success"])
        if row["error"] is None and taken.get(kind, 0) < each:
            taken[kind] = taken.get(kind, 0) + 1
            chosen.append(row)
    return chosen


def write_video(path: Path, frames: Sequence[Image], fps: float) -> None:
    """Writes (h, w, 3) uint8 frames as H.264, yuv420p, index first, all of it or nothing. Odd sizes lose a pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "26", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    partial.replace(path)


def _resize(image: Image, height: int) -> Image:
    """The picture at another height and the same proportions."""
    width = round(image.shape[1] * height / image.shape[0])
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(width, height)
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
