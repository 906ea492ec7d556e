"""The head really learns: every weight behind the frozen encoder, the instruction; and it is kept strictly."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.learned.declared import TERM, FrameJudge
from rewards.learned.fit import LabelledFrames, draw, fit, head_loss
from rewards.learned.frames import Encoder, random_crop
from rewards.learned.success import SuccessHead, load_classifier, save_classifier, score_frames
from rewards.metrics import auc
from vla.core.errors import CorruptFileError, MissingAssetError, SpecMismatchError
from vla.core.types import Episode

SIZES = {"cameras": 2, "places": 16, "width": 6, "text": 2, "channels": 8, "latent": 16}


@pytest.fixture
def head() -> SuccessHead:
    torch.manual_seed(0)
    return SuccessHead(**SIZES)


class WithLerobotsBug(SuccessHead):
    """The whole of a camera's branch under no_grad, as in lerobot's reward classifier."""

    def forward(self, tokens_BKPD: torch.Tensor, text_BE: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            x_BL = self.reader(tokens_BKPD)
        assert self.film is not None
        scale_BL, shift_BL = self.film(text_BE).chunk(2, dim=1)
        return self.out(x_BL * (1 + scale_BL) + shift_BL)[:, 0]


def stuck(head: SuccessHead, frames: LabelledFrames) -> set[str]:
    """Weights that one backward pass does not reach, or that ten steps leave as they were."""
    before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    batch = draw(frames, 32, 0.25, torch.Generator().manual_seed(0))
    head_loss(head, torch.eye(2), batch).backward()
    unreached = {n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    fit(head, partial(head_loss, head, torch.eye(2)), frames, steps=10, batch=16, weight_decay=0.0)
    unchanged = {name for name, parameter in head.named_parameters() if torch.equal(parameter, before[name])}
    return unreached | unchanged


def test_every_weight_trains(head: SuccessHead, toy_frames: LabelledFrames):
    assert stuck(head, toy_frames) == set()


def test_lerobots_bug_is_caught(toy_frames: LabelledFrames):
    torch.manual_seed(0)
    found = stuck(WithLerobotsBug(**SIZES), toy_frames)
    assert found and all(name.startswith("reader.") for name in found)


def key(tokens_KPD: torch.Tensor) -> tuple[float, ...]:
    return tuple(tokens_KPD.flatten().tolist())


def test_half_batches_ask_the_other_question(toy_frames: LabelledFrames):
    batch = draw(toy_frames, 40, 0.25, torch.Generator().manual_seed(1))
    assert batch.label_B.tolist() == [1.0] * 20 + [0.0] * 20
    every = zip(toy_frames.tokens_VNKPD[0].float(), toy_frames.text_N, toy_frames.done_N)
    done = {key(tokens): int(text) for tokens, text, was_done in every if was_done}
    asked = [(key(tokens), int(text)) for tokens, text in zip(batch.tokens_BKPD, batch.text_B)]
    assert all(done[x] == t for x, t in asked[:20]), "positives, under their own question"
    assert all(x not in done for x, _ in asked[20:35]), "frames where nothing was done"
    assert all(done[x] == 1 - t for x, t in asked[35:]), "done, but not what is asked"


@pytest.fixture(scope="module")
def trained(toy_frames: LabelledFrames) -> SuccessHead:
    torch.manual_seed(0)
    head = SuccessHead(**SIZES)
    losses = fit(head, partial(head_loss, head, torch.eye(2)), toy_frames, steps=300, batch=32, lr=3e-3)
    assert losses[0] > 0.6 and np.mean(losses[-20:]) < 0.1
    return head


def test_it_reads_the_picture_and_the_question(trained: SuccessHead, toy_frames: LabelledFrames, toy_text):
    """AUC of done frames against others under their own question, and the drop of done ones under the other."""
    tokens_NKPD = toy_frames.tokens_VNKPD[0]
    scores = np.stack([score_frames(trained, toy_text, tokens_NKPD, task) for task in toy_frames.texts])
    own_N = scores[toy_frames.text_N, np.arange(400)]
    other_N = scores[1 - toy_frames.text_N, np.arange(400)]
    done_N = toy_frames.done_N.numpy()
    assert auc(own_N, done_N) > 0.98
    assert (own_N[done_N] > 0).mean() > 0.95 and (other_N[done_N] > 0).mean() < 0.1


@pytest.fixture
def judge(trained: SuccessHead, toy_encoder: Encoder, toy_text, toy_cameras) -> FrameJudge:
    return FrameJudge(
        score=partial(score_frames, trained, toy_text),
        cameras=toy_cameras,
        encoder=toy_encoder,
        threshold=0.0,
        consecutive=2,
        every=2,
        provenance={"dataset": "toy"},
    )


def showing(toy_picture, done_at: int) -> Callable[[int], dict]:
    def images(t: int) -> dict:
        rng = np.random.default_rng(t)
        where = "upper" if t >= done_at else None
        return {"front": toy_picture(rng, where), "wrist": toy_picture(rng, None), "unused": np.zeros((2, 2, 3))}

    return images


def test_as_a_reward(judge: FrameJudge, make_episode: Callable[..., Episode], toy_picture):
    """Done from observation 6 on; looked at after steps 2, 4, 6, 8: believed at 8, which is step 7."""
    images = showing(toy_picture, done_at=6)
    reward_T = judge(make_episode(11, images=images, instruction="upper"))[TERM]
    assert reward_T.tolist() == [0.0] * 7 + [1.0] + [0.0] * 3
    assert judge(make_episode(11, images=images, instruction="lower"))[TERM].sum() == 0, "not what was asked"
    assert judge(make_episode(1, images=images, instruction="upper"))[TERM].tolist() == [0.0]


def test_other_cameras_are_refused(judge: FrameJudge, make_episode: Callable[..., Episode], toy_picture):
    def without(t: int) -> dict:
        return {"front": toy_picture(np.random.default_rng(0), None), "side": np.zeros((16, 16, 3), np.uint8)}

    def larger(t: int) -> dict:
        return {"front": np.zeros((32, 16, 3), np.uint8), "wrist": np.zeros((16, 16, 3), np.uint8)}

    with pytest.raises(SpecMismatchError, match=r"\['front', 'wrist'\], 'wrist' is missing.*\['front', 'side'\]"):
        judge(make_episode(4, images=without))
    with pytest.raises(SpecMismatchError, match="'front' was 16 x 16 px in training, is 32 x 16"):
        judge(make_episode(4, images=larger))


def test_saved_and_loaded_strictly(
    judge: FrameJudge, trained: SuccessHead, toy_encoder: Encoder, toy_text, tmp_path: Path, toy_frames: LabelledFrames
):
    save_classifier(tmp_path, judge, trained)
    again = load_classifier(folder=tmp_path, encoder=toy_encoder, text=toy_text)
    tokens_NKPD = toy_frames.tokens_VNKPD[0]
    assert np.array_equal(again.score(tokens_NKPD, "upper"), judge.score(tokens_NKPD, "upper"))
    for field in ("cameras", "threshold", "consecutive", "every", "provenance"):
        assert getattr(again, field) == getattr(judge, field)
    with pytest.raises(SpecMismatchError, match="features of 'cells', the encoder given is 'other'"):
        load_classifier(folder=tmp_path, encoder=Encoder(name="other", encode=toy_encoder.encode), text=toy_text)
    with pytest.raises(SpecMismatchError, match="trained with instructions"):
        load_classifier(folder=tmp_path, encoder=toy_encoder)
    with pytest.raises(MissingAssetError, match="no trained reward"):
        load_classifier(folder=tmp_path / "nowhere", encoder=toy_encoder, text=toy_text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"every": 2', '"evry": 2', "missing or unknown: \\['every', 'evry'\\]"),
        ('"kind": "success_classifier"', '"kind": "progress"', "a 'progress' of format 1, expected"),
        ('"latent": 16', '"latent": 8', "tensors do not fit the network"),
        ('"latent": 16', '"latnt": 16', "sizes are"),
        ('"height": 16', '"hight": 16', "cameras are"),
        ("{", "", "not JSON"),
    ],
)
def test_damage_is_named(
    judge: FrameJudge, trained: SuccessHead, toy_encoder: Encoder, toy_text, tmp_path: Path, old, new, message
):
    save_classifier(tmp_path, judge, trained)
    path = tmp_path / "reward.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CorruptFileError, match=message):
        load_classifier(folder=tmp_path, encoder=toy_encoder, text=toy_text)


def test_weights_of_another_file_are_refused(
    judge: FrameJudge, trained: SuccessHead, toy_encoder: Encoder, toy_text, tmp_path: Path
):
    save_classifier(tmp_path, judge, trained)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(CorruptFileError, match=r"not the file that reward\.json describes"):
        load_classifier(folder=tmp_path, encoder=toy_encoder, text=toy_text)


def test_a_head_of_one_task(toy_frames: LabelledFrames):
    single = SuccessHead(**{**SIZES, "text": 0})
    assert single(toy_frames.tokens_VNKPD[0, :3].float()).shape == (3,)
    with pytest.raises(SpecMismatchError, match="built without an instruction"):
        single(toy_frames.tokens_VNKPD[0, :3].float(), torch.eye(2)[:1])
    with pytest.raises(SpecMismatchError, match="trained on"):
        single(toy_frames.tokens_VNKPD[0, :3, :1].float())


def test_crops_shift_and_repeat_the_edge():
    """Every crop is the picture moved by whole pixels; all shifts occur."""
    image_1HWC = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(1, 8, 8, 3)
    padded = torch.nn.functional.pad(image_1HWC.float().permute(0, 3, 1, 2), (1, 1, 1, 1), "replicate").byte()[0]
    shifts = {(y, x): padded[:, y : y + 8, x : x + 8].permute(1, 2, 0) for y in range(3) for x in range(3)}
    crops = random_crop(image_1HWC.expand(200, -1, -1, -1), 1, torch.Generator().manual_seed(0))
    found = [[at for at, moved in shifts.items() if torch.equal(crop, moved)] for crop in crops]
    assert all(found) and {at[0] for at in found} == set(shifts)
    assert torch.equal(random_crop(image_1HWC, 0, torch.Generator()), image_1HWC)


def test_an_encoder_that_answers_nonsense():
    with pytest.raises(ValueError, match="expected \\(N, P, D\\)"):
        Encoder(name="bad", encode=lambda images: images.float()).tokens(torch.zeros(2, 4, 4, 3, dtype=torch.uint8))
    flat = Encoder(name="flat", encode=lambda images: images.float().mean((1, 2)))
    assert flat.frames(torch.zeros(5, 2, 4, 4, 3, dtype=torch.uint8)).shape == (5, 2, 1, 3)


def test_one_kind_of_frame_is_not_enough(toy_frames: LabelledFrames):
    with pytest.raises(ValueError, match="0 of 400 show the task done"):
        LabelledFrames(
            tokens_VNKPD=toy_frames.tokens_VNKPD,
            done_N=torch.zeros(400, dtype=torch.bool),
            text_N=toy_frames.text_N,
            texts=toy_frames.texts,
        )
