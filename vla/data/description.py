"""meta/graspline.json: what LeRobotDataset v3 has no place for.

    {"embodiment": {...}, "columns": {name: shape of one row}, "episodes": [{"meta": {...}, "success": true, ...}]}

`columns` names the features that are `Episode.columns`; a number a step has the shape []. lerobot stores it as [1].
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla.core.errors import CorruptFileError
from vla.core.types import Episode

FLAGS = ("success", "terminated", "truncated")


@dataclass(frozen=True, kw_only=True)
class ColumnKind:
    """What one row of a column is."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def feature(self) -> dict[str, Any]:
        """As lerobot describes it."""
        return {"dtype": self.dtype, "shape": self.shape or (1,), "names": None}


def column_kinds(episode: Episode) -> dict[str, ColumnKind]:
    """Kinds of an episode's columns. Raises ValueError for what a dataset cannot hold."""
    kinds = {}
    for name, column in sorted(episode.columns.items()):
        if column.dtype.kind not in "biuf" or column.ndim > 2 or "/" in name:
            raise ValueError(f"columns['{name}'] is {column.dtype} {column.shape}: expected numbers, (T,) or (T, D)")
        kinds[name] = ColumnKind(dtype=str(column.dtype), shape=column.shape[1:])
    return kinds


def describe_episode(episode: Episode) -> dict[str, Any]:
    """Its entry in `episodes`."""
    meta = {key: value.item() if isinstance(value, np.generic) else value for key, value in episode.meta.items()}
    return {"meta": meta, **{flag: bool(getattr(episode, flag)) for flag in FLAGS}}


def read_description(root: Path) -> dict[str, Any] | None:
    """The file of the dataset at `root`; None where there is none. Raises CorruptFileError."""
    path = _path(root)
    if not path.is_file():
        return None
    try:
        described = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(described, Mapping) or not {"embodiment", "episodes"} <= set(described):
        raise CorruptFileError(f"{path} lacks 'embodiment' or 'episodes'")
    return {"columns": {}, **described}  # older files have none


def write_description(root: Path, described: Mapping[str, Any]) -> None:
    _path(root).write_text(json.dumps(described))


def _path(root: Path) -> Path:
    return root / "meta" / "graspline.json"
