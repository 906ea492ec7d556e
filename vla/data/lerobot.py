"""LeRobotDataset v3 in and out: the door to its datasets.

Writing goes through lerobot itself, into a folder beside the destination that takes its place when it is complete, so
a kill never leaves half a dataset. Reading goes straight to parquet and mp4, because lerobot's reader is slow and
importing it takes seconds; hence lerobot is imported where it is used, in the two functions that need it.

How an episode lies in the format. Frame t holds observation t with action, label, clock and rewards of step t. The
observation in which the episode ended (number T) has no action, and so no frame: read back, an episode's last
observation repeats its last but one, one control period later. Use staged episodes where that observation matters.
Everything else comes back exactly, except images, which video compresses. What the format has no place for
(embodiment, provenance, how an episode ended) is in meta/graspline.json (description.py).
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
from tqdm import tqdm

from vla.core.errors import CorruptFileError, NonFiniteError, SpecMismatchError, StorageError
from vla.core.spec import Embodiment
from vla.core.types import Episode, Image, Observation
from vla.data.columns import (
    ACTION,
    BOOKKEEPING,
    IMAGE_PREFIX,
    LABEL,
    REWARD_PREFIX,
    STATE,
    TIME,
    TOTAL_REWARD,
    Columns,
    camera_features,
    read_columns,
    read_info,
    read_table,
    spec_of,
)
from vla.data.description import (
    FLAGS,
    ColumnKind,
    column_kinds,
    describe_episode,
    read_description,
    write_description,
)
from vla.data.folders import hidden_sibling, link_tree, recover, replace_folder
from vla.data.staging import read_png
from vla.data.video import decode

# Full colour resolution: at 128 px, halving it (yuv420p) costs 5 dB, the edges of coloured objects being a large part.
_ENCODER = {"vcodec": "h264", "pix_fmt": "yuv444p", "g": 2, "crf": 8, "preset": "ultrafast"}
_VIDEO_FILE_MB = 20  # lerobot rewrites the current file at every episode, which larger files would make quadratic
_UNLIMITED = 0  # a bounded encoder queue drops frames when the encoder is slower than the disk we read from


def write_dataset(episodes: Iterable[Episode], root: Path, spec: Embodiment, *, total: int | None = None) -> None:
    """Writes episodes to a LeRobotDataset v3 at `root`, or adds them to the one that is there.

    Until the very end `root` stays as it was; a run that was killed leaves only a hidden folder beside it, which the
    next run removes. One writer at a time.

    Args:
        episodes: read one at a time; T + 1 observations, the first T with an image of every camera.
        root: dataset folder.
        spec: their embodiment; must equal that of a dataset that is there.
        total: number of episodes, for the progress bar.

    Raises:
        ValueError: no episodes, or episodes with different reward terms or columns.
        SpecMismatchError, NonFiniteError: an episode does not fit the embodiment.
        StorageError: the disk refused (errno is kept).
    """
    root = Path(root).absolute()
    temporary = hidden_sibling(root, "writing")
    recover(root)
    shutil.rmtree(temporary, ignore_errors=True)
    pending = iter(episodes)
    first = next(pending, None)
    if first is None:
        raise ValueError(f"no episodes to write to {root}")
    dataset, terms, kinds = None, sorted(first.rewards), column_kinds(first)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        described = _describe(root, spec, kinds)
        dataset = _open_writer(root, temporary, _features(spec, terms, kinds), spec)
        with _quick_and_quiet():
            for episode in tqdm(chain([first], pending), desc=f"writing {root.name}", total=total, unit="episode"):
                _check_episode(episode, spec, terms, kinds)
                _add(dataset, episode, spec)
                described["episodes"].append(describe_episode(episode))
            dataset.finalize()
        write_description(temporary, described)
        _check_written(temporary, spec.camera_names)
        replace_folder(temporary, root)
    except (OSError, RuntimeError) as error:
        # lerobot's encoder threads report every failure as a RuntimeError that quotes the cause.
        number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else getattr(error, "errno", None)
        if number is None:
            raise
        raise StorageError(number, f"dataset not written, {root} is as it was: {os.strerror(number)}") from error
    finally:
        if dataset is not None:  # else its destructor would write into the folder that is removed next
            with contextlib.suppress(OSError, RuntimeError):
                dataset.finalize()
        shutil.rmtree(temporary, ignore_errors=True)


class LeRobotSource:
    """Episodes of a LeRobotDataset v3 folder, written by us or by others.

    Others' datasets say less: their embodiment has names but no units or bounds, labels equal actions, and an episode
    counts as a success, terminated or truncated only if the dataset says so.
    """

    def __init__(self, root: Path) -> None:
        """Raises MissingAssetError if there is no dataset, CorruptFileError if its description cannot be read."""
        self.root = Path(root).absolute()
        recover(self.root)
        self.info = read_info(self.root)
        self._camera_keys = camera_features(self.info)
        self._columns: Columns | None = None
        table = read_table(self.root, "meta/episodes").sort_by("episode_index")
        wanted = [name for name in table.column_names if not name.startswith("stats/") or "/next." in name]
        self._entries = table.select(wanted).to_pylist()
        if len(self._entries) != self.info["total_episodes"]:
            found, expected = len(self._entries), self.info["total_episodes"]
            raise CorruptFileError(f"{self.root}: {found} episodes in meta/episodes, {expected} in meta/info.json")
        described = read_description(self.root)
        self.spec = Embodiment.from_dict(described["embodiment"]) if described else spec_of(self.info)
        self._kinds = described["columns"] if described else {}
        self.described = described["episodes"] if described else [self._foreign(i) for i in range(len(self))]
        if len(self.described) != len(self._entries):
            raise CorruptFileError(f"{self.root}: meta/graspline.json describes {len(self.described)} episodes")

    @property
    def episode_meta(self) -> list[dict[str, Any]]:
        """For each episode its `meta`, with `success`, `terminated` and `truncated` beside it."""
        return [{**one["meta"], **{flag: one[flag] for flag in FLAGS}} for one in self.described]

    def columns(self) -> Columns:
        """All frames without images; read once. Raises CorruptFileError, SpecMismatchError, NonFiniteError."""
        if self._columns is None:
            self._columns = read_columns(self.root, self.info, self._kinds)
        return self._columns

    def frames(self, episode: int, camera: str) -> Iterator[Image]:
        """Decodes one camera's images of one episode, in order. Raises CorruptFileError."""
        columns, key = self.columns(), self._camera_keys[camera]
        first, last = columns.starts[episode : episode + 2]
        if self.info["features"][key]["dtype"] == "image":
            rows = read_table(self.root, "data", [key, "index"], episode=episode).sort_by("index")
            yield from (read_png(np.frombuffer(row["bytes"], np.uint8)) for row in rows[key].to_pylist())
            return
        entry = self._entries[episode]
        place = {"chunk_index": entry[f"videos/{key}/chunk_index"], "file_index": entry[f"videos/{key}/file_index"]}
        path = self.root / self.info["video_path"].format(video_key=key, **place)
        times = columns.timestamp_N[first:last] + entry[f"videos/{key}/from_timestamp"]
        yield from decode(path, times, self.info["fps"])

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        columns, described = self.columns(), self.described[index]
        first, last = columns.starts[index : index + 2]
        steps = last - first
        images = {camera: list(self.frames(index, camera)) for camera in self._camera_keys}
        observations = [
            Observation(
                images={camera: images[camera][t] for camera in images},
                state_S=columns.states_NS[first + t],
                instruction=columns.tasks[columns.task_N[first + t]],
                time_s=float(columns.time_N[first + t]) + after * self.spec.dt_s,
            )
            for t, after in [*((t, 0) for t in range(steps)), (steps - 1, 1)]
        ]
        return Episode(
            observations=observations,
            actions_TA=columns.actions_NA[first:last],
            labels_TA=columns.labels_NA[first:last],
            rewards={term: reward_N[first:last] for term, reward_N in columns.rewards.items()},
            terminated=described["terminated"],
            truncated=described["truncated"],
            success=described["success"],
            meta=described["meta"],
            columns={name: column_N[first:last] for name, column_N in columns.extra.items()},
        )

    def _foreign(self, index: int) -> dict[str, Any]:
        """What the columns of somebody else's dataset say about an episode's end; nothing said counts as no."""
        stats = {
            flag: bool(np.max(self._entries[index].get(f"stats/next.{flag}/max") or 0))
            for flag in ("success", "done", "truncated")
        }
        tasks = self._entries[index].get("tasks") or [""]
        return {
            "meta": {"task": tasks[0]},
            "success": stats["success"],
            "terminated": stats["done"] and not stats["truncated"],
            "truncated": stats["truncated"],
        }


def lerobot_sampler(root: Path, horizon: int, video_backend: str | None = None) -> Callable[[int], dict[str, Any]]:
    """Returns lerobot's own random access to (images, state, chunk of `horizon` actions), to compare ours with.

    Args:
        root: dataset folder.
        horizon: H.
        video_backend: "pyav", "torchcodec", or None for lerobot's default.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    rate = read_info(Path(root))["fps"]
    dataset = LeRobotDataset(
        Path(root).name,
        root=root,
        delta_timestamps={ACTION: [step / rate for step in range(horizon)]},
        video_backend=video_backend,
        return_uint8=True,
    )

    def sample(row: int) -> dict[str, Any]:
        item = dataset[row]
        assert isinstance(item, dict), "a list only for a slice"
        return item

    return sample


def _open_writer(root: Path, temporary: Path, features: dict[str, dict[str, Any]], spec: Embodiment) -> Any:
    """A lerobot dataset in write mode at `temporary`, continuing the one at `root` if there is one."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if spec.control_hz != round(spec.control_hz):
        raise SpecMismatchError(f"control_hz is {spec.control_hz}; LeRobotDataset stores whole numbers only")
    options: dict[str, Any] = {
        "video_backend": "pyav",
        "rgb_encoder": RGBEncoderConfig(**_ENCODER),
        "streaming_encoding": True,
        "encoder_queue_maxsize": _UNLIMITED,
    }
    if not root.exists():
        rate = round(spec.control_hz)
        return LeRobotDataset.create(
            root.name, rate, features, temporary, spec.name, video_files_size_in_mb=_VIDEO_FILE_MB, **options
        )
    old = read_info(root)["features"]
    if unlike := set(features) ^ (set(old) - set(BOOKKEEPING)):
        raise SpecMismatchError(f"{root} cannot be extended: only one side has {sorted(unlike)}")
    for name, new in features.items():
        if (old[name]["dtype"], list(old[name]["shape"])) != (new["dtype"], list(new["shape"])):
            told = f"{new['dtype']} {list(new['shape'])}, there it is {old[name]['dtype']} {list(old[name]['shape'])}"
            raise SpecMismatchError(f"{root} cannot be extended: '{name}' is {told}")
    for folder in ("data", "videos"):  # lerobot adds files to these two, and rewrites those of meta
        link_tree(root / folder, temporary / folder)
    shutil.copytree(root / "meta", temporary / "meta")
    return LeRobotDataset.resume(root.name, temporary, **options)


@contextlib.contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Spares lerobot two thirds of its work that nobody needs (measured: 121 to 342 steps a CPU second).

    It takes the image statistics of every pixel, where a 32 px thumbnail does, and copies each row of a table in search
    of images to embed, where ours holds none. FFmpeg's chatter about every file is turned off.
    """
    from lerobot.datasets import compute_stats, dataset_writer

    def thumbnail(image_chw: np.ndarray) -> np.ndarray:
        step = max(1, min(image_chw.shape[1:]) // 32)
        return image_chw[:, ::step, ::step]

    av.logging.set_libav_level(av.logging.ERROR)
    try:
        with (
            patch.object(compute_stats, "auto_downsample_height_width", thumbnail),
            patch.object(dataset_writer, "embed_images", lambda table: table),
        ):
            yield
    finally:
        av.logging.set_libav_level(av.logging.INFO)  # FFmpeg's default


def _features(spec: Embodiment, terms: Iterable[str], kinds: Mapping[str, ColumnKind]) -> dict[str, dict[str, Any]]:
    def vector(dtype: str, names: Iterable[str]) -> dict[str, Any]:
        names = list(names)
        return {"dtype": dtype, "shape": (len(names),), "names": names}

    action = [axis.name for axis in spec.action]
    features = {
        IMAGE_PREFIX + camera.name: {
            "dtype": "video",
            "shape": (camera.height, camera.width, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in spec.cameras
    }
    features[STATE] = vector("float32", (axis.name for axis in spec.state))
    features[ACTION], features[LABEL] = vector("float32", action), vector("float32", action)
    features[TIME] = vector("float64", ["monotonic"])
    for flag in ("next.success", "next.done", "next.truncated"):
        features[flag] = vector("bool", [flag])
    for name in [*(REWARD_PREFIX + term for term in terms), *([TOTAL_REWARD] if terms else [])]:
        features[name] = vector("float32", [name])
    if taken := sorted(kinds.keys() & {*features, *BOOKKEEPING, "task"}):
        raise ValueError(f"columns {taken} have the names of something else in a dataset")
    return features | {name: kind.feature for name, kind in kinds.items()}


def _add(dataset: Any, episode: Episode, spec: Embodiment) -> None:
    total_T = sum(episode.rewards.values(), np.zeros(len(episode), np.float32))
    for t, observation in enumerate(episode.observations[:-1]):
        last = t == len(episode) - 1
        frame: dict[str, Any] = {IMAGE_PREFIX + name: observation.images[name] for name in spec.camera_names}
        frame |= {
            "task": observation.instruction,
            STATE: observation.state_S,
            ACTION: episode.actions_TA[t],
            LABEL: episode.labels_TA[t],
            TIME: np.array([observation.time_s], np.float64),
            "next.success": np.array([last and episode.success]),
            "next.done": np.array([last]),
            "next.truncated": np.array([last and episode.truncated]),
        }
        frame |= {REWARD_PREFIX + term: reward_T[t : t + 1] for term, reward_T in episode.rewards.items()}
        frame |= {name: np.atleast_1d(column[t]) for name, column in episode.columns.items()}
        if episode.rewards:
            frame[TOTAL_REWARD] = total_T[t : t + 1]
        dataset.add_frame(frame)
    dataset.save_episode()


def _check_episode(episode: Episode, spec: Embodiment, terms: list[str], kinds: Mapping[str, ColumnKind]) -> None:
    if len(episode) == 0:
        raise ValueError("an episode has no steps")
    if sorted(episode.rewards) != terms:
        raise ValueError(f"an episode has reward terms {sorted(episode.rewards)}, the first has {terms}")
    if unlike := sorted({name for name, _ in column_kinds(episode).items() ^ kinds.items()}):
        raise ValueError(f"an episode has other columns than the first: {unlike} are missing, added or of another kind")
    for observation in episode.observations[:-1]:
        spec.validate(observation)
    for name, actions_TA in (("actions", episode.actions_TA), ("labels", episode.labels_TA)):
        if actions_TA.shape[1] != spec.action_dim:
            raise SpecMismatchError(f"{name} have shape {actions_TA.shape}, {spec.name} has {spec.action_dim} axes")
        if not np.isfinite(actions_TA).all():
            t, axis = np.argwhere(~np.isfinite(actions_TA))[0]
            raise NonFiniteError(f"{name}: {spec.action[axis].name} is {actions_TA[t, axis]} at step {t}")


def _describe(root: Path, spec: Embodiment, kinds: Mapping[str, ColumnKind]) -> dict[str, Any]:
    """The description that the result starts from: empty, or that of the dataset to be extended."""
    fresh = {"embodiment": spec.to_dict(), "columns": {name: kind.shape for name, kind in kinds.items()}}
    if not root.exists():
        return {**fresh, "episodes": []}
    source = LeRobotSource(root)
    source.spec.check_same(spec, here=str(root), there="new episodes")
    return {**fresh, "episodes": source.described}


def _check_written(root: Path, cameras: Iterable[str]) -> None:
    """Every episode's video is as long as its columns: lerobot only logs it when an encoder loses frames."""
    rate = read_info(root)["fps"]
    for entry in read_table(root, "meta/episodes").to_pylist():
        for key in (IMAGE_PREFIX + camera for camera in cameras):
            seconds = entry[f"videos/{key}/to_timestamp"] - entry[f"videos/{key}/from_timestamp"]
            if round(seconds * rate) != entry["length"]:
                index, frames = entry["episode_index"], round(seconds * rate)
                raise RuntimeError(f"episode {index}: the video of {key} has {frames} of {entry['length']} frames")
