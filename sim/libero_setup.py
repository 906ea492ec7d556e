"""What LIBERO needs before it can be imported: task tables, a config file, the assets, and its stored initial states.

Nothing here imports `libero` itself: its first import asks questions on standard input unless a config file exists,
its benchmark module pulls in torch, and its initial states are torch archives that it unpickles without any check.
"""

import importlib.util
import io
import json
import os
import pickle
import runpy
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from vla.core.errors import CorruptFileError, MissingAssetError, unknown_name
from vla.core.protocols import Task

# Control steps, as the published evaluations set them (OpenVLA-OFT, openpi): longest demonstration plus a margin.
HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
NUM_INIT_STATES = 50
ASSETS_VARIABLE = "GRASPLINE_LIBERO_ASSETS"
_ASSETS_REPO = "lerobot/libero-assets"  # a dataset repository; the one hf-libero names
_ASSET_FOLDERS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")


def package_folder() -> Path:
    """The folder of the inner `libero` package, found without importing it.

    Raises:
        MissingAssetError: hf-libero is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise MissingAssetError("LIBERO is not installed: pip install --no-deps hf-libero==0.1.4")
    return Path(spec.submodule_search_locations[0]) / "libero"


def suite_tasks(suite: str, train_states: int) -> dict[str, Task]:
    """The tasks of a suite by name, in LIBERO's own order (its task order 0).

    The instruction is made from the file name, as LIBERO's benchmark does; the `:language` of a bddl file differs.

    Raises:
        UnknownNameError: no such suite.
        ValueError: `train_states` outside 0..50.
    """
    if suite not in HORIZONS:
        raise unknown_name("suite", suite, HORIZONS)
    if not 0 <= train_states <= NUM_INIT_STATES:
        raise ValueError(f"train_states is {train_states}, expected 0 to {NUM_INIT_STATES}")
    table = runpy.run_path(str(package_folder() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]
    return {
        name: Task(
            name=name,
            instruction=_instruction(name),
            horizon=HORIZONS[suite],
            num_init_states=NUM_INIT_STATES,
            num_train_states=train_states,
        )
        for name in table[suite]
    }


def _instruction(name: str) -> str:
    """KITCHEN_SCENE3_turn_on_the_stove -> turn on the stove."""
    if name[0].isupper():
        name = name.partition("SCENE")[2].partition("_")[2]
    return name.replace("_", " ")


def bddl_file(suite: str, task: str) -> Path:
    """The file that defines a task's objects, regions and goal."""
    return package_folder() / "bddl_files" / suite / f"{task}.bddl"


def init_states_file(suite: str, task: str) -> Path:
    """The file with a task's stored initial states, for `load_init_states`."""
    return package_folder() / "init_files" / suite / f"{task}.pruned_init"


def ensure_config() -> None:
    """Makes sure that importing LIBERO asks nothing: points it to a config file of ours unless the user has one.

    We never read the file; a user's own is left alone.
    """
    named = os.environ.get("LIBERO_CONFIG_PATH")
    folder = Path(named) if named else Path("~/.libero").expanduser()
    if (folder / "config.yaml").is_file():
        return
    root = package_folder()
    paths = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    text = "".join(f"{key}: {json.dumps(str(path))}\n" for key, path in paths.items())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "graspline" / "libero"
    try:
        _write_atomically(cache / "config.yaml", text)
    except OSError:  # a home that cannot be written, as in some containers
        cache = Path(tempfile.mkdtemp(prefix="graspline-libero-"))
        _write_atomically(cache / "config.yaml", text)
    os.environ["LIBERO_CONFIG_PATH"] = str(cache)


def _write_atomically(path: Path, text: str) -> None:
    """Several processes may do this at once; each sees a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def find_assets(assets: str | None) -> Path:
    """The folder with LIBERO's meshes, textures and scenes.

    In order: `assets`, the installed package's own copy, $GRASPLINE_LIBERO_ASSETS, the Hub (downloaded once, into the
    Hub's own cache, whose locks make it safe for several processes).

    Raises:
        MissingAssetError: the folder named is not one, or there is none and the Hub cannot be reached.
    """
    if assets is not None:
        return _checked(Path(assets).expanduser(), "env.assets")
    own = package_folder() / "assets"
    if own.is_dir():
        return _checked(own, "the assets inside the libero package")
    if named := os.environ.get(ASSETS_VARIABLE):
        return _checked(Path(named).expanduser(), f"${ASSETS_VARIABLE}")
    from huggingface_hub import snapshot_download

    try:
        # hf-libero's own call passes an argument that huggingface_hub 1.x no longer knows, and then goes on without.
        folder = snapshot_download(_ASSETS_REPO, repo_type="dataset")
    except (OSError, ValueError) as error:  # the Hub's errors are OSErrors (HTTP, offline) or ValueErrors (not found)
        raise MissingAssetError(
            f"LIBERO's assets are not on this machine and could not be downloaded from the Hub ({_ASSETS_REPO}): "
            f"{type(error).__name__}. Set env.assets=<folder> or ${ASSETS_VARIABLE} to a folder that holds "
            f"{', '.join(_ASSET_FOLDERS)}"
        ) from error
    return _checked(Path(folder), f"the download of {_ASSETS_REPO}")


def _checked(folder: Path, source: str) -> Path:
    missing = [name for name in _ASSET_FOLDERS if not (folder / name).is_dir()]
    if missing:
        raise MissingAssetError(
            f"{source} ({folder}) is not a folder of LIBERO assets: it lacks {', '.join(missing)}. "
            f"Set env.assets=<folder> to one that holds {', '.join(_ASSET_FOLDERS)}"
        )
    return folder.resolve()


def load_init_states(path: Path) -> np.ndarray:
    """The stored initial states (50, 1 + nq + nv) float64 of a task: time [s], positions, velocities.

    Raises:
        CorruptFileError: not such an archive, or one that names anything but a plain array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            [member] = [name for name in archive.namelist() if name.endswith("data.pkl")]
            states = _ArrayUnpickler(io.BytesIO(archive.read(member))).load()
    except (
        OSError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        # a pickle that is damaged inside can raise any of these from the constructors it calls
        AttributeError,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise CorruptFileError(f"initial states {path}: {type(error).__name__}: {error}") from error
    if not isinstance(states, np.ndarray) or states.ndim != 2 or states.dtype != np.float64:
        raise CorruptFileError(f"initial states {path}: expected a float64 array of two dimensions")
    if len(states) < NUM_INIT_STATES or not np.isfinite(states).all():
        raise CorruptFileError(f"initial states {path}: expected {NUM_INIT_STATES} finite states, got {states.shape}")
    return states


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """`_codecs.encode` for the one encoding that protocol 2 uses; others would import codec modules."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused encoding '{encoding}'")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds numeric arrays and refuses every other name, so that loading a file cannot run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # the name in numpy 1
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1_bytes,
        }
        if (module_name, global_name) not in allowed:
            raise pickle.UnpicklingError(f"refused to load '{module_name}.{global_name}'")
        return allowed[module_name, global_name]
