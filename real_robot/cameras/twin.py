"""A camera that is not there: rendered or painted pictures with exposure, latency, jitter and faults.

What is special: nothing runs in the background. `latest` computes which frame would have arrived by now and draws only
that one, so it works on a virtual clock, and the same seed gives the same frames.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from real_robot.cameras.frames import CameraSpec, Frame, Image

EXPOSURES = 4  # moments of which a blurred picture is the mean


@dataclass(frozen=True, kw_only=True)
class Timing:
    """[s]. `exposure_s` blurs; a frame arrives `latency_s` after its exposure, up to `jitter_s` later."""

    exposure_s: float = 0.0
    latency_s: float = 0.0
    jitter_s: float = 0.0


class TwinCamera:
    """A camera whose picture at a time is `draw(time_s)`.

    Args:
        spec: name, size and rate.
        draw: (h, w, 3) uint8 at a time [s].
        clock: monotonic time [s].
        timing: see the class.
        noise: standard deviation of the sensor's noise, of 255. 0 makes a still scene look frozen.
        seed: of noise and jitter.
    """

    def __init__(
        self,
        spec: CameraSpec,
        draw: Callable[[float], Image],
        *,
        clock: Callable[[], float],
        timing: Timing | None = None,
        noise: float = 2.0,
        seed: int = 0,
    ) -> None:
        self._spec, self._draw, self._clock = spec, draw, clock
        self._timing, self._noise, self._seed = timing or Timing(), noise, seed
        self._start_s: float | None = None
        self._last: Frame | None = None
        self._frozen: Image | None = None
        self._dark = False
        self._dead_s: float | None = None

    @property
    def spec(self) -> CameraSpec:
        return self._spec

    def start(self) -> None:
        self._start_s, self._last = self._clock(), None

    def stop(self) -> None:
        self._start_s = None

    def latest(self) -> Frame | None:
        if self._start_s is None:
            return None
        now_s = self._clock() if self._dead_s is None else self._dead_s
        newest = int((now_s - self._start_s) * self._spec.rate_hz)
        while newest >= 0 and self._arrives_s(newest) > now_s:
            newest -= 1
        if newest < 0:
            return None
        if self._last is None or self._last.seq != newest:
            time_s = self._opens_s(newest) + 0.5 * self._timing.exposure_s
            self._last = Frame(seq=newest, time_s=time_s, image=self._picture(newest))
        return self._last

    # faults

    def freeze(self) -> None:
        """The frame counter goes on, the picture does not."""
        frame = self.latest()
        self._frozen = None if frame is None else frame.image

    def darken(self) -> None:
        self._dark = True

    def die(self) -> None:
        """No frame after this one."""
        self._dead_s = self._clock()

    def heal(self) -> None:
        self._frozen, self._dark, self._dead_s = None, False, None

    def _opens_s(self, seq: int) -> float:
        assert self._start_s is not None
        return self._start_s + seq / self._spec.rate_hz

    def _arrives_s(self, seq: int) -> float:
        late_s = self._timing.jitter_s * np.random.default_rng([self._seed, seq, 0]).random()
        return self._opens_s(seq) + self._timing.exposure_s + self._timing.latency_s + late_s

    def _picture(self, seq: int) -> Image:
        if self._frozen is not None:
            return self._frozen
        shape = (self._spec.height, self._spec.width, 3)
        if self._dark:
            clean = np.zeros(shape)
        elif self._timing.exposure_s:
            moments = self._opens_s(seq) + self._timing.exposure_s * (np.arange(EXPOSURES) + 0.5) / EXPOSURES
            clean = np.mean([self._draw(float(at_s)) for at_s in moments], axis=0)
        else:
            clean = self._draw(self._opens_s(seq))
        if not self._noise:
            return np.asarray(clean).round().astype(np.uint8)
        rng = np.random.default_rng([self._seed, seq, 1])
        grain = rng.standard_normal(shape, np.float32) * self._noise
        return np.clip(clean + grain, 0, 255).astype(np.uint8)


def pattern(height: int, width: int, *, hue: int = 0) -> Callable[[float], Image]:
    """Painted pictures for machines without a renderer: a shaded field and a bar that crosses it every two seconds."""
    y_H1, x_1W = np.mgrid[0:height, 0:1][0], np.mgrid[0:1, 0:width][1]
    field = np.empty((height, width, 3), np.uint8)
    field[..., hue % 3] = 60 + 120 * y_H1 // height
    field[..., (hue + 1) % 3] = 60 + 120 * x_1W // width
    field[..., (hue + 2) % 3] = 90

    def draw(time_s: float) -> Image:
        image = field.copy()
        left = int((time_s / 2.0 % 1.0) * width)
        image[:, left : left + max(2, width // 20)] = 230
        return image

    return draw


def rendered(
    model: Any,
    data: Any,
    camera: Any,
    height: int,
    width: int,
    *,
    lock: AbstractContextManager | None = None,
) -> Callable[[float], Image]:
    """Pictures of a MuJoCo camera at the moment of the call, whatever the time asked for. Needs EGL or OSMesa.

    The renderer belongs to the thread that draws first. `lock`: held while the scene is read, where another thread
    steps the physics.
    """
    import mujoco  # an optional extra's own door: a machine with real cameras has no renderer

    renderers: list[mujoco.Renderer] = []

    def draw(time_s: float) -> Image:
        if not renderers:
            renderers.append(mujoco.Renderer(model, height, width))
        with lock or nullcontext():
            renderers[0].update_scene(data, camera=camera)
        return renderers[0].render().copy()

    return draw


def view(
    *,
    azimuth_deg: float = 180.0,
    elevation_deg: float = -30.0,
    distance_m: float = 0.9,
    lookat_m: tuple[float, float, float] = (0.15, 0.0, 0.1),
) -> Any:
    """A free MuJoCo camera, for models without one of their own."""
    import mujoco

    camera = mujoco.MjvCamera()
    camera.azimuth, camera.elevation, camera.distance, camera.lookat[:] = (
        azimuth_deg,
        elevation_deg,
        distance_m,
        lookat_m,
    )
    return camera
