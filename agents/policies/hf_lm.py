"""Any causal language model of `transformers` as a policy of text: chat template, answers, log-probabilities, LoRA.

SmolLM2-135M comes out of a wheel (`from_wheel`), others from the Hub or a folder (`from_hub`). The model is called like
the small decoder, ids in and logits out, so every objective and the loop of `agents.train` take it as it is.

Training pads on the right and sampling on the left. No mask is ever made by comparing ids with the padding's: SmolLM2's
file says that padding is the token that ends an answer, and a loss masked by id would drop the end, after which the
model never stops. Hence the two must differ, and what is padding is known from lengths.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaForCausalLM

from agents.batch import TokenBatch
from agents.objectives.nll import nll
from agents.objectives.tokens import token_cross_entropy
from vla.core.errors import CorruptFileError, GrasplineError, MissingAssetError, SpecMismatchError
from vla.policies.backbones.language import llama
from vla.policies.backbones.smollm import LanguageModel, read_wheel

Message = Mapping[str, str]  # "role" (system, user, assistant) and "content"
Template = Callable[[Sequence[Message]], str]  # the text up to where the assistant is to go on
SMOLLM2 = "SmolLM2-135M-Instruct (dequantised Q4_1)"
PAD_ID = 0  # <|endoftext|>: in SmolLM2's vocabulary, and in no conversation


class ChatModel(nn.Module):
    """A causal language model, its tokenizer and its chat template."""

    def __init__(
        self, *, name: str, language: Any, words: Tokenizer, template: Template, end_id: int, pad_id: int | None
    ) -> None:
        """Args:
        name: for messages and files.
        language: of transformers, with its language head.
        words: text to ids, without tokens of its own.
        template: messages to text.
        end_id: of the token that ends an answer.
        pad_id: of another token, which fills up rows.

        Raises:
            GrasplineError: padding is not told from the end.
        """
        super().__init__()
        if pad_id is None or pad_id == end_id:
            raise GrasplineError(
                f"language '{name}': pad is {pad_id} and the end of an answer is {end_id}; expected two tokens, since "
                "a mask made from padding would drop the end too and the model would never stop. Give `pad`"
            )
        self.name, self.words, self.template = name, words, template
        self.language: Any = language.eval()
        self.end_id, self.pad_id = end_id, pad_id

    def forward(self, ids_BN: Tensor) -> Tensor:
        """(B, N, V) logits after each id; rows are padded on the right, where nothing that counts can see it."""
        return self.language(input_ids=ids_BN, use_cache=False).logits

    def encode(self, text: str) -> list[int]:
        """Ids, without an end."""
        return self.words.encode(text, add_special_tokens=False).ids

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the model is to go on."""
        return self.encode(self.template(messages))

    def text(self, ids: Sequence[int]) -> str:
        """The text up to the first end."""
        kept = list(ids)[: list(ids).index(self.end_id)] if self.end_id in ids else list(ids)
        return self.words.decode(kept, skip_special_tokens=False)


def chatml(messages: Sequence[Message]) -> str:
    """ChatML, which SmolLM2 was tuned to. Raises GrasplineError where a message holds the marks of the template."""
    for each in messages:
        if "<|im_" in each["content"]:
            raise GrasplineError(f"a message of the {each['role']} has '<|im_', which would end it: take it out")
    told = [f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages]
    return "".join([*told, "<|im_start|>assistant\n"])


def from_wheel(layers: int = 30) -> ChatModel:
    """SmolLM2-135M-Instruct, or its first layers. Raises MissingAssetError where its wheel is not installed."""
    return from_contents(name=SMOLLM2 if layers == 30 else f"{SMOLLM2}/{layers}", contents=read_wheel(layers))


def from_contents(*, name: str, contents: LanguageModel) -> ChatModel:
    """A Llama that reads words out with its embedding table; random where `contents` has no weights."""
    with torch.device("meta"):  # for its configuration alone; attention there goes both ways, which is undone
        config = llama(**contents.geometry).config
    config.is_causal, config.tie_word_embeddings = True, True
    language = LlamaForCausalLM(config)
    if contents.weights:
        language.model.load_state_dict(dict(contents.weights))
    words = Tokenizer.from_str(contents.tokenizer.decode())
    return ChatModel(name=name, language=language, words=words, template=chatml, end_id=contents.stop_id, pad_id=PAD_ID)


def from_hub(name: str, *, pad: str | None = None) -> ChatModel:
    """A model of the Hugging Face Hub, or of a folder in its layout.

    Args:
        name: of the model, or the folder.
        pad: the padding token, where the tokenizer has none or one that ends an answer too.

    Raises:
        MissingAssetError: it cannot be fetched.
        GrasplineError: it has no chat template, or padding is not told from the end.
    """
    try:
        language = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise MissingAssetError(
            f"language: '{name}' cannot be fetched from the Hub, no folder either: {error}"
        ) from error
    if tokenizer.chat_template is None:
        raise GrasplineError(f"language '{name}': it has no chat template, expected a model tuned to conversations")
    return ChatModel(
        name=name,
        language=language,
        words=tokenizer.backend_tokenizer,
        template=partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True),
        end_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id if pad is None else tokenizer.get_vocab().get(pad),
    )


def add_lora(policy: ChatModel, *, rank: int, alpha: int) -> None:
    """Freezes the model and gives each linear layer but the head an adapter, which starts at nothing.

    Args:
        policy: changed in place.
        rank: r, at least 1.
        alpha: the change is alpha / rank * B @ A; A is drawn from torch's global generator.
    """
    if rank < 1:
        raise GrasplineError(f"rank is {rank}, expected a whole number of at least 1")
    from peft import LoraConfig, inject_adapter_in_model  # here: costs seconds that sampling need not pay

    policy.language.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"), policy.language)


def trained(policy: ChatModel) -> dict[str, Tensor]:
    """The parameters that train, by name."""
    return {name: each for name, each in policy.named_parameters() if each.requires_grad}


def save_adapters(policy: ChatModel, path: Path) -> None:
    """What trains, and the name of the model that it belongs to."""
    tensors = {name: each.detach().contiguous() for name, each in trained(policy).items()}
    save_file(tensors, path, metadata={"language": policy.name})


@torch.no_grad()
def load_adapters(policy: ChatModel, path: Path) -> None:
    """Puts what `save_adapters` wrote into a model with adapters of the same rank."""
    ours, theirs = trained(policy), load_file(path)
    if {name: each.shape for name, each in ours.items()} != {name: each.shape for name, each in theirs.items()}:
        raise CorruptFileError(f"{path}: not the adapters of '{policy.name}' with this rank and these layers")
    for name, each in ours.items():
        each.copy_(theirs[name])


def fold_lora(policy: ChatModel) -> None:
    """Adds the adapters to the weights that they stand beside: the same answers in two thirds of the time."""
    for layer in policy.language.modules():
        if hasattr(layer, "lora_A"):
            layer.merge()


def answer_logp(policy: ChatModel, batch: TokenBatch) -> Tensor:
    """(B, N) log-probability [nat] of the trained targets, zero at the others.

    The head reads out the trained places alone: with it everywhere, a fifth of the multiplications and the largest
    tensor by far would serve tokens of which nobody asks.
    """
    if not batch.mask_BN.any():
        raise GrasplineError("no target is trained: all labels of the batch are masked, expected an answer in each row")
    states_BND = policy.language.get_decoder()(input_ids=batch.inputs_BN, use_cache=False).last_hidden_state
    logits_MV = policy.language.get_output_embeddings()(states_BND[batch.mask_BN])
    logp_M = -token_cross_entropy(logits_MV, batch.targets_BN[batch.mask_BN])
    return torch.zeros(batch.mask_BN.shape).masked_scatter(batch.mask_BN, logp_M)


@torch.no_grad()
def reference_logp(reference: ChatModel, policy: ChatModel, batch: TokenBatch) -> Tensor:
    """`answer_logp` of another model for the policy's batch. Raises SpecMismatchError for another tokenizer."""
    if reference.words.get_vocab() != policy.words.get_vocab():
        sizes = reference.words.get_vocab_size(), policy.words.get_vocab_size()
        raise SpecMismatchError(
            f"reference '{reference.name}' has another tokenizer than the policy '{policy.name}' ({sizes[0]} and "
            f"{sizes[1]} tokens): its log-probabilities would be of other words. Expected the same vocabulary"
        )
    return answer_logp(reference, batch)


def answer_likelihood(policy: nn.Module, batch: TokenBatch, total: Tensor) -> Tensor:
    """Supervised fine-tuning, with the weights of the examples, as `agents.train.losses.likelihood` has it."""
    assert isinstance(policy, ChatModel)
    return nll(answer_logp(policy, batch), batch.mask_BN, batch.weights_BN, total=total)


def length_sorted_batches(lengths: Sequence[int], size: int, generator: torch.Generator) -> list[list[int]]:
    """Row numbers, `size` at a time and of like length, the batches in drawn order; what is left over goes.

    Args:
        lengths: of the rows [token].
        size: rows in a batch, at most as many as there are.
        generator: draws which of equally long rows stand together, and the order.
    """
    if len(lengths) < size:
        raise ValueError(f"lengths has {len(lengths)} rows, expected at least {size}, the size of a batch")
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    order = sorted(drawn, key=lambda row: lengths[row])
    batches = [order[first : first + size] for first in range(0, len(order) - size + 1, size)]
    return [batches[each] for each in torch.randperm(len(batches), generator=generator).tolist()]


def answers(
    policy: ChatModel,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    batch: int = 25,
    enough: Callable[[str], bool] = lambda text: False,
) -> list[list[int]]:
    """An answer's ids for each prompt, the end among them unless something else stopped it first.

    Args:
        policy: samples with a cache of keys and values; what all prompts begin with is computed once.
        prompts: ids, any lengths.
        limit: tokens of an answer, at most.
        temperature: 0 takes the likeliest token.
        seeds: one for each prompt where the temperature is above 0: what is drawn for a prompt depends on its own
            seed, not on its neighbours.
        batch: prompts at a time.
        enough: whether an answer that begins so needs no more words.
    """
    if temperature and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError(f"seeds has {len(seeds or ())} values, expected {len(prompts)}, one for each prompt")
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    column = zip(*prompts, strict=False)
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, column))
    shared = min(shared, len(prompts[order[0]]) - 1)  # each has a last token of its own, after which it goes on
    found: dict[int, list[int]] = {}
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        chosen = seeds or [0] * len(prompts)
        generators = [torch.Generator().manual_seed(chosen[row]) for row in rows]
        draw = partial(_draw, temperature=temperature, generators=generators)
        new = _answers(policy, [list(prompts[row]) for row in rows], shared, limit, draw, enough)
        found.update(zip(rows, new, strict=True))
    return [found[row] for row in range(len(prompts))]


@torch.no_grad()
def _answers(
    policy: ChatModel,
    prompts: Sequence[list[int]],
    shared: int,
    limit: int,
    draw: Callable[[Tensor, list[int]], Tensor],
    enough: Callable[[str], bool],
) -> list[list[int]]:
    """See `answers`. In a row: the `shared` ids of all prompts, padding, the rest of the prompt, the answer."""
    flipped = [torch.tensor(prompt[shared:][::-1]) for prompt in prompts]
    ids_BN = pad_sequence(flipped, batch_first=True, padding_value=policy.pad_id).flip(1)
    rest_B = torch.tensor([len(each) for each in flipped])
    real_BM = torch.arange(ids_BN.shape[1]) >= ids_BN.shape[1] - rest_B[:, None]
    real_BM = torch.cat([torch.ones(len(prompts), shared, dtype=torch.bool), real_BM], dim=1)
    position_BN = (real_BM.cumsum(dim=1) - 1)[:, shared:].clamp(min=0)
    cache = DynamicCache(config=policy.language.config)
    if shared:
        policy.language(input_ids=torch.tensor([prompts[0][:shared]]), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    told, going = [[] for _ in prompts], list(range(len(prompts)))
    for _ in range(limit):
        logits_BV = policy.language(
            input_ids=ids_BN,
            attention_mask=real_BM.long(),
            position_ids=position_BN,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn_B = draw(logits_BV.float(), going)
        for row, drawn in zip(going, drawn_B.tolist(), strict=True):
            told[row].append(drawn)
        kept = [at for at, row in enumerate(going) if told[row][-1] != policy.end_id]
        kept = torch.tensor([at for at in kept if not enough(policy.text(told[going[at]]))], dtype=torch.int64)
        if not len(kept):
            break
        cache.batch_select_indices(kept)  # who has ended is dropped: no more is computed for it
        going = [going[at] for at in kept.tolist()]
        ids_BN, position_BN = drawn_B[kept, None], position_BN[kept, -1:] + 1
        real_BM = torch.cat([real_BM[kept], torch.ones(len(kept), 1, dtype=torch.bool)], dim=1)
    return told


def _draw(logits_BV: Tensor, rows: list[int], *, temperature: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of each of `rows`, which are those still going on."""
    if not temperature:
        return logits_BV.argmax(dim=-1)
    law_BV = (logits_BV / temperature).softmax(dim=-1)
    drawn = [torch.multinomial(law_V, 1, generator=generators[row]) for law_V, row in zip(law_BV, rows, strict=True)]
    return torch.cat(drawn)
