"""The state of an algorithm on disk: networks, targets, moments and counters, however nested, in one safetensors file.

Tensors lie in the file, the tree that holds them in its header as JSON; nothing in it names code. A file appears
complete or not at all, and is put back bit for bit.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError
from vla.data.folders import sync

type Plain = bool | int | float | str | None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a tree of dicts, lists, tuples, tensors and plain values. Raises TypeError for anything else."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_taken_apart(state, "", tensors))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, part, {"tree": tree})
    sync(part)
    part.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU.

    Raises:
        MissingAssetError: no such file.
        CorruptFileError: cut short, or not a state.
    """
    if not path.exists():
        raise MissingAssetError(f"no state at {path}")
    try:
        with safe_open(path, "pt") as file:
            tree = json.loads((file.metadata() or {})["tree"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        return _put_together(tree, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: cut short, or not a saved state ({error!r})") from error


def _taken_apart(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; its tensors go into `tensors` under names such as `critic/networks.0.weight`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()  # cloned: two names may share memory
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _taken_apart(each, f"{name}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_taken_apart(each, f"{name}/{i}", tensors) for i, each in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state cannot hold the {type(value).__name__} at {name}")


def _put_together(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_together(each, tensors) for key, each in content}
    if kind in ("list", "tuple"):
        parts = [_put_together(each, tensors) for each in content]
        return parts if kind == "list" else tuple(parts)
    raise ValueError(f"'{kind}' is no kind of a tree")
