"""The cameras of a cell, each behind its guard: what may be looked at now, and which of them is a fault.

What is special: pictures are judged once, when they are new; a tick without a new one costs an age and a comparison, so
`look` may be called in the control loop. It does not wait for a camera: `Camera.latest` never does.
"""

from collections.abc import Mapping

from real_robot.cameras.frames import Camera, Frame
from real_robot.cameras.watch import Watch
from real_robot.core.faults import Fault

MAX_AGE_S = 0.15  # of a picture that a policy may see: four periods at 30 Hz, exposure and transfer included


class Eyes:
    """Looks through all cameras at once.

    Args:
        cameras: by name, started.
        start_s: now; each camera has half a second until its first good picture.
        max_age_s: of a picture that may be used.
    """

    def __init__(self, cameras: Mapping[str, Camera], *, start_s: float, max_age_s: float = MAX_AGE_S) -> None:
        self._cameras = cameras
        self._watches = {
            name: Watch(camera.spec, max_age_s=max_age_s, start_s=start_s) for name, camera in cameras.items()
        }
        self._reported: set[str] = set()
        self.frames: dict[str, Frame] | None = None

    def look(self, now_s: float) -> list[Fault]:
        """Takes the newest pictures into `frames`: all of them, or None while one may not be used.

        Returns what is new for `Daemon.fail`: a camera is reported once until it is well again.
        """
        seen = {name: self._watches[name].look(camera.latest(), now_s) for name, camera in self._cameras.items()}
        good = {name: frame for name, frame in seen.items() if frame is not None}
        self.frames = good if len(good) == len(seen) else None
        faults = {name: watch.fault(now_s) for name, watch in self._watches.items()}
        new = [fault for name, fault in faults.items() if fault is not None and name not in self._reported]
        self._reported = {name for name, fault in faults.items() if fault is not None}
        return new

    @property
    def found(self) -> dict[str, str]:
        """By camera, why its picture is withheld."""
        return {name: "; ".join(watch.found) for name, watch in self._watches.items() if watch.found}
