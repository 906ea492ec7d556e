"""The low-dimensional half of a LeRobotDataset v3 folder, straight from its parquet files: no copy, no lerobot import.

Layout (codebase version v3.0): meta/info.json says features and rate; data/**.parquet holds one row a frame; task
strings are in meta/tasks.parquet; meta/episodes/**.parquet says where each episode lies in the videos.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla.core.errors import CorruptFileError, MissingAssetError, NonFiniteError, SpecMismatchError
from vla.core.spec import Axis, Camera, Embodiment
from vla.core.types import Float

STATE, ACTION, LABEL, TIME = "observation.state", "action", "expert_action", "time_s"
BOOKKEEPING = ("index", "episode_index", "frame_index", "timestamp", "task_index")  # lerobot's own columns
IMAGE_PREFIX, REWARD_PREFIX, TOTAL_REWARD = "observation.images.", "reward.", "next.reward"


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Every frame of a dataset without its images. Frames of an episode follow each other.

    states_NS     (N, S) float32
    actions_NA    (N, A) float32    as executed
    labels_NA     (N, A) float32    what to imitate; equal to actions_NA where the dataset has no `expert_action`
    rewards       {term: (N,)}      float32
    episode_N     (N,) int64        episode of each frame
    frame_N       (N,) int64        number of the frame in its episode
    timestamp_N   (N,) float64      time [s] in the video, from the episode's start: frame / rate
    time_N        (N,) float64      clock [s] at which the frame was sensed; timestamp_N where it was not recorded
    task_N        (N,) int64        index into `tasks`
    tasks         instructions
    extra         {name: (N, ...)}  `Episode.columns`
    """

    states_NS: Float
    actions_NA: Float
    labels_NA: Float
    rewards: Mapping[str, Float]
    episode_N: NDArray[np.int64]
    frame_N: NDArray[np.int64]
    timestamp_N: NDArray[np.float64]
    time_N: NDArray[np.float64]
    task_N: NDArray[np.int64]
    tasks: tuple[str, ...]
    extra: Mapping[str, NDArray] = field(default_factory=dict)

    @property
    def starts(self) -> NDArray[np.int64]:
        """(episodes + 1,) first frame of each episode, and N."""
        return np.append(np.searchsorted(self.episode_N, np.arange(self.episode_N[-1] + 1)), len(self.episode_N))

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instruction of each episode (that of its first frame)."""
        return tuple(self.tasks[task] for task in self.task_N[self.starts[:-1]])


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json. Raises MissingAssetError if there is no dataset, CorruptFileError if it cannot be read."""
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise MissingAssetError(f"no LeRobotDataset at {root} (expected meta/info.json in it)")
    try:
        info = json.loads(path.read_text())
        if not str(info["codebase_version"]).startswith("v3"):
            raise CorruptFileError(f"{path}: LeRobotDataset {info['codebase_version']}, expected v3.x")
        for key in ("features", "fps", "total_frames", "total_episodes"):
            info[key]
        return info
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is not the info.json of a LeRobotDataset: {error!r}") from error


def read_table(root: Path, folder: str, columns: list[str] | None = None, *, episode: int | None = None) -> pa.Table:
    """The parquet files under `root/folder`, in file order; one episode's rows or all. Raises CorruptFileError."""
    paths = sorted((root / folder).rglob("*.parquet"))
    if not paths:
        raise CorruptFileError(f"{root}: no parquet file under {folder}/")
    tables = [_read(path, columns, episode) for path in paths]
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise CorruptFileError(f"{root}/{folder}: files do not have the same columns: {error}") from error


def read_columns(root: Path, info: Mapping[str, Any], extra: Mapping[str, Sequence[int]] | None = None) -> Columns:
    """The frames of a whole dataset, without images. `extra`: further features, with the shape of one row of each.

    Raises:
        CorruptFileError: unreadable, or frames are missing.
        SpecMismatchError: no state or no action.
        NonFiniteError: NaN or infinity in a state, action or label; names episode, frame and column.
    """
    features = info["features"]
    extra = extra or {}
    if missing := [name for name in (STATE, ACTION, *extra) if name not in features]:
        raise SpecMismatchError(f"{root}: features {missing} missing, got {sorted(features)}")
    terms = [name for name in features if name.startswith(REWARD_PREFIX)]
    terms = terms or [name for name in (TOTAL_REWARD,) if name in features]
    optional = [name for name in (LABEL, TIME) if name in features]
    table = read_table(root, "data", [STATE, ACTION, *optional, *terms, *extra, *BOOKKEEPING]).sort_by("index")

    count = info["total_frames"]
    if len(table) != count or not np.array_equal(_array(table, "index", np.int64), np.arange(count)):
        raise CorruptFileError(f"{root}: {len(table)} frames in data/, meta/info.json says {count}, numbered from 0")
    episode_N = _array(table, "episode_index", np.int64)
    if count == 0 or not np.array_equal(np.unique(episode_N), np.arange(info["total_episodes"])):
        raise CorruptFileError(f"{root}: episodes in data/ are not 0..{info['total_episodes'] - 1} of meta/info.json")
    vectors = {name: _array(table, name, np.float32, len(axis_names(features[name]))) for name in (STATE, ACTION)}
    if LABEL in optional:
        vectors[LABEL] = _array(table, LABEL, np.float32, len(axis_names(features[LABEL])))
    frame_N, timestamp_N = _array(table, "frame_index", np.int64), _array(table, "timestamp", np.float64)
    for name, values in vectors.items():
        _check_finite(root, name, axis_names(features[name]), values, episode_N, frame_N)
    return Columns(
        states_NS=vectors[STATE],
        actions_NA=vectors[ACTION],
        labels_NA=vectors.get(LABEL, vectors[ACTION]),
        rewards={name.removeprefix(REWARD_PREFIX): _array(table, name, np.float32) for name in terms},
        episode_N=episode_N,
        frame_N=frame_N,
        timestamp_N=timestamp_N,
        time_N=_array(table, TIME, np.float64) if TIME in optional else timestamp_N,
        task_N=_array(table, "task_index", np.int64),
        tasks=_tasks(root),
        extra={name: _rows(table, name, np.dtype(features[name]["dtype"]), shape) for name, shape in extra.items()},
    )


def spec_of(info: Mapping[str, Any]) -> Embodiment:
    """An embodiment as far as info.json tells it: no units, no bounds, no binary axes."""
    features = info["features"]
    return Embodiment(
        name=info.get("robot_type") or "unknown",
        state=tuple(Axis(name=name, unit="") for name in axis_names(features.get(STATE, {}))),
        action=tuple(Axis(name=name, unit="") for name in axis_names(features.get(ACTION, {}))),
        cameras=tuple(_camera(name, features[key]) for name, key in camera_features(info).items()),
        control_hz=float(info["fps"]),
    )


def camera_features(info: Mapping[str, Any]) -> dict[str, str]:
    """{camera: feature key} of the colour cameras."""
    keys = [
        key
        for key, feature in info["features"].items()
        if feature["dtype"] in ("image", "video") and not (feature.get("info") or {}).get("is_depth_map", False)
    ]
    return {key.removeprefix(IMAGE_PREFIX).removeprefix("observation."): key for key in keys}


def axis_names(feature: Mapping[str, Any]) -> list[str]:
    """Names of a vector feature's axes; numbers where it has none. Third parties nest them in a mapping."""
    names = feature.get("names")
    if isinstance(names, Mapping):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    size = int(np.prod(feature.get("shape", (0,))))
    return list(map(str, names)) if names and len(names) == size else [str(i) for i in range(size)]


def _camera(name: str, feature: Mapping[str, Any]) -> Camera:
    shape = list(feature["shape"])
    height, width = shape[1:] if shape[0] == 3 and shape[2] != 3 else shape[:2]
    return Camera(name=name, height=height, width=width)


def _tasks(root: Path) -> tuple[str, ...]:
    table = _read(root / "meta" / "tasks.parquet")
    text = next(name for name in table.column_names if name != "task_index")  # "task", or a nameless pandas index
    names = dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True))
    return tuple(names[index] for index in range(len(names)))


def _read(path: Path, columns: list[str] | None = None, episode: int | None = None) -> pa.Table:
    only = None if episode is None else [("episode_index", "==", episode)]
    try:
        return pq.read_table(path, columns=columns, partitioning=None, filters=only)  # pyright: ignore[reportArgumentType]
    except (pa.ArrowException, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from error


def _rows(table: pa.Table, name: str, dtype: np.dtype, shape: Sequence[int]) -> NDArray:
    """A column as (N, *shape)."""
    return _array(table, name, dtype, int(np.prod(shape))).reshape(len(table), *shape)


def _array(table: pa.Table, name: str, dtype: type | np.dtype, size: int | None = None) -> NDArray:
    """A column as (N,), or (N, size) if it holds lists (or is the scalar column of a one-dimensional feature)."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    while (
        pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type)
    ):
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False).astype(dtype)
    if len(values) != len(table) * (size or 1):
        raise CorruptFileError(
            f"column '{name}' has {len(values)} values in {len(table)} frames, expected {size or 1} each"
        )
    return values if size is None else values.reshape(len(table), size)


def _check_finite(
    root: Path, name: str, axes: list[str], values_ND: Float, episode_N: NDArray, frame_N: NDArray
) -> None:
    bad = np.argwhere(~np.isfinite(values_ND))
    if len(bad):
        row, axis = bad[0]
        raise NonFiniteError(
            f"{root}: {name}[{axes[axis]}] is {values_ND[row, axis]} in episode {episode_N[row]}, frame {frame_N[row]}"
            f" ({len(bad)} such values in all)"
        )
