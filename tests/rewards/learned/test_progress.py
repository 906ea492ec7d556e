"""Progress on a toy video: a square that moves from left to right; and the shape of rewound and mismatched videos."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.learned.frames import Encoder
from rewards.learned.progress import (
    Demonstrations,
    ProgressModel,
    ProgressPotential,
    fit_progress,
    forward_prefix,
    load_progress,
    predict,
    rewound,
    save_progress,
    spread,
)
from rewards.metrics import voc
from rewards.shaping import Shaped
from rewards.success import SparseSuccess
from vla.core.errors import CorruptFileError, SpecMismatchError
from vla.core.spec import Camera
from vla.core.types import Episode

FRONT = Camera(name="front", height=16, width=16)
STEPS = 13


def image(t: int, task: str) -> np.ndarray:
    """Task "upper": a square moves along the top from left to right; "lower": along the bottom."""
    picture = np.full((16, 16, 3), 90, np.uint8)
    top = 0 if task == "upper" else 12
    picture[top : top + 4, t : t + 4] = 255
    return picture


def video(task: str, encoder: Encoder) -> torch.Tensor:
    frames = torch.from_numpy(np.stack([image(t, task) for t in range(STEPS)]))
    return encoder.frames(frames[:, None])


@pytest.fixture(scope="module")
def trained(toy_encoder: Encoder, toy_text) -> ProgressModel:
    torch.manual_seed(0)
    model = ProgressModel(cameras=1, places=16, width=6, text=2, frames=8, latent=32)
    data = Demonstrations(
        tokens=[video("upper", toy_encoder), video("lower", toy_encoder)],
        text_N=torch.tensor([0, 1]),
        texts_XE=torch.eye(2),
    )
    losses = fit_progress(model, data, steps=150, batch=16, lr=2e-3)
    assert np.mean(losses[-20:]) < 0.25 * np.mean(losses[:5])
    return model


def test_a_rewound_video_climbs_and_falls():
    """Steps of one frame up to the turn and back, whatever the draw; forward ones never fall."""
    generator = torch.Generator().manual_seed(0)
    fell = 0
    for _ in range(200):
        frames_F, progress_F = rewound(20, 41, generator)
        assert torch.equal(progress_F, frames_F / 19) and frames_F[0] == 0
        turn = int(frames_F.argmax())
        assert (frames_F.diff()[:turn] >= 0).all() and (frames_F.diff()[turn:] <= 0).all()
        fell += int(frames_F[-1] < frames_F.max())
        straight, _ = forward_prefix(20, 41, generator)
        assert (straight.diff() >= 0).all() and straight[0] == 0
    assert fell == 200, "each one runs back at least a frame"
    assert spread(3, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and spread(0, 3).tolist() == [0, 0, 0]


def test_every_weight_of_the_model_trains(trained: ProgressModel, toy_encoder: Encoder):
    tokens_1FKPD = video("upper", toy_encoder)[None, :8]
    trained.train()
    trained(tokens_1FKPD, torch.eye(2)[:1]).square().sum().backward()
    trained.eval()
    assert [n for n, p in trained.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    trained.zero_grad(set_to_none=True)


def test_progress_follows_the_task(trained: ProgressModel, toy_encoder: Encoder):
    forward = video("upper", toy_encoder)
    right, reversed_, wrong = (
        predict(trained, tokens, text)
        for tokens, text in ((forward, torch.eye(2)[0]), (forward.flip(0), torch.eye(2)[0]), (forward, torch.eye(2)[1]))
    )
    assert voc(right) > 0.95 and right[-1] > 0.7 and right[0] < 0.3
    assert voc(reversed_) < -0.5 and reversed_[-1] < right[-1] - 0.3
    assert wrong.max() < 0.4, "another task's text: no progress"


def test_the_present_does_not_see_the_future(trained: ProgressModel, toy_encoder: Encoder):
    """Causal attention, against a change of the last frame; the mutation is a forward pass without the mask."""
    tokens_1FKPD = video("upper", toy_encoder)[None, :8]
    changed = tokens_1FKPD.clone()
    changed[:, -1] += 1
    text = torch.eye(2)[:1]
    with torch.no_grad():
        before, after = trained(tokens_1FKPD, text), trained(changed, text)
    assert torch.equal(before[:, :-1], after[:, :-1]) and not torch.equal(before[:, -1], after[:, -1])


def test_used_through_shaping(
    trained: ProgressModel, toy_encoder: Encoder, toy_text, make_episode: Callable[..., Episode], tmp_path: Path
):
    """Discounted, what it adds to a finished episode is -Phi(s_0): small, so it cannot pay for hovering."""
    potential = ProgressPotential(
        model=trained, cameras=(FRONT,), encoder=toy_encoder, text=toy_text, provenance={"dataset": "toy"}
    )
    save_progress(tmp_path, potential)
    again = load_progress(folder=tmp_path, encoder=toy_encoder, text=toy_text)
    episode = make_episode(12, done_at=11, images=lambda t: {"front": image(t, "upper")}, instruction="upper")
    assert np.array_equal(again(episode), potential(episode)) and again(episode).shape == (13,)
    terms = Shaped(reward=SparseSuccess(), potential=again, gamma=0.95)(episode)
    total = (terms["shaping"] * 0.95 ** np.arange(12)).sum()
    assert total == pytest.approx(-potential(episode)[0], abs=1e-5)
    assert terms["shaping"][:11].sum() > 0.2, "on the way it leads"
    with pytest.raises(SpecMismatchError, match="'front' is missing"):
        again(make_episode(3))


def test_damage_is_named(trained: ProgressModel, toy_encoder: Encoder, toy_text, tmp_path: Path):
    save_progress(
        tmp_path,
        ProgressPotential(model=trained, cameras=(FRONT,), encoder=toy_encoder, text=toy_text, provenance={}),
    )
    path = tmp_path / "reward.json"
    path.write_text(path.read_text().replace('"layers": 2', '"layers": 1'))
    with pytest.raises(CorruptFileError, match="tensors do not fit"):
        load_progress(folder=tmp_path, encoder=toy_encoder, text=toy_text)
    with pytest.raises(SpecMismatchError, match="features of 'cells'"):
        load_progress(folder=tmp_path, encoder=Encoder(name="x", encode=toy_encoder.encode), text=toy_text)
