"""Snapshots of suites that others wrote: a JSON header and named arrays, no pickle; MuJoCo put back exactly."""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from vla.core.errors import CorruptFileError

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Plain values and arrays as bytes."""
    buffer = io.BytesIO()
    plain = np.frombuffer(json.dumps(dict(header)).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, header=plain, **arrays)
    return buffer.getvalue()


def unpack(snapshot: bytes, suite: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Inverse of `pack`. Raises CorruptFileError when damaged, or when its header names another suite."""
    try:
        with np.load(io.BytesIO(snapshot), allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays.pop("header").tobytes())
        found = header["suite"]
    except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f"snapshot: {type(error).__name__}: {error}") from error
    if found != suite:
        raise CorruptFileError(f"snapshot is of suite '{found}', this env runs '{suite}'")
    return header, arrays


def read_physics(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Everything that MuJoCo's next step depends on, (n,) float64."""
    state = np.empty(mujoco.mj_stateSize(model, _INTEGRATION))
    mujoco.mj_getState(model, data, state, _INTEGRATION)
    return state


def write_physics(model: mujoco.MjModel, data: mujoco.MjData, state: np.ndarray) -> None:
    """Inverse of `read_physics`; poses, contacts and forces are those of the state. Raises CorruptFileError."""
    size = mujoco.mj_stateSize(model, _INTEGRATION)
    if state.shape != (size,):
        raise CorruptFileError(f"snapshot: physics has shape {state.shape}, this scene's has ({size},)")
    mujoco.mj_setState(model, data, state, _INTEGRATION)
    mujoco.mj_forward(model, data)
    # forward leaves a new warm start of the solver; the next step must begin from the saved one
    mujoco.mj_setState(model, data, state, _INTEGRATION)
