"""LoRA folded into plain weights: W + (alpha / r) B A, for linear layers and for convolutions alike.

Two layouts: an adapter folder as PEFT writes it (`lora_adapter/`), and the state dict of a network that was still
wrapped when it was saved (`base_layer`, `lora_A.default`), as in OpenVLA-OFT's FiLM files. Sums are made in float32
and rounded once by whoever stores them. Source: LoRA (Hu et al. 2021, arXiv 2106.09685).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla.core.errors import CorruptFileError, MissingAssetError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}}


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """Low-rank changes of the weights of named layers.

    factors  {layer: (A (r, in, ...), B (out, r, ...))}; the trailing axes are those of a convolution's kernel
    alpha    `lora_alpha`; None: min(r, 16), OpenVLA-OFT's rule
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    alpha: float | None

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The weight called `name` with its layer's change, float32; as it is when its layer has none.

        Raises:
            CorruptFileError: the factors do not fit the weight.
        """
        layer = name.removesuffix(".weight")
        if layer == name or layer not in self.factors:
            return weight
        down, up = self.factors[layer]
        rank = len(down)
        if up.shape[1] != rank or up.shape[:1] + down.shape[1:] != weight.shape:
            shapes = [tuple(each.shape) for each in (down, up, weight)]
            raise CorruptFileError(f"LoRA of {layer}: shapes of A, B and W are {shapes}: they do not fit")
        scale = (min(rank, 16) if self.alpha is None else self.alpha) / rank
        change = up.float().flatten(1) @ down.float().flatten(1)
        return weight.float() + scale * change.view(weight.shape)


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder that PEFT wrote.

    Raises:
        MissingAssetError: a file is missing.
        CorruptFileError: a file is damaged, a factor lacks its partner, or the adapter is more than plain LoRA.
    """
    path = folder / _WEIGHTS
    alpha = read_alpha(folder)
    try:
        return Adapter(factors=_pairs(load_file(path), path), alpha=alpha)
    except FileNotFoundError as error:
        raise MissingAssetError(f"no adapter in '{folder}': {_WEIGHTS} is missing") from error
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: {error}") from error


def read_alpha(folder: Path) -> float:
    """`lora_alpha` of the adapter in a folder. Raises as `read_adapter` does."""
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_bytes())
        alpha = float(config["lora_alpha"])
    except FileNotFoundError as error:
        raise MissingAssetError(f"no adapter in '{folder}': {_CONFIG} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path}: {error!r}") from error
    for field, plain in _PLAIN.items():
        if config.get(field, plain) not in (plain, None):
            raise CorruptFileError(f"{path}: {field} is {config[field]!r}, only {plain!r} can be merged")
    return alpha


def merge_wrapped(tensors: Mapping[str, Tensor], alpha: float | None, path: Path) -> dict[str, Tensor]:
    """The state dict of a network that LoRA still wraps, as that of the network alone.

    Args:
        tensors: with names `<layer>.base_layer.weight`, `<layer>.lora_A.default.weight`, and plain ones.
        alpha: `lora_alpha`; None: min(r, 16).
        path: where it came from, for messages.

    Raises:
        CorruptFileError: a factor lacks its partner or does not fit its layer.
    """
    factors = {name: tensor for name, tensor in tensors.items() if _FACTOR.fullmatch(name)}
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in tensors.items() if name not in factors}
    adapter = Adapter(factors=_pairs(factors, path), alpha=alpha)
    if homeless := sorted(layer for layer in adapter.factors if f"{layer}.weight" not in plain):
        raise CorruptFileError(f"{path}: LoRA factors without a weight to change: {', '.join(homeless)}")
    return {name: adapter.merged(name, tensor) for name, tensor in plain.items()}


def _pairs(tensors: Mapping[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not (match := _FACTOR.fullmatch(name)):
            raise CorruptFileError(f"{path}: '{name}' is not a LoRA factor")
        sides.setdefault(match["layer"], {})[match["side"]] = tensor
    if single := sorted(layer for layer, pair in sides.items() if len(pair) < 2):
        raise CorruptFileError(f"{path}: LoRA factors A and B are not both there for {', '.join(single)}")
    return {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}
