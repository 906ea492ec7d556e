"""The numbers of published OpenVLA-OFT checkpoints: the bodies they drive and the statistics they come with.

A checkpoint says nothing about its robot; the reference guesses it from the command line. Here it is one of `PLATFORMS`
by the number of its action axes, or what the caller says.

Grippers: the published network gives 1 for open and 0 for closed, not normalised, and its evaluation commands
-sign(2 g - 1): -1 opens LIBERO's gripper, +1 closes it. Our binary axes hold the command itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.core.errors import CorruptFileError, MissingAssetError, SpecMismatchError, unknown_name
from vla.core.spec import Axis, Camera, Embodiment
from vla.data.normalize import Normalize, Statistics
from vla.data.transforms import Transforms

STATISTICS = "dataset_statistics.json"
_FIELDS = ("q01", "q99", "min", "max", "mean", "std")


def _libero() -> Embodiment:
    """LIBERO's Panda at 256 px, the same as `sim/libero.py` says; vla.policies sees no simulator."""
    position = tuple(Axis(name=f"eef_{axis}", unit="m") for axis in "xyz")
    rotation = tuple(Axis(name=f"eef_r{axis}", unit="rad") for axis in "xyz")
    fingers = tuple(Axis(name=f"finger_{side}", unit="m") for side in ("left", "right"))
    deltas = tuple(Axis(name=name, unit="1", low=-1, high=1) for name in ("dx", "dy", "dz", "drx", "dry", "drz"))
    return Embodiment(
        name="libero_panda",
        state=position + rotation + fingers,
        action=(*deltas, Axis(name="gripper", unit="1", low=-1, high=1, binary=True)),
        cameras=tuple(Camera(name=name, height=256, width=256) for name in ("agentview", "wrist")),
        control_hz=20.0,
    )


def _aloha() -> Embodiment:
    """Two ViperX arms at 25 Hz: absolute joint angles; grippers are continuous, 0 closed to 1 open.

    Cameras give 480x640; the robot's side reduces them to 256x256 as the published client does.
    """
    joints = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    axes = tuple(
        axis
        for side in ("left", "right")
        for axis in (
            *(Axis(name=f"{side}_{joint}", unit="rad") for joint in joints),
            Axis(name=f"{side}_gripper", unit="1"),
        )
    )
    cameras = tuple(Camera(name=name, height=256, width=256) for name in ("high", "left_wrist", "right_wrist"))
    return Embodiment(name="aloha", state=axes, action=axes, cameras=cameras, control_hz=25.0)


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What a published checkpoint assumes about its robot (specification of OpenVLA-OFT, 1.18).

    horizon    H
    quantiles  actions and states are scaled by q01 and q99; else by minimum and maximum
    """

    spec: Embodiment
    horizon: int
    quantiles: bool


PLATFORMS: Mapping[int, Platform] = {
    7: Platform(spec=_libero(), horizon=8, quantiles=True),
    14: Platform(spec=_aloha(), horizon=25, quantiles=False),
}


def platform_of(action_dim: int, spec: Embodiment | None, horizon: int | None) -> Platform:
    """The platform of a checkpoint with `action_dim` outputs; `spec` and `horizon` override what it would be.

    Raises:
        SpecMismatchError: no platform has so many axes, or `spec` has another number of them.
    """
    if spec is not None and spec.action_dim != action_dim:
        raise SpecMismatchError(f"the checkpoint has {action_dim} action axes, {spec.name} has {spec.action_dim}")
    known = PLATFORMS.get(action_dim)
    if known is None and (spec is None or horizon is None):
        raise SpecMismatchError(f"{action_dim} action axes fit no platform {sorted(PLATFORMS)}: give spec and horizon")
    return Platform(
        spec=spec or known.spec,  # pyright: ignore[reportOptionalMemberAccess]
        horizon=horizon or known.horizon,  # pyright: ignore[reportOptionalMemberAccess]
        quantiles=known is None or known.quantiles,
    )


def published_transforms(
    folder: Path, config: Mapping[str, Any], unnorm_key: str | None, of: Platform, *, proprio: bool = True
) -> Transforms:
    """The transforms that a checkpoint's statistics describe.

    They come from `dataset_statistics.json`; a checkpoint that was not fine-tuned has `norm_stats` in its config.

    Args:
        folder: the checkpoint.
        config: the content of its config.json.
        unnorm_key: the dataset; `libero_x` also finds `libero_x_no_noops`. None: the only one.
        of: embodiment and kind of bounds.
        proprio: whether the network sees the state; its statistics may be missing or of another body where not.

    Raises:
        MissingAssetError: no statistics at all.
        UnknownNameError: no such dataset, or several and no key.
        SpecMismatchError: the statistics do not fit the embodiment.
        CorruptFileError: a number is missing or not finite.
    """
    path = folder / STATISTICS
    try:
        datasets = json.loads(path.read_bytes()) if path.exists() else config.get("norm_stats") or {}
    except ValueError as error:
        raise CorruptFileError(f"{path}: not JSON ({error})") from error
    if not datasets:
        raise MissingAssetError(f"no statistics in '{folder}': {STATISTICS} is missing")
    key = _key(datasets, unnorm_key)
    entry, where = datasets[key], f"{path.name} '{key}'"
    if "action" not in entry:
        raise CorruptFileError(f"{where}: no 'action', only {sorted(entry)}")
    binary_A, count = of.spec.binary_A, int(entry.get("num_transitions", 0))
    raw_A = ~np.asarray(entry["action"].get("mask", [True] * of.spec.action_dim), bool)
    if raw_A.shape != binary_A.shape or (binary_A & ~raw_A).any():
        raise SpecMismatchError(
            f"{where}: the action mask is {(~raw_A).tolist()}, expected {of.spec.action_dim} values, false for the "
            f"binary axes of {of.spec.name}"
        )
    action = _statistics(entry["action"], count, of.quantiles, f"{where}.action", raw_A)
    action.mean[binary_A], action.std[binary_A] = 1 - 2 * action.mean[binary_A], 2 * action.std[binary_A]
    state_dim = of.spec.state_dim
    unseen: dict[str, Any] = dict.fromkeys(_FIELDS, [0.0] * state_dim)
    numbers = entry.get("proprio", {}) if proprio else unseen
    state = _statistics(numbers, count, of.quantiles, f"{where}.proprio", np.zeros(state_dim, bool))
    return Transforms(
        state=Normalize(statistics=state, binary_D=np.zeros(state_dim, bool), clip=1.0),
        action=Normalize(statistics=action, binary_D=binary_A, clip=1.0),
    )


def _key(datasets: Mapping[str, Any], wanted: str | None) -> str:
    if wanted is None and len(datasets) == 1:
        return next(iter(datasets))
    for key in (wanted or "", f"{wanted}_no_noops"):
        if key in datasets:
            return key
    raise unknown_name("unnorm_key", wanted or "", datasets)


def _statistics(numbers: Mapping[str, Any], count: int, quantiles: bool, where: str, raw_D: np.ndarray) -> Statistics:
    """Statistics whose `Normalize` is the published rule; axes in `raw_D` pass through it as they are."""
    if missing := [field for field in _FIELDS if field not in numbers]:
        raise CorruptFileError(f"{where} lacks {missing}")
    values = {field: np.array(numbers[field], np.float64) for field in _FIELDS}
    for field, value_D in values.items():
        if value_D.shape != raw_D.shape:
            raise SpecMismatchError(f"{where}.{field} has {value_D.size} numbers, the embodiment {raw_D.size} axes")
        if not np.isfinite(value_D).all():
            raise CorruptFileError(f"{where}.{field} holds NaN or infinity")
    if not quantiles:
        values["q01"], values["q99"] = values["min"].copy(), values["max"].copy()
    # Ours would widen an axis that moves, but less often than the quantiles show, to its extremes; theirs divides by
    # 1e-8. An interval as narrow as a float64 can be makes the two agree.
    narrow_D = (values["q01"] == values["q99"]) & (values["min"] < values["max"])
    values["min"] = np.where(narrow_D, values["q01"], values["min"])
    values["max"] = np.where(narrow_D, np.nextafter(values["q01"], np.inf), values["max"])
    for field, bound in (("q01", -1.0), ("q99", 1.0), ("min", -1.0), ("max", 1.0)):
        values[field][raw_D] = bound
    return Statistics(**values, count=count)
