"""Checkpoints from which a run continues bit for bit: `<out>/checkpoints/step_000400/`.

Trained weights, their average and the optimiser's moments in safetensors, the step in JSON. No random state is stored,
since the randomness of a step and its place in the data are functions of (seed, step). A checkpoint appears complete or
not at all; the last two are kept. Frozen weights are not in it: a hash of them is, and others are refused.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla.core.errors import CorruptFileError, GrasplineError
from vla.data.folders import hidden_sibling, replace_folder
from vla.train.distributed import sliced_like, whole
from vla.train.optim import Average, trained_tensors

FORMAT = 1
KEEP = 2


def save_checkpoint(
    out: Path,
    *,
    step: int,
    module: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    base: str | None = None,
    write: bool = True,
) -> Path:
    """Writes the state after `step` finished steps and removes all but the newest two. Returns its folder.

    Args:
        out: run directory.
        step: finished steps.
        module: its trained weights are saved.
        average: of the module.
        optimizer: of the module.
        base: what `frozen_hash` said of the module.
        write: False in all but one of several processes; all must call this, because slices are put together.
    """
    folder = out / "checkpoints" / f"step_{step:06d}"
    part = hidden_sibling(folder, "part")
    if write:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    _save(part / "model.safetensors", trained_tensors(module), write)
    _save(part / "average.safetensors", average.tensors, write)
    _save(part / "optimizer.safetensors", _moments(module, optimizer), write)
    if write:
        (part / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, "base": base}))
        replace_folder(part, folder)
        for old in _complete(out)[:-KEEP]:
            shutil.rmtree(old)
        for unfinished in folder.parent.glob(".step_*"):
            shutil.rmtree(unfinished)
    return folder


def frozen_hash(module: nn.Module) -> str | None:
    """sha256 over names and values of the weights that are not trained, None if all are.

    Reads all of them: about ten seconds for 14 GB. All processes of a sharded run must call this.
    """
    frozen = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name in sorted(frozen):
        tensor = whole(frozen[name]).detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def latest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run, None if there is none."""
    complete = _complete(out)
    return complete[-1] if complete else None


def load_checkpoint(
    folder: Path, *, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer, base: str | None = None
) -> int:
    """Puts everything back as it was, and returns the number of finished steps.

    Raises:
        CorruptFileError: names the file that is truncated, missing, or does not fit the network.
        GrasplineError: the checkpoint belongs to other frozen weights than those of hash `base`.
    """
    state = _read_state(folder / "state.json")
    if state.get("base") != base:
        raise GrasplineError(
            f"checkpoint {folder}: trained on frozen weights {_short(state.get('base'))}, these are {_short(base)}; "
            "give the init, lora and precision it was started with, or resume=false"
        )
    _copy(trained_tensors(module), folder / "model.safetensors")
    _copy(average.tensors, folder / "average.safetensors")
    _put_back(module, optimizer, _load(folder / "optimizer.safetensors"), folder / "optimizer.safetensors")
    return state["step"]


def _complete(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step_*"))


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under names like `head.out.1.weight/exp_avg`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def _put_back(module: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor], path: Path) -> None:
    parameters = dict(module.named_parameters())
    optimizer.state.clear()
    for key, value in moments.items():
        name, _, kind = key.rpartition("/")
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            raise CorruptFileError(f"{path}: moment '{key}' does not fit the network")
        parameter = parameters[name]
        # Fused AdamW walks memory, not indices: a moment has to lie in memory exactly as its parameter does.
        placed = (
            torch.empty_like(parameter).copy_(sliced_like(value, parameter))
            if value.ndim
            else value.to(parameter.device)
        )
        optimizer.state[parameter][kind] = placed.detach()


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], path: Path) -> None:
    """Fills the tensors `into` from a file, strictly."""
    tensors = _load(path)
    differing = sorted(into.keys() ^ tensors.keys())
    differing += sorted(name for name in into.keys() & tensors.keys() if into[name].shape != tensors[name].shape)
    if differing:
        raise CorruptFileError(f"{path}: its tensors are not those of the network ({', '.join(differing)})")
    for name, tensor in into.items():
        tensor.copy_(sliced_like(tensors[name], tensor))


def _save(path: Path, tensors: Mapping[str, Tensor], write: bool) -> None:
    """Each tensor is put together and brought to the CPU by itself, so that a device needs room for one of them."""
    wholes = {}
    for name, tensor in tensors.items():
        plain = whole(tensor.detach())
        if write:
            wholes[name] = plain.cpu().contiguous()
    if write:
        save_file(wholes, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CorruptFileError(
            f"checkpoint {path}: missing or cut short ({error}); delete its folder to use the one before"
        ) from error


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except (ValueError, FileNotFoundError) as error:
        raise CorruptFileError(
            f"checkpoint {path}: missing or cut short ({error}); delete its folder to use the one before"
        ) from error
    if state.get("format") != FORMAT or not isinstance(state.get("step"), int):
        raise CorruptFileError(f"checkpoint {path}: {state}, expected format {FORMAT} and a step")
    return state


def _short(base: str | None) -> str:
    return base[:12] if base else "none"
