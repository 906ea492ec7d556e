"""Videos of chosen episodes. An episode is a function of its row, so it is recorded by playing it again.

Special: beside each film lies a trace of the robot's state at every step, so that two films of one row can be compared.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from vla.core.errors import CorruptFileError
from vla.core.protocols import Env, Task
from vla.core.spec import Embodiment
from vla.core.types import Float, Image, Observation, Step

HEIGHT = 128  # [px] of a film


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What a film was taken of.

    states_TS   (T + 1, S) float32   the robot's state before the first step and after each
    steps_F     (F,) int64           steps taken before each frame of the film
    units_S     (S,) str             of the state's axes
    control_hz  float                steps per second
    """

    states_TS: Float
    steps_F: NDArray[np.int64]
    units_S: NDArray[np.str_]
    control_hz: float

    @property
    def steps(self) -> int:
        return len(self.states_TS) - 1


class FilmedEnv:
    """The env it wraps, but every episode that ends leaves `<task>-<init>-<seed>-<success|failure>.mp4` and a trace.

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
        self._states: list[Float] = []
        self._shown: list[int] = []

    @property
    def spec(self) -> Embodiment:
        return self.inner.spec

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.inner.tasks

    def reset(self, task: str, init_state: int, seed: int) -> None:
        self.inner.reset(task, init_state, seed)
        self._row = (task, init_state, seed)
        self._frames, self._states, self._shown = [], [], []
        self._look(picture=True)

    def step(self, action_A: np.ndarray) -> Step:
        step = self.inner.step(action_A)
        over = step.terminated or step.truncated
        self._look(picture=over or len(self._states) % self._every == 0)
        if over:
            task, init_state, seed = self._row
            path = self._folder / film_name(task, init_state, seed, step.success)
            write_trace(path, self._trace())  # first, so that no film is without one
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

    def _look(self, *, picture: bool) -> None:
        """Notes the state, and with `picture` a frame of all cameras side by side."""
        observation = self.inner.observe(None if picture else ())
        if picture:
            views = [_resize(observation.images[name], HEIGHT) for name in self.spec.camera_names]
            self._frames.append(np.concatenate(views, axis=1))
            self._shown.append(len(self._states))
        self._states.append(observation.state_S)

    def _trace(self) -> Trace:
        return Trace(
            states_TS=np.stack(self._states),
            steps_F=np.array(self._shown, np.int64),
            units_S=np.array([axis.unit for axis in self.spec.state]),
            control_hz=self.spec.control_hz,
        )


def film_name(task: str, init_state: int, seed: int, success: bool) -> str:
    """The file name of a row's film."""
    return f"{task}-{init_state}-{seed}-{'success' if success else 'failure'}.mp4"


def write_trace(film: Path, trace: Trace) -> None:
    """Writes the trace that belongs to a film, all of it or nothing."""
    path = film.with_suffix(".npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            states_TS=trace.states_TS,
            steps_F=trace.steps_F,
            units_S=trace.units_S,
            control_hz=np.array(trace.control_hz),
        )
    partial.replace(path)


def read_trace(film: Path) -> Trace:
    """The trace beside a film. Raises CorruptFileError."""
    path = film.with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in ("states_TS", "steps_F", "units_S")}
            return Trace(**arrays, control_hz=float(found["control_hz"]))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"{path} is damaged ({error}); delete it and its film to have both made anew") from error


def read_frames(film: Path, numbers: Sequence[int]) -> dict[int, Image]:
    """Some frames of a film by their number, from 0. Raises CorruptFileError, also where it is too short."""
    wanted, frames = set(numbers), dict[int, Image]()
    try:
        with av.open(str(film)) as container:
            for number, frame in enumerate(container.decode(video=0) if container.streams.video else ()):
                if number in wanted:
                    frames[number] = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except av.FFmpegError as error:
        raise CorruptFileError(f"{film} is damaged ({error}); delete it to have it made anew") from error
    if len(frames) < len(wanted):
        raise CorruptFileError(f"{film} has no frame {max(wanted - frames.keys())}; delete it to have it made anew")
    return frames


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
