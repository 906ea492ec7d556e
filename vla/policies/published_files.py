"""The files of a published OpenVLA-OFT checkpoint, read as they lie; none of the code in them is run.

Weights come as safetensors shards with an index, and beside them one `<component>--<step>_checkpoint.pt` for each part
that was trained in full. Tensors are given out one after the other under one name space: that of the shards, and
`<component>.<key>` for the components. Source: specification of OpenVLA-OFT, 1.12, 1.14 and 1.19.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError
from vla.policies.lora_merge import Adapter, merge_wrapped, read_adapter, read_alpha

COMPONENTS = ("action_head", "proprio_projector", "noisy_action_projector", "vision_backbone")
_CONFIG, _INDEX, _SINGLE, _ADAPTER = "config.json", "model.safetensors.index.json", "model.safetensors", "lora_adapter"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """Where everything is; no weights.

    folder      what was published
    config      content of its config.json
    shards      {tensor: safetensors file}, of the base model where an adapter is to be merged
    components  {component: .pt file}, those that are there
    adapter     to be merged into the shards
    """

    folder: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Path]
    components: Mapping[str, Path]
    adapter: Adapter = field(default_factory=lambda: Adapter(factors={}, alpha=None))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{tensor: shape} of the shards; reads their headers alone."""
        shapes = {}
        for path, names in self._by_file():
            with _opened(path) as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        return shapes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the shards and components, LoRA merged.

        A `vision_backbone` component is the whole of the two towers and takes the place of the shards'.
        """
        for path, names in self._by_file():
            with _opened(path) as file:
                for name in names:
                    if "vision_backbone" not in self.components or not name.startswith("vision_backbone."):
                        yield name, self.adapter.merged(name, file.get_tensor(name))
        for component in self.components:
            yield from self.component(component).items()

    def dtype(self) -> torch.dtype:
        """That of the shards."""
        name, path = next(iter(self.shards.items()))
        with _opened(path) as file:
            return file.get_tensor(name).dtype

    def component(self, component: str) -> dict[str, Tensor]:
        """The tensors of one .pt file, LoRA merged."""
        path = self.components[component]
        tensors = {name.removeprefix("module."): tensor for name, tensor in _load_pt(path).items()}
        if component != "vision_backbone":
            return {f"{component}.{name}": tensor for name, tensor in tensors.items()}
        adapter = self.folder / _ADAPTER
        return merge_wrapped(tensors, read_alpha(adapter) if adapter.is_dir() else None, path)

    def _by_file(self) -> list[tuple[Path, list[str]]]:
        files: dict[Path, list[str]] = {}
        for name, path in self.shards.items():
            files.setdefault(path, []).append(name)
        return list(files.items())


def open_checkpoint(folder: Path, base: Path | None) -> Checkpoint:
    """Finds the files of a checkpoint.

    Args:
        folder: what was published.
        base: where the weights are into which `folder/lora_adapter` is merged; None: `folder` has them merged.

    Raises:
        MissingAssetError: a file is missing.
        CorruptFileError: a file is damaged, or there are two of a component.
    """
    if not folder.is_dir():
        raise MissingAssetError(f"no checkpoint: '{folder}' is not a folder")
    config = read_json(folder if (folder / _CONFIG).exists() or base is None else base, _CONFIG)
    shards = _find_shards(folder if base is None else base)
    components = {component: path for component in COMPONENTS if (path := _find_component(folder, component))}
    if base is None:
        return Checkpoint(folder=folder, config=config, shards=shards, components=components)
    adapter = read_adapter(folder / _ADAPTER)
    if homeless := sorted(layer for layer in adapter.factors if f"{layer}.weight" not in shards):
        raise CorruptFileError(f"{folder / _ADAPTER}: '{base}' has no {', '.join(homeless[:30])}")
    return Checkpoint(folder=folder, config=config, shards=shards, components=components, adapter=adapter)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file. Raises MissingAssetError, CorruptFileError."""
    try:
        content = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        raise MissingAssetError(f"no checkpoint in '{folder}': {name} is missing") from error
    except ValueError as error:
        raise CorruptFileError(f"{folder / name}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{folder / name}: not a JSON object")
    return content


def _find_shards(folder: Path) -> dict[str, Path]:
    if (folder / _INDEX).exists():
        index = read_json(folder, _INDEX)
        if "weight_map" not in index:
            raise CorruptFileError(f"{folder / _INDEX}: lacks weight_map")
        shards = {name: folder / Path(file).name for name, file in index["weight_map"].items()}
    elif (folder / _SINGLE).exists():
        with _opened(folder / _SINGLE) as file:
            shards = dict.fromkeys(file.keys(), folder / _SINGLE)
    else:
        told = "; it has an adapter: give base=" if (folder / _ADAPTER).is_dir() else ""
        raise MissingAssetError(f"no weights in '{folder}': {_INDEX} is missing{told}")
    for path in set(shards.values()):
        if not path.exists():
            raise MissingAssetError(f"no checkpoint in '{folder}': {path.name} is missing")
        with _opened(path) as file:
            listed = {name for name, where in shards.items() if where == path}
            if odd := sorted(listed ^ set(file.keys())):
                raise CorruptFileError(f"{path}: {_INDEX} and the file disagree on {', '.join(odd[:30])}")
    return shards


def _find_component(folder: Path, component: str) -> Path | None:
    found = sorted(folder.glob(f"{component}--*checkpoint.pt"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CorruptFileError(f"{folder}: {len(found)} files of {component}, keep one: {names}")
    return found[0] if found else None


def _load_pt(path: Path) -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote. Only tensors are let in: nothing in the file is run."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CorruptFileError(f"{path}: not a plain state dict ({first})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CorruptFileError(f"{path}: not a plain state dict")
    return tensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: {error}") from error
