"""Between a camera and a policy: pictures with a finding are withheld, and a camera that stays bad is a fault."""

from collections import deque

from real_robot.cameras.frames import CameraSpec, Frame, flaws, lateness
from real_robot.core.faults import Fault, FaultCode, fault

KEPT = 5  # frames; so many equal ones in a row are a frozen camera
PATIENCE_S = 0.5


class Watch:
    """One camera's guard; its faults are for `Daemon.fail`.

    Args:
        spec: what is expected.
        max_age_s: of a picture that a policy may see.
        start_s: now; a camera has `PATIENCE_S` until its first good picture.
    """

    def __init__(self, spec: CameraSpec, *, max_age_s: float, start_s: float) -> None:
        self._spec, self._max_age_s = spec, max_age_s
        self._frames: deque[Frame] = deque(maxlen=KEPT)
        self._good_s = start_s
        self._flaws: list[str] = []
        self.found: list[str] = []

    def look(self, frame: Frame | None, now_s: float) -> Frame | None:
        """The frame, if a policy may see it. `found` says why not."""
        if frame is not None and (not self._frames or frame.seq != self._frames[-1].seq):
            self._frames.append(frame)
            self._flaws = flaws(list(self._frames), self._spec, KEPT)  # once a picture: it costs a tenth of a tick
        newest = self._frames[-1] if self._frames else None
        late = ["dead: no frame yet"] if newest is None else lateness(newest, now_s, self._max_age_s)
        self.found = [*self._flaws, *late]
        if self.found:
            return None
        self._good_s = now_s
        return frame

    def fault(self, now_s: float) -> Fault | None:
        """Once there was no good picture for half a second: decelerate and hold."""
        if now_s - self._good_s <= PATIENCE_S:
            return None
        detail = f"camera '{self._spec.name}': {'; '.join(self.found) or 'nobody looked'}"
        return fault(FaultCode.OBSERVATION_STALE, detail, now_s)
