"""The language model: `LlamaModel` of transformers as released, with attention in both directions, and proof of it.

OpenVLA-OFT decodes a whole chunk in one pass, so every token must see every other. Its authors patched a fork of
transformers for that; published weights run causally lose half of their success rate and nothing else shows it.
Current transformers can do it by configuration, which a later release could drop: `check_bidirectional` looks at what
the model does, not at how it is configured.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla.core.errors import GrasplineError


def llama(
    *,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    vocabulary: int,
    kv_heads: int | None = None,
    epsilon: float = 1e-6,
    rope_base: float = 10_000.0,
) -> LlamaModel:
    """A bidirectional Llama with random weights and without a language head.

    The defaults are OpenVLA's: its epsilon is the 1e-6 of the library's defaults, not the 1e-5 of Llama 2.

    Args:
        width: D.
        layers: transformer layers.
        heads: attention heads.
        mlp: hidden width of the feed-forward part.
        vocabulary: rows of the embedding table.
        kv_heads: heads of keys and values, as many as `heads` when None.
        epsilon: of the RMS norms.
        rope_base: base of the rotary position embedding.
    """
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "intermediate_size": mlp,
        "vocab_size": vocabulary,
        "rms_norm_eps": epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_base},
    }
    return bidirectional(LlamaModel(LlamaConfig(**settings)))


def bidirectional(language: LlamaModel) -> LlamaModel:
    """The same model, with every token attending to every token. Attention runs through torch's fused kernels (SDPA).

    transformers reads the switch both for the mask it makes and for the kernel it calls where there is none.
    """
    language.set_attn_implementation("sdpa")
    language.config.is_causal = False
    language.config.use_cache = False
    with torch.device("cpu"):
        language.rotary_emb = ExactRotary(language.config)
    if not language.embed_tokens.weight.is_meta:
        language.rotary_emb.to(language.embed_tokens.weight.device)
    return language


class ExactRotary(LlamaRotaryEmbedding):
    """The rotary embedding, whose frequencies stay in float32 and real whatever is done to the weights.

    `model.to(torch.bfloat16)` would round them by up to 1/512: a radian or more at the positions of a chunk. They are
    in no file, so a model built on the meta device would never get them.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self


def states(language: LlamaModel, tokens_BND: Tensor, positions_BN: Tensor, mask_B11N: Tensor | None) -> Tensor:
    """The states (B, N, D) after the last layer and the final norm.

    Args:
        language: made bidirectional.
        tokens_BND: embeddings, in any order in memory.
        positions_BN: the place of each token in the sequence, which the rotary embedding reads.
        mask_B11N: True where a token may be attended to; None where nothing is padded, which allows faster kernels.
    """
    return language(inputs_embeds=tokens_BND, position_ids=positions_BN, attention_mask=mask_B11N).last_hidden_state


def layer_states(
    language: LlamaModel, tokens_BND: Tensor, positions_BN: Tensor, mask_B11N: Tensor | None
) -> list[Tensor]:
    """The states (B, N, D) after each layer; the last ones after the final norm. Arguments as of `states`."""
    output = language(
        inputs_embeds=tokens_BND,
        position_ids=positions_BN,
        attention_mask=mask_B11N,
        output_hidden_states=True,
    )
    return list(output.hidden_states[1:])


@torch.no_grad()
def check_bidirectional(language: LlamaModel) -> None:
    """Changes the last of four tokens and looks whether the first one notices, with and without a padding mask.

    The positions jump back once, as ours do: a library that takes the jump for the start of another text fails too.

    Raises:
        GrasplineError: the first token does not see the last, or sees padding.
    """
    weight = language.embed_tokens.weight
    # Small embeddings: what attention adds to them shows even in bfloat16.
    noise = 0.01 * torch.randn(2, 4, weight.shape[1], generator=torch.Generator().manual_seed(0))
    tokens_1ND, other_1ND = noise.to(weight).split(1)
    changed_1ND = torch.cat([tokens_1ND[:, :3], other_1ND[:, 3:]], dim=1)
    positions_1N = torch.tensor([[0, 2, 3, 1]], device=weight.device)
    all_seen = torch.ones(1, 1, 1, 4, dtype=torch.bool, device=weight.device)
    last_hidden = torch.tensor([[[[True, True, True, False]]]], device=weight.device)

    def first_notices(mask_B11N: Tensor | None) -> bool:
        before, after = (states(language, x, positions_1N, mask_B11N)[:, 0] for x in (tokens_1ND, changed_1ND))
        return not torch.equal(before, after)

    if not first_notices(None) or not first_notices(all_seen):
        raise GrasplineError(
            "the language model is causal: its first token does not see its last, so chunks decoded in one pass would "
            "be wrong. Make it bidirectional (vla/policies/backbones/language.py), or use the locked transformers."
        )
    if first_notices(last_hidden):
        raise GrasplineError("the language model attends to padding: use the locked version of transformers")
