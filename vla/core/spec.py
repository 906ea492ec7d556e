"""The embodiment: the one place for dimensions, names, units, rates and cameras. Nobody else writes a 7."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from vla.core.errors import NonFiniteError, SpecMismatchError
from vla.core.types import ActionChunk, Float, Observation


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One number of a state or action vector. `binary` axes take only the values `low` and `high` (a gripper)."""

    name: str
    unit: str
    low: float = -np.inf
    high: float = np.inf
    binary: bool = False


@dataclass(frozen=True, kw_only=True)
class Camera:
    """One colour camera. Sizes in pixels."""

    name: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """What a body senses and does: layout of state and action, cameras, control rate [Hz]."""

    name: str
    state: tuple[Axis, ...]
    action: tuple[Axis, ...]
    cameras: tuple[Camera, ...]
    control_hz: float

    @property
    def state_dim(self) -> int:
        return len(self.state)

    @property
    def action_dim(self) -> int:
        return len(self.action)

    @property
    def dt_s(self) -> float:
        """Time [s] between two actions."""
        return 1.0 / self.control_hz

    @property
    def action_low_A(self) -> Float:
        return np.array([axis.low for axis in self.action], np.float32)

    @property
    def action_high_A(self) -> Float:
        return np.array([axis.high for axis in self.action], np.float32)

    @property
    def binary_A(self) -> np.ndarray:
        """(A,) bool, True where an action axis is binary."""
        return np.array([axis.binary for axis in self.action], bool)

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    def validate(self, observation: Observation, cameras: Iterable[str] | None = None) -> None:
        """Checks an observation; `cameras` are those that must be present (all of them when None).

        Raises:
            SpecMismatchError: a shape, dtype or camera differs from the spec.
            NonFiniteError: the state holds NaN or infinity.
        """
        _check_vector("state", observation.state_S, self.state)
        wanted = set(self.camera_names if cameras is None else cameras)
        if missing := wanted - set(observation.images):
            raise SpecMismatchError(f"{self.name}: cameras {sorted(missing)} missing, got {sorted(observation.images)}")
        for camera in self.cameras:
            image = observation.images.get(camera.name)
            if image is None:
                continue
            if image.shape != (camera.height, camera.width, 3) or image.dtype != np.uint8:
                raise SpecMismatchError(
                    f"{self.name}: image '{camera.name}' is {image.shape} {image.dtype}, "
                    f"expected ({camera.height}, {camera.width}, 3) uint8"
                )

    def clip(self, action_A: np.ndarray) -> Float:
        """The action within its bounds, as float32.

        Raises:
            SpecMismatchError: wrong shape.
            NonFiniteError: NaN or infinity, which clipping would turn into a motion.
        """
        action_A = np.asarray(action_A, np.float32)
        _check_vector("action", action_A, self.action)
        return np.clip(action_A, self.action_low_A, self.action_high_A)

    def check_same(self, other: Self, *, here: str, there: str) -> None:
        """Raises SpecMismatchError that names the first field in which two embodiments differ."""
        for field in ("state", "action", "cameras", "control_hz"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise SpecMismatchError(
                    f"embodiment.{field} differs: {here} ({self.name}) has {_short(mine)}, "
                    f"{there} ({other.name}) has {_short(theirs)}"
                )

    def zeros(self, instruction: str = "") -> Observation:
        """An observation of the right shape, all zero."""
        images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in self.cameras}
        return Observation(
            images=images, state_S=np.zeros(self.state_dim, np.float32), instruction=instruction, time_s=0.0
        )

    def random(self, rng: np.random.Generator, instruction: str = "do the task") -> Observation:
        """A random valid observation, for tests of whatever takes one."""
        images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in self.cameras}
        state_S = rng.standard_normal(self.state_dim, np.float32)
        return Observation(images=images, state_S=state_S, instruction=instruction, time_s=float(rng.random()))

    def random_chunk(self, rng: np.random.Generator, horizon: int) -> ActionChunk:
        """A random valid chunk of `horizon` actions."""
        low_A = np.where(np.isfinite(self.action_low_A), self.action_low_A, -1)
        high_A = np.where(np.isfinite(self.action_high_A), self.action_high_A, 1)
        actions_HA = rng.uniform(low_A, high_A, (horizon, self.action_dim)).astype(np.float32)
        actions_HA[:, self.binary_A] = np.where(rng.random(actions_HA.shape) < 0.5, low_A, high_A)[:, self.binary_A]
        return ActionChunk(actions_HA=actions_HA, start_s=0.0, dt_s=self.dt_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; bounds that are infinite become None."""
        plain = asdict(self)
        for axis in (*plain["state"], *plain["action"]):
            axis["low"] = axis["low"] if np.isfinite(axis["low"]) else None
            axis["high"] = axis["high"] if np.isfinite(axis["high"]) else None
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises SpecMismatchError on a field that is missing or unknown."""

        def axis(fields: Mapping[str, Any]) -> Axis:
            low, high = fields["low"], fields["high"]
            bounds = {"low": -np.inf if low is None else low, "high": np.inf if high is None else high}
            return Axis(**{**fields, **bounds})

        try:
            return cls(
                name=plain["name"],
                state=tuple(axis(fields) for fields in plain["state"]),
                action=tuple(axis(fields) for fields in plain["action"]),
                cameras=tuple(Camera(**fields) for fields in plain["cameras"]),
                control_hz=plain["control_hz"],
            )
        except (KeyError, TypeError) as error:
            raise SpecMismatchError(f"embodiment: {error!r} in {sorted(plain)}") from error


def _check_vector(kind: str, vector: np.ndarray, axes: tuple[Axis, ...]) -> None:
    if vector.shape != (len(axes),):
        names = [axis.name for axis in axes]
        raise SpecMismatchError(f"{kind} has shape {vector.shape}, expected ({len(axes)},): {names}")
    if not np.isfinite(vector).all():
        bad = [axis.name for axis, value in zip(axes, vector, strict=True) if not np.isfinite(value)]
        raise NonFiniteError(f"{kind} is not finite on {bad}")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    if isinstance(value, Camera):
        return f"{value.name} {value.height}x{value.width}"
    if isinstance(value, Axis):
        return f"{value.name} [{value.unit}]"
    return repr(value)
