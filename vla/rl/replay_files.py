"""A replay as one file: safetensors with a JSON header. Written whole or not at all, read strictly."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vla.core.errors import CorruptFileError, MissingAssetError, StorageError
from vla.data.folders import sync
from vla.rl.replay import LAYOUT, OPTIONAL, Replay, Returns, Rewards

_FORMAT = "graspline-replay-1"


def save_replay(path: Path, replay: Replay) -> None:
    """Writes the file atomically, with its returns.

    Raises:
        StorageError: the disk refused; what was at `path` before is intact.
    """
    arrays = {name: array for name in LAYOUT if (array := getattr(replay, name)) is not None}
    arrays |= {f"reward/{version}": column.reward_N for version, column in replay.rewards.items()}
    arrays |= {f"return/{version}": column.return_N for version, column in replay.returns.items()}
    header = {
        "tasks": list(replay.tasks),
        "rewards": {version: dict(column.provenance) for version, column in replay.rewards.items()},
        "returns": {version: [column.discount, column.after_truncation] for version, column in replay.returns.items()},
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, temporary, {"format": _FORMAT, "replay": json.dumps(header)})
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(getattr(error, "errno", None), f"replay {path} was not written: {error}") from error


def load_replay(path: Path) -> Replay:
    """What `save_replay` wrote.

    Raises:
        MissingAssetError: no such file.
        CorruptFileError: cut short, of another format, or with arrays too many, too few or that do not fit.
    """
    if not path.is_file():
        raise MissingAssetError(f"no replay at {path}")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CorruptFileError(f"{path}: format is '{metadata.get('format')}', expected '{_FORMAT}'")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return _decoded(arrays, json.loads(metadata["replay"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"replay {path} is cut short or not what it claims to be: {error}") from error


def _decoded(arrays: dict[str, Any], header: dict[str, Any]) -> Replay:
    rewards = {
        version: Rewards(reward_N=arrays.pop(f"reward/{version}"), provenance=provenance)
        for version, provenance in header["rewards"].items()
    }
    returns = {
        version: Returns(return_N=arrays.pop(f"return/{version}"), discount=discount, after_truncation=after)
        for version, (discount, after) in header["returns"].items()
    }
    unexpected = arrays.keys() - LAYOUT.keys()
    missing = LAYOUT.keys() - arrays.keys() - set(OPTIONAL)
    if unexpected or missing:
        raise ValueError(f"arrays unexpected: {sorted(unexpected)}, missing: {sorted(missing)}")
    return Replay(**arrays, tasks=tuple(header["tasks"]), rewards=rewards, returns=returns)
