"""A policy on disk: `policy.json` (how to build it), `model.safetensors` (its weights) and, for a language model, its
tokenizer, in any folder.

The json holds the other files' sha256: one that was cut short, damaged or mixed with another's is refused by name.
Loading is strict: every tensor of the file is used and every weight of the network is filled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError, SpecMismatchError
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.empty import empty_weights
from vla.policies.presets import preset
from vla.policies.vla import VLAPolicy

FORMAT = 1
_JSON, _WEIGHTS = "policy.json", "model.safetensors"


def save_policy(folder: str | Path, policy: VLAPolicy) -> None:
    """Writes the policy into `folder`, replacing an older one. Frozen MiniLM weights are not written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{_WEIGHTS}.part"
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}, part)
    sync(part)
    recipe = {
        "format": FORMAT,
        "preset": policy.preset,
        "arguments": policy.arguments,
        "cameras": list(policy.cameras),
        "horizon": policy.horizon,
        "embodiment": policy.spec.to_dict(),
        "transforms": policy.transforms.to_dict(),
        "weights_sha256": _sha256(part),
        "files_sha256": {name: hashlib.sha256(content).hexdigest() for name, content in policy.files.items()},
    }
    files = {**policy.files, _JSON: json.dumps(recipe, indent=2).encode()}
    for name, content in files.items():
        write_synced(folder / f".{name}.part", content)
    for name in (_WEIGHTS, *files):
        (folder / f".{name}.part").replace(folder / name)


def load_policy(folder: str | Path, device: torch.device | str = "cpu") -> VLAPolicy:
    """The policy in a run directory, in evaluation mode.

    Raises:
        MissingAssetError: no policy there.
        CorruptFileError: a file is truncated or damaged, or its tensors are not those of the network.
        UnknownNameError: a preset that this version does not know.
    """
    folder = Path(folder)
    recipe = _read_recipe(folder)
    _check(folder, _WEIGHTS, recipe["weights_sha256"])
    files = {name: _read_checked(folder, name, wanted) for name, wanted in recipe["files_sha256"].items()}
    build = preset(recipe["preset"])
    try:
        with empty_weights():
            policy = build(
                spec=Embodiment.from_dict(recipe["embodiment"]),
                transforms=Transforms.from_dict(recipe["transforms"]),
                cameras=recipe["cameras"],
                horizon=recipe["horizon"],
                **({"files": files} if files else {}),
                **recipe["arguments"],
            )
        fill(policy, load_file(folder / _WEIGHTS), folder / _WEIGHTS)
    except (TypeError, SpecMismatchError, SafetensorError) as error:
        raise CorruptFileError(f"{folder / _JSON}: {error}") from error
    return policy.to(device).eval()


def policy_hash(folder: str | Path) -> str:
    """sha256 over the two files: names a policy in results, whatever its folder is called."""
    digest = hashlib.sha256(_read(Path(folder), _JSON))
    with (Path(folder) / _WEIGHTS).open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def fill(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copies `tensors` into the module's weights, strictly.

    Raises:
        CorruptFileError: lists tensors that are missing, not used, or of another shape.
    """
    wanted = module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "not used": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape),
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        raise CorruptFileError(f"{path}: tensors do not fit the network ({told})")
    if any(tensor.is_meta for tensor in wanted.values()):
        # In the file's number format, and laid out as the network asks (some convolutions have channels last).
        placed = {n: torch.empty_like(wanted[n], dtype=t.dtype, device=t.device).copy_(t) for n, t in tensors.items()}
        module.load_state_dict(placed, assign=True)
    else:
        module.load_state_dict(dict(tensors))


def sync(path: Path) -> None:
    """Flushes a finished file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(folder: Path, name: str, sha256: str) -> None:
    try:
        if _sha256(folder / name) == sha256:
            return
    except FileNotFoundError as error:
        raise MissingAssetError(f"no policy in '{folder}': {name} is missing") from error
    raise CorruptFileError(f"{folder / name}: not the file that {_JSON} describes (cut short or replaced)")


def write_synced(path: Path, content: bytes) -> None:
    """Writes and flushes to the disk, so that a rename that follows cannot reveal an empty file."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise MissingAssetError(f"no policy in '{folder}': {name} is missing") from error


def _read_checked(folder: Path, name: str, sha256: str) -> bytes:
    if Path(name).name != name:
        raise CorruptFileError(f"{folder / _JSON}: '{name}' is not the name of a file in this folder")
    _check(folder, name, sha256)
    return _read(folder, name)


def _read_recipe(folder: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(_read(folder, _JSON))
    except ValueError as error:
        raise CorruptFileError(f"{folder / _JSON}: not JSON ({error})") from error
    fields = ("format", "preset", "arguments", "cameras", "horizon", "embodiment", "transforms", "weights_sha256")
    if missing := [field for field in fields if field not in recipe]:
        raise CorruptFileError(f"{folder / _JSON}: lacks {missing}")
    if recipe["format"] != FORMAT:
        raise CorruptFileError(f"{folder / _JSON}: format {recipe['format']}, this version reads {FORMAT}")
    return {"files_sha256": {}, **recipe}
