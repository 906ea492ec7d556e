"""Checkpoints from which a run continues bit for bit: `<out>/checkpoints/step_000400/`.

Weights, their average and the optimiser's moments in safetensors, the step in JSON. No random state is stored, since
the randomness of a step and its place in the data are functions of (seed, step). A checkpoint appears complete or not
at all; the last two are kept.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla.core.errors import CorruptFileError
from vla.data.folders import hidden_sibling, replace_folder
from vla.policies.load import fill
from vla.train.optim import Average

FORMAT = 1
KEEP = 2


def save_checkpoint(
    out: Path, *, step: int, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer
) -> Path:
    """Writes the state after `step` finished steps and removes all but the newest two. Returns its folder."""
    folder = out / "checkpoints" / f"step_{step:06d}"
    part = hidden_sibling(folder, "part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _save(part / "model.safetensors", module.state_dict())
    _save(part / "average.safetensors", average.tensors)
    _save(part / "optimizer.safetensors", _moments(module, optimizer))
    (part / "state.json").write_text(json.dumps({"format": FORMAT, "step": step}))
    replace_folder(part, folder)
    for old in _complete(out)[:-KEEP]:
        shutil.rmtree(old)
    for unfinished in folder.parent.glob(".step_*"):
        shutil.rmtree(unfinished)
    return folder


def latest_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint of a run, None if there is none."""
    complete = _complete(out)
    return complete[-1] if complete else None


def load_checkpoint(folder: Path, *, module: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> int:
    """Puts everything back as it was, and returns the number of finished steps.

    Raises:
        CorruptFileError: names the file that is truncated, missing, or does not fit the network.
    """
    step = _read_step(folder / "state.json")
    fill(module, _load(folder / "model.safetensors"), folder / "model.safetensors")
    averages = _load(folder / "average.safetensors")
    if averages.keys() != average.tensors.keys():
        raise CorruptFileError(f"{folder / 'average.safetensors'}: its tensors are not those of the network")
    average.load(averages)
    _put_back(module, optimizer, _load(folder / "optimizer.safetensors"), folder / "optimizer.safetensors")
    return step


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
        placed = torch.empty_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
        optimizer.state[parameter][kind] = placed.detach()


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CorruptFileError(
            f"checkpoint {path}: missing or cut short ({error}); delete its folder to use the one before"
        ) from error


def _read_step(path: Path) -> int:
    try:
        state = json.loads(path.read_text())
    except (ValueError, FileNotFoundError) as error:
        raise CorruptFileError(
            f"checkpoint {path}: missing or cut short ({error}); delete its folder to use the one before"
        ) from error
    if state.get("format") != FORMAT or not isinstance(state.get("step"), int):
        raise CorruptFileError(f"checkpoint {path}: {state}, expected format {FORMAT} and a step")
    return state["step"]
