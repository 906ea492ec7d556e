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
from safetensors.torch import load, save
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError, SpecMismatchError, unknown_name
from vla.core.spec import Embodiment
from vla.data.transforms import Transforms
from vla.policies.presets import PRESETS
from vla.policies.vla import VLAPolicy

FORMAT = 1
_JSON, _WEIGHTS = "policy.json", "model.safetensors"


def save_policy(folder: str | Path, policy: VLAPolicy) -> None:
    """Writes the policy into `folder`, replacing an older one. Frozen MiniLM weights are not written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()})
    recipe = {
        "format": FORMAT,
        "preset": policy.preset,
        "arguments": policy.arguments,
        "cameras": list(policy.cameras),
        "horizon": policy.horizon,
        "embodiment": policy.spec.to_dict(),
        "transforms": policy.transforms.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "files_sha256": {name: hashlib.sha256(content).hexdigest() for name, content in policy.files.items()},
    }
    files = {_WEIGHTS: weights, **policy.files, _JSON: json.dumps(recipe, indent=2).encode()}
    for name, content in files.items():
        write_synced(folder / f".{name}.part", content)
    for name in files:
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
    weights = _read_checked(folder, _WEIGHTS, recipe["weights_sha256"])
    files = {name: _read_checked(folder, name, wanted) for name, wanted in recipe["files_sha256"].items()}
    if recipe["preset"] not in PRESETS:
        raise unknown_name("policy preset", recipe["preset"], PRESETS)
    try:
        policy = PRESETS[recipe["preset"]](
            spec=Embodiment.from_dict(recipe["embodiment"]),
            transforms=Transforms.from_dict(recipe["transforms"]),
            cameras=recipe["cameras"],
            horizon=recipe["horizon"],
            **({"files": files} if files else {}),
            **recipe["arguments"],
        )
        fill(policy, load(weights), folder / _WEIGHTS)
    except (TypeError, SpecMismatchError, SafetensorError) as error:
        raise CorruptFileError(f"{folder / _JSON}: {error}") from error
    return policy.to(device).eval()


def policy_hash(folder: str | Path) -> str:
    """sha256 over the two files: names a policy in results, whatever its folder is called."""
    folder = Path(folder)
    return hashlib.sha256(_read(folder, _JSON) + _read(folder, _WEIGHTS)).hexdigest()


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
    module.load_state_dict(dict(tensors))


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
    content = _read(folder, name)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptFileError(f"{folder / name}: not the file that {_JSON} describes (cut short or replaced)")
    return content


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
