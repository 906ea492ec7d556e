import json
import math
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaModel

from vla.core.errors import CorruptFileError, GrasplineError, SpecMismatchError
from vla.policies.backbones import vlm
from vla.policies.backbones.language import bidirectional, check_bidirectional, llama
from vla.policies.backbones.prompt import OPENVLA_TEMPLATE, Prompt, byte_tokenizer
from vla.policies.backbones.vlm import VLMBackbone, sinusoids

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, PATCHES, HORIZON = 32, 3, 4
SHORT, LONG = "push", "pick up the red mug"
SIZES = {"width": WIDTH, "layers": 2, "heads": 4, "mlp": 48, "vocabulary": 300}


class MeanColours(nn.Module):
    """A vision tower of one layer: the mean colour of each third of the image."""

    width, num_tokens = 6, PATCHES

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.steer = nn.Linear(3, self.width), nn.Linear(WIDTH, self.width)

    def forward(self, images_NHWC: Tensor, condition_ND: Tensor | None = None) -> Tensor:
        thirds_NPC = images_NHWC.float().unflatten(1, (PATCHES, -1)).mean((2, 3)) / 255
        seen_NPV = self.linear(thirds_NPC.to(self.linear.weight.dtype))
        return seen_NPV if condition_ND is None else seen_NPV + self.steer(condition_ND)[:, None]


def backbone(*, action_dim: int = 2, cameras: int = 2, slots: int | None = None, **changes) -> VLMBackbone:
    torch.manual_seed(0)
    parts = {
        "vision": MeanColours(),
        "language": llama(**SIZES),
        "prompt": Prompt(tokenizer=byte_tokenizer(), suffix=(299,)),
        "projector": nn.Linear(MeanColours.width, WIDTH),
        "slots_per_action": slots or action_dim,
        "state_dim": 5,
    }
    built = VLMBackbone(**{**parts, "action_dim": action_dim, "cameras": cameras, "horizon": HORIZON, **changes})
    for parameter in built.language.parameters():  # larger than at the start of training, so that mistakes show
        parameter.data.mul_(3 if parameter.ndim > 1 else 1)
    return built.eval()


def inputs(size: int = 1, cameras: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, cameras, 6, 6, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randn(size, 5, generator=generator)


def noise(size: int = 1, action_dim: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(size, HORIZON, action_dim, generator=generator), torch.rand(size, generator=generator)


def published_order(net: VLMBackbone, images: Tensor, state: Tensor, text: str, noisy: tuple[Tensor, ...]) -> Tensor:
    """Features of one observation: every token at its published place, attention by an explicit mask of zeros."""
    ids = [*net.prompt.ids(text), net.prompt.stop_id]
    words_1PD = net.language.embed_tokens(torch.tensor([ids]))
    condition = words_1PD.mean(1).expand(images.shape[1], -1) if net.film else None
    seen = [net.projector(net.vision(images[:, k], None if condition is None else condition[:1])) for k in range(2)]
    slots_1MD = torch.zeros(1, HORIZON * net.slots_per_action, WIDTH)
    before = [words_1PD[:, :1], *seen]
    if net.proprio_projector is not None:
        before.append(net.proprio_projector(state)[:, None])
    if noisy:
        numbers = noisy[0].reshape(1, HORIZON * net.slots_per_action, -1)
        slots_1MD = net.noisy_action_projector(numbers)
        before.append(sinusoids(50 * noisy[1], WIDTH)[:, None])
    tokens_1ND = torch.cat([*before, words_1PD[:, 1:-1], slots_1MD, words_1PD[:, -1:]], dim=1)
    length = tokens_1ND.shape[1]
    eager = LlamaModel(net.language.config)
    eager.load_state_dict(net.language.state_dict())
    eager.set_attn_implementation("eager")
    states = eager(inputs_embeds=tokens_1ND, attention_mask=torch.zeros(1, 1, length, length)).last_hidden_state
    start = length - 1 - slots_1MD.shape[1] - 1
    return states[:, start : start + slots_1MD.shape[1]].reshape(1, HORIZON, -1)


@pytest.mark.parametrize("film", [False, True], ids=["plain", "film"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"proprio": False}, {"slots": 1}, {"denoises": True}, {"denoises": True, "slots": 1, "proprio": False}],
    ids=str,
)
@torch.no_grad()
def test_the_order_in_memory_is_that_of_the_paper(changes: dict, film: bool):
    net, (images, state) = backbone(film=film, **changes), inputs()
    noisy = noise() if net.denoises else ()
    features = net(net.encode(images, state, [LONG]), *noisy)
    assert features.shape == (1, HORIZON, net.width)
    expected = published_order(net, images, state, LONG, noisy)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("denoises", [False, True])
@torch.no_grad()
def test_padding_and_company_change_nothing(denoises: bool):
    net, (images, state), texts = backbone(film=True, denoises=denoises), inputs(3), [SHORT, LONG, ""]
    noisy, time = noise(3)
    together = net(net.encode(images, state, texts), *((noisy, time) if denoises else ()))
    for i, text in enumerate(texts):
        row = slice(i, i + 1)
        one = net.encode(images[row], state[row], [text])
        assert one.mask_BN is None, "without padding there is no mask, so that the fastest kernels serve"
        alone = net(one, *((noisy[row], time[row]) if denoises else ()))
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_prompts_padded_to_a_bucket_give_the_same_features():
    net, (images, state) = backbone(), inputs()
    words = net.words([SHORT], pad_to=80)
    assert words.ids_BW.shape == (1, 81)
    assert words.padded
    plain = net(net.encode(images, state, [SHORT]))
    torch.testing.assert_close(net(net.look(images, state, words)), plain, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_come_from_one_place_to_the_left(monkeypatch: pytest.MonkeyPatch):
    """With states that say where they are: slot 0 reads the prompt's last token, slot j slot j - 1."""
    net, (images, state) = backbone(slots=1), inputs(2)
    monkeypatch.setattr(vlm.llm, "states", lambda model, tokens, at, mask: at[..., None].expand(tokens.shape).float())
    features_BHD = net(net.encode(images, state, [SHORT, LONG]))
    aux = 2 * PATCHES + 1
    last = torch.tensor([[aux + len(net.prompt.ids(text)) - 1] for text in (SHORT, LONG)])
    assert torch.equal(features_BHD[..., 0], last + torch.arange(HORIZON).float())


@pytest.mark.parametrize("part", ["instruction", "state", "first camera", "second camera", "last noise", "time"])
@torch.no_grad()
def test_every_input_changes_the_first_action(part: str):
    net, (images, state), text, (noisy, time) = backbone(denoises=True), inputs(), SHORT, noise()
    before = net(net.encode(images, state, [text]), noisy, time)
    if part == "instruction":
        text = LONG
    elif part == "state":
        state = state + 1
    elif part == "last noise":
        noisy[:, -1, -1] += 1
    elif part == "time":
        time = time / 2
    else:
        images = images.clone()
        images[:, ("first camera", "second camera").index(part)] = 0
    after = net(net.encode(images, state, [text]), noisy, time)
    assert (after - before)[:, 0].abs().max() > 1e-3


def test_cameras_keep_their_order():
    net, (images, state) = backbone(), inputs(2)
    context = net.encode(images, state, [SHORT, SHORT])
    wrist = net.projector(net.vision(images[:, 1]))
    torch.testing.assert_close(context.before_BND[:, 1 + PATCHES : 1 + 2 * PATCHES], wrist)


def test_a_reader_gets_the_states_of_all_layers():
    class Reader(nn.Module):
        width = 7

        def forward(self, slots: list[Tensor], seen: list[Tensor], proprio_BD: Tensor) -> Tensor:
            self.got = SimpleNamespace(slots=slots, seen=seen, proprio_BD=proprio_BD)
            return torch.zeros(len(proprio_BD), HORIZON, self.width)

    net, (images, state) = backbone(slots=1, reader=Reader()), inputs(2)
    assert net.width == 7
    context = net.encode(images, state, [SHORT, LONG])
    assert net(context).shape == (2, HORIZON, 7)
    got, net.reader = net.reader.got, None
    assert [x.shape for x in got.slots] == [(2, HORIZON, WIDTH)] * SIZES["layers"]
    assert [x.shape for x in got.seen] == [(2, 2 * PATCHES, WIDTH)] * SIZES["layers"]
    torch.testing.assert_close(got.slots[-1], net(context))
    torch.testing.assert_close(got.proprio_BD, net.proprio_projector(state))
    unnormed, first = got.seen[0], net.language.layers[0]
    assert (unnormed - got.seen[1]).abs().max() > 1e-3
    assert first is not net.language.layers[-1]


def test_gradient_reaches_every_weight_and_checkpointing_keeps_it():
    net, (images, state), gradients = backbone(film=True, denoises=True).train(), inputs(2), []
    for again in (False, True):
        net.set_grad_checkpointing(again)
        net.zero_grad()
        net(net.encode(images, state, [SHORT, LONG]), *noise(2)).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
        assert [name for name, grad in gradients[-1].items() if not grad.abs().sum() > 0] == []
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_half_precision():
    net, (images, state) = backbone(), inputs(2)
    exact = net(net.encode(images, state, [SHORT, LONG]))
    half = net.to(torch.bfloat16)(net.encode(images, state, [SHORT, LONG]))
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_a_stock_language_model_is_refused_as_causal():
    stock = LlamaModel(llama(**SIZES).config)
    stock.config.is_causal = True
    with pytest.raises(GrasplineError, match="is causal"):
        check_bidirectional(stock)
    with pytest.raises(GrasplineError, match="is causal"):
        backbone(language=stock)
    check_bidirectional(bidirectional(stock))
    check_bidirectional(stock.to(torch.bfloat16))


def test_attention_that_sees_padding_is_refused():
    """Eager attention adds our boolean mask instead of obeying it."""
    language = llama(**SIZES)
    language.set_attn_implementation("eager")
    with pytest.raises(GrasplineError, match="attends to padding"):
        check_bidirectional(language)


@torch.no_grad()
def test_half_precision_keeps_the_exact_frequencies():
    """Rounded ones turn by up to a radian at position 600, and the model sees its tokens in the wrong places."""
    language = llama(**SIZES)
    before, tokens, at = language.rotary_emb.inv_freq.clone(), torch.randn(1, 5, WIDTH), torch.arange(600, 605)[None]
    exact = vlm.llm.states(language, tokens, at, None)
    language.to(torch.bfloat16)
    assert torch.equal(language.rotary_emb.inv_freq, before)
    half = vlm.llm.states(language, tokens.bfloat16(), at, None)
    assert (half.float() - exact).abs().mean() < 0.01 * exact.abs().mean()


def test_the_rotary_table_is_real_when_weights_are_not():
    with torch.device("meta"):
        language = llama(**SIZES)
    assert all(parameter.is_meta for parameter in language.parameters())
    filled = llama(**SIZES)
    language.to_empty(device="cpu").load_state_dict(filled.state_dict())
    tokens, at = torch.randn(1, 5, WIDTH), torch.arange(5)[None]
    torch.testing.assert_close(vlm.llm.states(language, tokens, at, None), vlm.llm.states(filled, tokens, at, None))


def test_wrong_use_is_named():
    net, (images, state) = backbone(), inputs()
    context = net.encode(images, state, [SHORT])
    with pytest.raises(ValueError, match="denoises=False"):
        net(context, *noise())
    with pytest.raises(ValueError, match="needs noisy actions"):
        denoiser = backbone(denoises=True)
        denoiser(denoiser.encode(images, state, [SHORT]))
    with pytest.raises(ValueError, match="1 cameras in the batch, expected 2"):
        net.encode(images[:, :1], state, [SHORT])
    with pytest.raises(ValueError, match="slots_per_action is 3, expected 1 or 4"):
        backbone(action_dim=4, slots=3)
    with pytest.raises(SpecMismatchError, match="ids up to 29871, the language model embeds 300"):
        backbone(prompt=Prompt(tokenizer=byte_tokenizer()))


def test_sinusoids_by_hand():
    time = torch.tensor([3.0])
    angles = [3.0, 3.0 / 100, 3.0 / 10_000]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(sinusoids(time, 6)[0], torch.tensor(expected))


WORDS = {"in:": 100, "In:": 5, "mug?": 6, "robot": 7, "Out:": 8, "▁": 29871}


def word_prompt(**changes) -> Prompt:
    tokenizer = Tokenizer(models.WordLevel(vocab={"?": 3, **WORDS}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Prompt(tokenizer=tokenizer.to_str().encode(), **changes)


def test_prompt_is_the_published_text_between_bos_and_the_empty_word():
    prompt = word_prompt()
    assert OPENVLA_TEMPLATE.format("x") == "In: What action should the robot take to x?\nOut:"
    unknown = [3] * 4
    assert prompt.ids("Grab MUG") == [1, 5, *unknown[:3], 3, 7, 3, 3, 3, 6, 8, 29871]
    assert (prompt.stop_id, prompt.vocabulary) == (2, 29872)


def test_the_empty_word_is_not_doubled():
    assert word_prompt(template="{} ▁").ids("mug?") == [1, 6, 29871]
    assert word_prompt(template="{}", suffix=(), lower=False).ids("In: {}") == [1, 5, 3]


def test_bytes_make_reversible_tokens():
    tokenizer = Tokenizer.from_str(byte_tokenizer().decode())
    ids = tokenizer.encode("Öffne die Tür").ids
    assert len(ids) == len("Öffne die Tür".encode())
    assert min(tokenizer.get_vocab().values()) == 3
    assert len(json.loads(byte_tokenizer())["model"]["vocab"]) == 256


def test_a_damaged_tokenizer_is_named():
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json: not a tokenizer"):
        Prompt(tokenizer=b"{}")
