"""A judge on disk: `reward.json` (what it is, what it saw, its threshold) and `model.safetensors` (what was trained).

Strict both ways: every tensor of the file is used, every trained weight is filled, the JSON holds the weights' sha256
and exactly the fields that its kind has. No pickle, and no name of code.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError
from vla.core.spec import Camera

FORMAT = 1
JSON, WEIGHTS = "reward.json", "model.safetensors"


def save(folder: Path, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes both files, each at once."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{WEIGHTS}.part"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
    header = {"format": FORMAT, "kind": kind, **fields, "weights_sha256": _sha256(part)}
    (folder / f".{JSON}.part").write_text(json.dumps(header, indent=2))
    for name in (WEIGHTS, JSON):
        (folder / f".{name}.part").replace(folder / name)


def load(folder: Path, kind: str, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields `names` and the tensors of a judge of this kind.

    Raises:
        MissingAssetError: there is none.
        CorruptFileError: another kind, fields or weights than `save` wrote.
    """
    path = folder / JSON
    try:
        header = json.loads(path.read_text())
        found = _sha256(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise MissingAssetError(f"no trained reward in '{folder}': {error.filename} is missing") from error
    except ValueError as error:
        raise CorruptFileError(f"{path}: not JSON ({error})") from error
    names = set(names)
    wanted = {"format", "kind", "weights_sha256", *names}
    if not isinstance(header, dict) or header.keys() != wanted:
        differing = sorted(wanted ^ set(header)) if isinstance(header, dict) else sorted(wanted)
        raise CorruptFileError(f"{path}: expected the fields {sorted(wanted)}; missing or unknown: {differing}")
    if (header["format"], header["kind"]) != (FORMAT, kind):
        raise CorruptFileError(
            f"{path}: a '{header['kind']}' of format {header['format']}, expected a '{kind}' of format {FORMAT}"
        )
    if found != header["weights_sha256"]:
        raise CorruptFileError(f"{folder / WEIGHTS}: not the file that {JSON} describes (cut short or replaced)")
    try:
        return {name: header[name] for name in names}, load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CorruptFileError(f"{folder / WEIGHTS}: {error}") from error


def fill(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copies tensors into weights of the same names and shapes. Raises CorruptFileError if they are not the same."""
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    differing = sorted(
        name
        for name in shapes.keys() | tensors.keys()
        if name not in shapes or name not in tensors or shapes[name] != tuple(tensors[name].shape)
    )
    if differing:
        raise CorruptFileError(f"{folder / WEIGHTS}: tensors do not fit the network: {', '.join(differing)}")
    for name, tensor in wanted.items():
        tensor.data.copy_(tensors[name])


def cameras_to_json(cameras: Iterable[Camera]) -> list[dict[str, Any]]:
    """Names and sizes [px]."""
    return [{"name": each.name, "height": each.height, "width": each.width} for each in cameras]


def cameras_from_json(plain: Any, folder: Path) -> tuple[Camera, ...]:
    """Inverse of `cameras_to_json`. Raises CorruptFileError."""
    try:
        return tuple(Camera(**each) for each in plain)
    except TypeError as error:
        raise CorruptFileError(f"{folder / JSON}: cameras are {plain!r} ({error})") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
