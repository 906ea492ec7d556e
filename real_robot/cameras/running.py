"""A camera that is read by a thread of its own, for those whose `latest` takes time: a twin that draws when asked.

`latest` of the inner camera may draw for milliseconds; the control loop then would. Here it only picks up a reference.
"""

import threading
import time
from typing import Self

from real_robot.cameras.frames import Camera, CameraSpec, Frame
from vla.core.errors import GrasplineError

WARM_UP_S = 10.0  # a renderer in software takes seconds to start


class RunningCamera:
    """The newest frame of `inner`, looked for twice a period."""

    def __init__(self, inner: Camera) -> None:
        self._inner = inner
        self._latest: Frame | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def spec(self) -> CameraSpec:
        return self._inner.spec

    def start(self) -> None:
        """Waits for the first frame, which takes longest. Raises GrasplineError when none comes."""
        self._over.clear()
        self._latest = None
        self._thread = threading.Thread(target=self._read, name=f"camera-{self.spec.name}", daemon=True)
        self._thread.start()
        until_s = time.monotonic() + WARM_UP_S
        while self._latest is None and self._thread.is_alive() and time.monotonic() < until_s:
            time.sleep(0.005)
        if self._latest is None:
            self.stop()
            raise GrasplineError(f"camera '{self.spec.name}' ({self.spec.serial}) gave no frame in {WARM_UP_S:g} s")

    def latest(self) -> Frame | None:
        return self._latest

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        self._inner.start()
        while not self._over.wait(0.5 / self.spec.rate_hz):
            self._latest = self._inner.latest()
        self._inner.stop()
