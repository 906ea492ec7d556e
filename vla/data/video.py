"""Frames of an mp4 file at given times, decoded one after another with PyAV."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

from vla.core.errors import CorruptFileError
from vla.core.types import Image


def decode(path: Path, times: Sequence[float] | np.ndarray, fps: float) -> Iterator[Image]:
    """Yields the frame (h, w, 3) nearest to each of `times`.

    Colours are converted as LeRobot's own PyAV reader does it, so the same decoder gives the same bytes.

    Args:
        path: video file.
        times: ascending presentation times [s].
        fps: the file's rate; a frame further than half a period away from a time is not it.

    Raises:
        CorruptFileError: the file does not decode, or has no frame at one of the times.
    """
    tolerance, wanted = 0.5 / fps, 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = round(times[0] / float(stream.time_base or 1)) - 1
            container.seek(start, backward=True, any_frame=False, stream=stream)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < times[wanted] - tolerance:
                    continue
                while wanted < len(times) and frame.time >= times[wanted] - tolerance:
                    if frame.time > times[wanted] + tolerance:
                        raise CorruptFileError(f"{path}: no frame at {times[wanted]:.3f} s")
                    yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    wanted += 1
                if wanted == len(times):
                    return
    except (av.FFmpegError, IndexError) as error:
        raise CorruptFileError(f"{path} does not decode: {error}") from error
    raise CorruptFileError(f"{path} ends before {times[wanted]:.3f} s")
