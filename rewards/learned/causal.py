"""A causal language model as the yes/no judge needs it: from plain contents (no download), or from the Hub.

Policies here make their language models bidirectional; a question is answered by the next token, so this one stays
causal, and keeps its language head (SmolLM2 reads words out with its embedding table).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vla.core.errors import GrasplineError, MissingAssetError

CHATML = ("<|im_start|>user\n", "\n{question}<|im_end|>\n<|im_start|>assistant\n")  # before and after the picture


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalLanguage:
    """A `transformers` causal language model, its tokenizer, and the words around a question.

    name       by which a saved judge asks for it again
    tokenize   text to ids, without tokens of its own
    template   text before the picture, and after it with `{question}`
    """

    name: str
    model: Any
    tokenize: Callable[[str], list[int]]
    template: tuple[str, str] = CHATML

    def answer_id(self, word: str) -> int:
        """The id of a word that is one token. Raises GrasplineError if it is not."""
        ids = self.tokenize(word)
        if len(ids) != 1:
            raise GrasplineError(f"language '{self.name}': the answer '{word}' is {len(ids)} tokens, expected one")
        return ids[0]


def from_contents(
    *, name: str, geometry: Mapping[str, Any], weights: Mapping[str, Tensor], tokenizer: bytes
) -> CausalLanguage:
    """A Llama with tied words from its shape, its weights under LlamaModel's names and a `tokenizer.json`.

    Args:
        name: of the model.
        geometry: width, layers, heads, kv_heads, mlp, vocabulary, epsilon, rope_base.
        weights: strict; all random if empty.
        tokenizer: bytes.
    """
    settings: dict[str, Any] = {
        "hidden_size": geometry["width"],
        "num_hidden_layers": geometry["layers"],
        "num_attention_heads": geometry["heads"],
        "num_key_value_heads": geometry["kv_heads"],
        "intermediate_size": geometry["mlp"],
        "vocab_size": geometry["vocabulary"],
        "rms_norm_eps": geometry["epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": geometry["rope_base"]},
        "tie_word_embeddings": True,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings))
    if weights:
        model.model.load_state_dict(dict(weights))
    words = Tokenizer.from_str(tokenizer.decode())
    return CausalLanguage(name=name, model=_plain(model), tokenize=lambda text: _ids(words, text))


def from_hub(*, name: str, template: tuple[str, str] = CHATML) -> CausalLanguage:
    """The same from the Hugging Face Hub, or from a folder in its layout.

    Raises:
        MissingAssetError: it cannot be fetched.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise MissingAssetError(
            f"language: '{name}' cannot be fetched from the Hub and is no folder ({error})"
        ) from error

    def tokenize(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return CausalLanguage(name=name, model=_plain(model), tokenize=tokenize, template=template)


def _plain(model: Any) -> Any:
    model.config.use_cache = False
    return model.eval()


def _ids(words: Tokenizer, text: str) -> list[int]:
    return words.encode(text, add_special_tokens=False).ids
