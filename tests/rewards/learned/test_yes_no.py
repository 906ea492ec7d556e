"""The yes/no judge with a tiny random language model: what it computes, what trains, what is kept."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from rewards.learned.causal import CausalLanguage, from_contents, from_hub
from rewards.learned.declared import FrameJudge
from rewards.learned.fit import HalfBatch, LabelledFrames, fit
from rewards.learned.frames import Encoder
from rewards.learned.yes_no import YesNo, load_yes_no, save_yes_no, score_frames, yes_no_loss
from rewards.metrics import auc
from vla.core.errors import GrasplineError, MissingAssetError, SpecMismatchError

GEOMETRY = {
    "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 48, "vocabulary": 40, "epsilon": 1e-5, "rope_base": 1e4,
}  # fmt: skip
WORDS = ("is", "the", "robot", "s", "task", "upper", "lower", "finished", "in", "this", "picture", "yes", "or", "no")
WORDS += ("a", "long", "one", "user", "assistant")


def tokenizer() -> bytes:
    words = Tokenizer(models.WordLevel({"?": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words.to_str().encode()


def language() -> CausalLanguage:
    """Random, but with weights as large as a trained model's: fresh ones could not say yes or no at all."""
    torch.manual_seed(0)
    shapes = from_contents(name="toy", geometry=GEOMETRY, weights={}, tokenizer=tokenizer()).model.model.state_dict()
    weights = {name: w if w.ndim == 1 else torch.randn(w.shape) * 0.3 for name, w in shapes.items()}
    return from_contents(name="toy", geometry=GEOMETRY, weights=weights, tokenizer=tokenizer())


@pytest.fixture
def judge() -> YesNo:
    return YesNo(language=language(), width=6)


def test_the_answer_is_read_after_the_question(judge: YesNo):
    """Against one sequence put together by hand and run without padding or mask."""
    tokens_2KPD = torch.randn(2, 1, 4, 6)
    tasks = ["upper", "a long one"]
    with torch.no_grad():
        logits_2V = judge(tokens_2KPD, tasks)
        for row, task in enumerate(tasks):
            text = (
                f"\nIs the robot's task '{task}' finished in this picture? yes or no<|im_end|>\n<|im_start|>assistant\n"
            )
            words = Tokenizer.from_str(tokenizer().decode())
            before, after = words.encode("<|im_start|>user\n").ids, words.encode(text).ids
            embed = judge.language.get_input_embeddings()
            sequence = torch.cat(
                [embed(torch.tensor(before)), judge.projector(tokens_2KPD[row, 0]), embed(torch.tensor(after))]
            )
            expected = judge.language(inputs_embeds=sequence[None]).logits[0, -1]
            torch.testing.assert_close(logits_2V[row], expected, atol=1e-5, rtol=1e-5)


def test_score_is_the_log_odds_and_loss_the_next_token(judge: YesNo):
    tokens_NKPD = torch.randn(3, 1, 4, 6)
    with torch.no_grad():
        logits_NV = judge(tokens_NKPD, ["upper"] * 3)
    both = logits_NV[:, [judge.yes_id, judge.no_id]].softmax(-1)
    np.testing.assert_allclose(score_frames(judge, tokens_NKPD, "upper"), (both[:, 0] / both[:, 1]).log(), atol=1e-5)
    batch = HalfBatch(tokens_NKPD, torch.zeros(3, dtype=torch.int64), torch.tensor([1.0, 0.0, 0.0]))
    log_probabilities = logits_NV.log_softmax(-1)
    by_hand = (
        -(log_probabilities[0, judge.yes_id] + log_probabilities[1, judge.no_id] + log_probabilities[2, judge.no_id])
        / 3
    )
    assert float(yes_no_loss(judge, ["upper"], batch).detach()) == pytest.approx(float(by_hand), abs=1e-5)


def test_what_trains(toy_frames: LabelledFrames):
    """The projector, and with a rank the adapters; never the language model's own weights."""
    plain = YesNo(language=language(), width=6)
    assert set(plain.trained()) == {f"projector.{i}.{kind}" for i in (0, 2, 3) for kind in ("weight", "bias")}
    adapted = YesNo(language=language(), width=6, rank=2)
    adapters = {name for name in adapted.trained() if "lora_" in name}
    assert len(adapters) == 2 * 2 * 2 and set(adapted.trained()) - adapters == set(plain.trained())
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    fit(adapted, partial(yes_no_loss, adapted, toy_frames.texts), toy_frames, steps=3, batch=8, lr=1e-2)
    changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(adapted.trained())


def test_it_learns_to_answer(toy_frames: LabelledFrames):
    """A frozen random language model is enough for a square; the other question is answered too."""
    judge = YesNo(language=language(), width=6, rank=4)
    frames = replace(toy_frames, tokens_VNKPD=toy_frames.tokens_VNKPD[:, :, :1])  # the camera that shows it
    losses = fit(judge, partial(yes_no_loss, judge, frames.texts), frames, steps=120, batch=32, lr=1e-2)
    assert np.mean(losses[:3]) > 2 and np.mean(losses[-20:]) < 0.5
    scores = np.stack([score_frames(judge, frames.tokens_VNKPD[0], task) for task in frames.texts])
    own_N, done_N = scores[toy_frames.text_N, np.arange(400)], toy_frames.done_N.numpy()
    assert auc(own_N, done_N) > 0.9
    assert own_N[done_N].mean() > scores[1 - toy_frames.text_N, np.arange(400)][done_N].mean() + 1


def test_saved_without_the_language_model(tmp_path: Path, toy_encoder: Encoder, toy_cameras):
    judge = YesNo(language=language(), width=6, rank=2)
    for parameter in judge.trained().values():
        torch.nn.init.normal_(parameter, std=0.1)
    whole = FrameJudge(
        score=partial(score_frames, judge), cameras=toy_cameras, encoder=toy_encoder,
        threshold=0.5, consecutive=3, every=2, provenance={"dataset": "toy"},
    )  # fmt: skip
    save_yes_no(tmp_path, whole, judge)
    again = load_yes_no(folder=tmp_path, encoder=toy_encoder, language=language())
    tokens_NKPD = torch.randn(3, 2, 16, 6)
    assert np.array_equal(again.score(tokens_NKPD, "upper"), whole.score(tokens_NKPD, "upper"))
    assert again.threshold == 0.5 and json.loads((tmp_path / "reward.json").read_text())["language"] == "toy"
    other = CausalLanguage(name="other", model=language().model, tokenize=language().tokenize)
    with pytest.raises(SpecMismatchError, match="trained with 'toy', the language model is 'other'"):
        load_yes_no(folder=tmp_path, encoder=toy_encoder, language=other)


def test_what_does_not_fit(judge: YesNo):
    with pytest.raises(SpecMismatchError, match="tokens of width 5, trained on 6"):
        judge(torch.zeros(1, 1, 4, 5), ["upper"])
    with pytest.raises(GrasplineError, match="the answer 'a long one' is 3 tokens"):
        language().answer_id("a long one")
    with pytest.raises(MissingAssetError, match="cannot be fetched from the Hub"):  # HF_HUB_OFFLINE is set
        from_hub(name="no-such/model")


def test_hub_layout_is_read_the_same(tmp_path: Path):
    """A folder in the Hub's layout gives the answers of the contents it was made from."""
    from transformers import PreTrainedTokenizerFast

    ours = language()
    ours.model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer().decode())).save_pretrained(tmp_path)
    theirs = from_hub(name=str(tmp_path))
    assert theirs.tokenize("is the robot's task") == ours.tokenize("is the robot's task")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(ids).logits, ours.model(ids).logits)
