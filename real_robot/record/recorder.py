"""Gathers one episode from the daemon's ticks and lays it on a fixed grid.

    daemon.subscribe(recorder.tick)   recorder.start(task) ... recorder.see(camera, frame) ... recorder.finish()

What an episode says. Grid point t has the reading and pictures nearest to it. Action t is the position *sent after the
filter* at grid point t + 1: where the arm was told to be one period after observation t, which is how a chunk's first
step is due, so a recorded episode can be replayed and a policy that imitates it is played with the same delay. What was
wanted before the filter stands beside it, with the verdicts of every tick in between. The columns of an episode:

    action.requested      (T, J) float32  wanted before the filter
    safety.verdict        (T,) int64      `Verdict` bits of all ticks of the step
    source                (T,) int64      `Driver` at its end
    intervention          (T,) bool       a person overrode the policy at some tick of it
    observation.effort    (T, J) float32  and observation.current [A], observation.temperature [C]; NaN: not measured
    obs_age               (T,) float32    age of the oldest joint's reading, from the grid point [s]
    skewed                (T,) bool       something of observation t is further than 20 ms from its grid point
    time.<camera>         (T,) float64    capture of the picture, on the arm's clock [s]

`tick` is called inside the control loop: it appends to a list and does nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from real_robot.cameras.frames import CameraSpec, Frame
from real_robot.core.types import ArmSpec, Array, Verdict
from real_robot.daemon import Report
from real_robot.record.grid import grid, nearest
from vla.core.errors import GrasplineError, unknown_name
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Episode, Image, Observation


class Driver(IntEnum):
    """Who drove the arm; the column `source`."""

    IDLE = 0
    POLICY = 1
    TELEOP = 2


class RecordingError(GrasplineError):
    """What was gathered cannot become an episode; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    report: Report
    driver: Driver
    intervention: bool


def embodiment_of(spec: ArmSpec, cameras: Sequence[CameraSpec], rate_hz: float) -> Embodiment:
    """State and action of an arm's recordings: its joints in SI units, within the soft limits."""
    axes = tuple(Axis(name=joint.name, unit="rad", low=joint.soft_low, high=joint.soft_high) for joint in spec.joints)
    return Embodiment(
        name=spec.name,
        state=tuple(Axis(name=axis.name, unit=axis.unit) for axis in axes),
        action=axes,
        cameras=tuple(Camera(name=camera.name, height=camera.height, width=camera.width) for camera in cameras),
        control_hz=rate_hz,
    )


class Recorder:
    """Gathers the ticks of one arm. `driver` and `intervention` may be set at any time and count from the next tick.

    Args:
        arm: name of the arm in the daemon.
        cameras: names of those whose pictures are recorded.
        rate_hz: of the dataset.
        meta: goes into every episode: calibration hash, commit, firmware.
    """

    def __init__(
        self,
        *,
        arm: str,
        cameras: Sequence[str] = (),
        rate_hz: float = 30.0,
        meta: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        self._arm, self._cameras, self._rate_hz, self._meta = arm, tuple(cameras), rate_hz, dict(meta or {})
        self.driver, self.intervention = Driver.IDLE, False
        self._recording, self._task = False, ""
        self._rows: list[_Row] = []
        self._frames: dict[str, list[Frame]] = {}

    @property
    def recording(self) -> bool:
        return self._recording

    def start(self, task: str) -> None:
        """A new episode; one that was not finished is forgotten."""
        self.discard()
        self._task, self._recording = task, True

    def discard(self) -> None:
        """Forgets the episode at hand."""
        self._recording = False
        self._rows, self._frames = [], {name: [] for name in self._cameras}

    def tick(self, report: Report) -> None:
        """For `Daemon.subscribe`."""
        if self._recording and report.arm == self._arm:
            self._rows.append(_Row(report=report, driver=self.driver, intervention=self.intervention))

    def see(self, camera: str, frame: Frame) -> None:
        """A picture; one that was shown before is ignored."""
        if camera not in self._cameras:
            raise unknown_name("camera", camera, self._cameras)
        if self._recording and (not self._frames[camera] or frame.seq > self._frames[camera][-1].seq):
            self._frames[camera].append(frame)

    def finish(self, *, success: bool, truncated: bool = False) -> Episode:
        """The episode since `start`: its first stretch of ticks under command.

        Raises:
            RecordingError: too short, or a camera without pictures.
        """
        self._recording = False
        rows, frames = _commanded(self._rows), self._frames
        self.discard()
        if dark := [name for name in self._cameras if not frames[name]]:
            raise RecordingError(f"no picture of camera {dark}")
        times_N = np.array([row.report.state.time_s for row in rows])
        grid_G = grid(times_N[0], times_N[-1], self._rate_hz) if rows else np.zeros(0)
        if len(grid_G) < 2:
            raise RecordingError(f"{len(rows)} ticks under command: too short for one step at {self._rate_hz:g} Hz")
        return _assemble(
            rows, times_N, frames, grid_G, task=self._task, meta=self._meta, success=success, truncated=truncated
        )


def _commanded(rows: Sequence[_Row]) -> list[_Row]:
    """The first stretch of ticks in which the arm was commanded."""
    start = next((i for i, row in enumerate(rows) if row.report.tick.command is not None), len(rows))
    end = next((i for i in range(start, len(rows)) if rows[i].report.tick.command is None), len(rows))
    return list(rows[start:end])


def _assemble(
    rows: list[_Row],
    times_N: Array,
    frames: Mapping[str, list[Frame]],
    grid_G: Array,
    *,
    task: str,
    meta: Mapping[str, str | int | float | bool],
    success: bool,
    truncated: bool,
) -> Episode:
    arm = nearest(times_N, grid_G)
    seen = {name: nearest(np.array([frame.time_s for frame in taken]), grid_G) for name, taken in frames.items()}
    images: list[dict[str, Image]] = [
        {name: frames[name][match.place_G[g]].image for name, match in seen.items()} for g in range(len(grid_G))
    ]
    observations = [
        Observation(
            images=images[g],
            state_S=rows[place].report.state.q_J.astype(np.float32),
            instruction=task,
            time_s=float(grid_G[g]),
        )
        for g, place in enumerate(arm.place_G.tolist())
    ]
    columns = _columns(rows, arm.place_G, grid_G)
    columns["skewed"] = np.any([arm.flag_G, *(match.flag_G for match in seen.values())], axis=0)[:-1]
    for name, match in seen.items():
        columns[f"time.{name}"] = (grid_G + match.skew_G)[:-1]
    actions_TA = np.stack([_sent(rows[place]) for place in arm.place_G[1:].tolist()]).astype(np.float32)
    return Episode(
        observations=observations,
        actions_TA=actions_TA,
        labels_TA=actions_TA,
        rewards={},
        terminated=not truncated,
        truncated=truncated,
        success=success,
        meta={**meta, "task": task},
        columns=columns,
    )


def _columns(rows: list[_Row], place_G: NDArray[np.intp], grid_G: Array) -> dict[str, NDArray]:
    begins, ends = place_G[:-1].tolist(), place_G[1:].tolist()
    states = [rows[place].report.state for place in begins]
    requested = [rows[place].report.tick.requested_J for place in ends]
    sent = [_sent(rows[place]) for place in ends]
    steps = [rows[begin + 1 : end + 1] for begin, end in zip(begins, ends, strict=True)]
    ages = [g - (state.time_s - float(state.age_J.max())) for g, state in zip(grid_G.tolist(), states)]
    return {
        "action.requested": np.stack([s if r is None else r for s, r in zip(sent, requested, strict=True)]).astype(
            np.float32
        ),
        "safety.verdict": np.array([_verdict(step) for step in steps], np.int64),
        "source": np.array([rows[place].driver for place in ends], np.int64),
        "intervention": np.array([any(row.intervention for row in step) for step in steps]),
        "observation.effort": np.stack([state.effort_J for state in states]).astype(np.float32),
        "observation.current": np.stack([state.current_J for state in states]).astype(np.float32),
        "observation.temperature": np.stack([state.temperature_J for state in states]).astype(np.float32),
        "obs_age": np.maximum(ages, 0.0).astype(np.float32),
    }


def _sent(row: _Row) -> Array:
    assert row.report.tick.command is not None, "only stretches under command are gridded"
    return row.report.tick.command.q_J


def _verdict(step: Sequence[_Row]) -> int:
    bits = Verdict.NONE
    for row in step:
        assert row.report.tick.command is not None, "only stretches under command are gridded"
        bits |= row.report.tick.command.verdict
    return int(bits)
