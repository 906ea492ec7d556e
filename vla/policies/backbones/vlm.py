"""A vision-language model that reads an observation and fills in a chunk in one pass: OpenVLA-OFT's sequence.

    [BOS][image tokens][proprioception][time][prompt ... last token][H x slots][stop]

Attention goes both ways. A slot's input is zero (or a noisy action); its feature is the state one place to the left, so
the first one is read from the prompt's last token. One code path serves every size and language model.

What is special: position ids are explicit, so the order in memory is free. Here the prompt comes last and is padded on
the right: everything else has a fixed place whatever the prompt's length, and padding moves nothing.
Source: Kim, Finn, Liang 2025, "Fine-Tuning Vision-Language-Action Models" (arXiv 2502.19645).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaModel

from vla.core.errors import SpecMismatchError
from vla.policies.backbones import language as llm
from vla.policies.backbones.prompt import Prompt

TIME_STEPS = 50  # of the published diffusion, whose time token embeds the number of a step
TIME_PERIOD = 10_000.0


class VisionTower(Protocol):
    """An nn.Module that resizes, crops and normalises images itself and gives `num_tokens` tokens for each.

    `set_grad_checkpointing(bool)` is optional.
    """

    width: int
    num_tokens: int

    def __call__(self, images_NHWC: Tensor, condition_ND: Tensor | None = None) -> Tensor:
        """uint8 images of any size to tokens (N, num_tokens, width); the condition is FiLM's."""
        ...


class Words(NamedTuple):
    """Prompts as tensors. Row: [BOS][stop][rest of the prompt][padding], the order in memory.

    ids_BW     int64
    length_B   int64    tokens of the prompt, BOS included, the stop token not
    padded     whether any row has padding
    """

    ids_BW: Tensor
    length_B: Tensor
    padded: bool


class Context(NamedTuple):
    """An encoded observation: the sequence without its slots, in the order of memory.

    before_BND    BOS, image tokens, proprioception
    after_BND     stop token, rest of the prompt, padding
    length_B      tokens of the prompt, BOS included
    mask_BN       True where a token of the whole sequence is real; None where all are
    """

    before_BND: Tensor
    after_BND: Tensor
    length_B: Tensor
    mask_BN: Tensor | None


class VLMBackbone(nn.Module):
    """Images, state and instructions to one feature vector per action of the chunk. A `Backbone` of interfaces.py."""

    def __init__(
        self,
        *,
        vision: nn.Module,
        language: LlamaModel,
        prompt: Prompt,
        cameras: int,
        state_dim: int,
        action_dim: int,
        horizon: int,
        slots_per_action: int,
        projector: nn.Module,
        proprio: bool = True,
        denoises: bool = False,
        film: bool = False,
        reader: nn.Module | None = None,
    ) -> None:
        """Joins the parts, and proves that the language model is bidirectional if it has weights.

        Args:
            vision: a `VisionTower`.
            language: made bidirectional by vla/policies/backbones/language.py.
            prompt: instructions to ids.
            cameras: K.
            state_dim: S.
            action_dim: A.
            horizon: H.
            slots_per_action: places in the sequence for one action: A (one for each number) or 1.
            projector: vision tokens to the width D of the language model.
            proprio: whether the state is a token.
            denoises: whether slots hold noisy actions and the time is a token.
            film: whether the mean of the words' embeddings conditions the vision tower.
            reader: turns the states of all layers into features, where the last layer's alone are not enough:
                `reader(slots, seen, proprio_BD)`, two lists of tensors (B, M, D) and (B, N, D), one per layer, of the
                M = H * slots_per_action slots (one place to the left) and the N image tokens.

        Raises:
            GrasplineError: the language model is causal.
            SpecMismatchError: the tokenizer has more tokens than the language model.
        """
        super().__init__()
        width = language.config.hidden_size
        if prompt.vocabulary > language.config.vocab_size:
            raise SpecMismatchError(
                f"tokenizer.json has ids up to {prompt.vocabulary - 1}, the language model embeds "
                f"{language.config.vocab_size}: they do not belong together"
            )
        if slots_per_action not in (1, action_dim):
            raise ValueError(f"slots_per_action is {slots_per_action}, expected 1 or {action_dim}")
        self.vision, self.language, self.projector, self.reader = vision, language, projector, reader
        self.prompt, self.cameras, self.horizon = prompt, cameras, horizon
        self.slots_per_action, self.film, self.denoises = slots_per_action, film, denoises
        self.new_parts: tuple[str, ...] = ()  # names of parts that LoRA should train in full
        self.width: int = slots_per_action * width if reader is None else reader.width  # pyright: ignore
        self.num_seen: int = cameras * vision.num_tokens  # pyright: ignore
        self.proprio_projector = TwoLayers(state_dim, width) if proprio else None
        self.noisy_action_projector = TwoLayers(action_dim // slots_per_action, width) if denoises else None
        self.register_load_state_dict_post_hook(lambda module, keys: module.check())
        self.check()

    def check(self) -> None:
        """Proves that the language model is bidirectional, as soon as it has weights: when built and when loaded.

        Raises:
            GrasplineError: it is causal.
        """
        if not self.language.embed_tokens.weight.is_meta:
            llm.check_bidirectional(self.language)

    def encode(self, images_BKHWC: Tensor, state_BS: Tensor, instructions: Sequence[str]) -> Context:
        """The context: images seen and projected, words and state embedded.

        Args:
            images_BKHWC: uint8, any size, cameras in the order of training.
            state_BS: normalised.
            instructions: B texts.
        """
        return self.look(images_BKHWC, state_BS, self.words(instructions))

    def words(self, instructions: Sequence[str], pad_to: int = 0) -> Words:
        """Prompts as ids on the device of the language model, all as long as the longest, and at least `pad_to`."""
        prompts = [self.prompt.ids(instruction) for instruction in instructions]
        longest = max(pad_to, *map(len, prompts), 0)
        stop = self.prompt.stop_id
        rows = [[ids[0], stop, *ids[1:], *[stop] * (longest - len(ids))] for ids in prompts]
        device = self.language.embed_tokens.weight.device
        return Words(
            ids_BW=torch.tensor(rows, device=device),
            length_B=torch.tensor([len(ids) for ids in prompts], device=device),
            padded=min(map(len, prompts)) < longest,
        )

    def look(self, images_BKHWC: Tensor, state_BS: Tensor, words: Words) -> Context:
        """`encode` after the tokenizer: tensors alone, with no transfer from or to the device."""
        if images_BKHWC.shape[1] != self.cameras:
            raise ValueError(f"{images_BKHWC.shape[1]} cameras in the batch, expected {self.cameras}")
        words_BWD = self.language.embed_tokens(words.ids_BW)
        real_BW = torch.arange(words.ids_BW.shape[1], device=words.ids_BW.device) <= words.length_B[:, None]
        condition_ND = None
        if self.film:
            mean_BD = (words_BWD * real_BW[..., None]).sum(1) / real_BW.sum(1, keepdim=True)
            condition_ND = mean_BD.to(words_BWD.dtype).repeat_interleave(self.cameras, dim=0)
        seen_NTV = self.vision(images_BKHWC.flatten(0, 1), condition_ND)
        parts = [words_BWD[:, :1], self.projector(seen_NTV).unflatten(0, (-1, self.cameras)).flatten(1, 2)]
        if self.proprio_projector is not None:
            parts.append(self.proprio_projector(state_BS)[:, None])
        before_BND = torch.cat([part.to(words_BWD.dtype) for part in parts], dim=1)
        fixed = before_BND.shape[1] + self.denoises + self.horizon * self.slots_per_action
        mask_BN = functional.pad(real_BW[:, 1:], (fixed, 0), value=True) if words.padded else None
        return Context(before_BND=before_BND, after_BND=words_BWD[:, 1:], length_B=words.length_B, mask_BN=mask_BN)

    def forward(self, context: Context, noisy_BHA: Tensor | None = None, time_B: Tensor | None = None) -> Tensor:
        """Features (B, H, width) from what `encode` returned.

        Args:
            context: of `encode`.
            noisy_BHA: for a backbone that denoises.
            time_B: in [0, 1]. The time token embeds 50 times it, so that diffusion's step of 50 is a number as
                published; any other head passes how far its noise has gone.
        """
        inside_BMD = self._slots(context, noisy_BHA, time_B)
        tokens_BND = torch.cat([context.before_BND, inside_BMD, context.after_BND], dim=1)
        positions_BN = self._positions(context)
        mask_B11N = None if context.mask_BN is None else context.mask_BN[:, None, None]
        if self.reader is None:
            states_BND = llm.states(self.language, tokens_BND, positions_BN, mask_B11N)
            return self._read(states_BND, context).unflatten(1, (self.horizon, -1)).flatten(2)
        layers = llm.layer_states(self.language, tokens_BND, positions_BN, mask_B11N)
        seen = slice(1, 1 + self.num_seen)
        proprio_BD = None if self.proprio_projector is None else context.before_BND[:, -1]
        return self.reader([self._read(x, context) for x in layers], [x[:, seen] for x in layers], proprio_BD)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether layers are computed again in the backward pass, to save memory."""
        if enable:
            self.language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.language.gradient_checkpointing_disable()
        if hasattr(self.vision, "set_grad_checkpointing"):
            self.vision.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]

    def _slots(self, context: Context, noisy_BHA: Tensor | None, time_B: Tensor | None) -> Tensor:
        """The time token, if there is one, and the inputs of the slots."""
        before_BND = context.before_BND
        if self.noisy_action_projector is None:
            if noisy_BHA is not None or time_B is not None:
                raise ValueError("noisy actions for a backbone built with denoises=False")
            return before_BND.new_zeros(len(before_BND), self.horizon * self.slots_per_action, before_BND.shape[2])
        if noisy_BHA is None or time_B is None:
            raise ValueError("a backbone built with denoises=True needs noisy actions and their time")
        noisy_BMI = noisy_BHA.reshape(len(noisy_BHA), self.horizon * self.slots_per_action, -1)
        slots_BMD = self.noisy_action_projector(noisy_BMI).to(before_BND.dtype)
        time_BD = sinusoids(TIME_STEPS * time_B, before_BND.shape[2])
        return torch.cat([time_BD[:, None].to(slots_BMD), slots_BMD], dim=1)

    def _positions(self, context: Context) -> Tensor:
        """The place (B, N) of each token in the sequence. Memory: before, time, slots, stop, rest of the prompt."""
        device, slots = context.length_B.device, self.horizon * self.slots_per_action
        prefix = context.before_BND.shape[1] + self.denoises
        before_1N = torch.arange(prefix, device=device)[None].expand(len(context.length_B), -1)
        slots_and_stop_BN = prefix + context.length_B[:, None] - 1 + torch.arange(slots + 1, device=device)
        rest_1N = prefix + torch.arange(context.after_BND.shape[1] - 1, device=device)[None]
        return torch.cat([before_1N, slots_and_stop_BN, rest_1N.expand(len(context.length_B), -1)], dim=1)

    def _read(self, states_BND: Tensor, context: Context) -> Tensor:
        """The states (B, M, D) one place to the left of each slot, of the prompt's last token for the first."""
        first = context.before_BND.shape[1] + self.denoises
        slots = self.horizon * self.slots_per_action
        last_B = first + slots + context.length_B - 1
        last_B1D = states_BND.gather(1, last_B[:, None, None].expand(-1, 1, states_BND.shape[2]))
        return torch.cat([last_B1D, states_BND[:, first : first + slots - 1]], dim=1)


class TwoLayers(nn.Module):
    """Numbers to a token: linear, GELU, linear."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(numbers, width), nn.Linear(width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., numbers) to (..., D)."""
        return self.fc2(functional.gelu(self.fc1(numbers.to(self.fc1.weight.dtype))))


def sinusoids(time_B: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding (B, width), sines first; angular frequencies fall geometrically from 1 to 1/10000."""
    half = width // 2
    exponent_I = torch.arange(half, device=time_B.device, dtype=torch.float32) / (half - 1)
    angle_BI = time_B.float()[:, None] * torch.exp(-math.log(TIME_PERIOD) * exponent_I)
    return torch.cat([angle_BI.sin(), angle_BI.cos()], dim=-1)
