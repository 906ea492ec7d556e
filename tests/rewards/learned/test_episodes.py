"""Which frame carries which label, and who may be trained on what."""

import numpy as np
import pytest
import torch

from rewards.learned.episodes import (
    SeenEpisode,
    Views,
    choose_frames,
    demonstrations,
    done_frames,
    labelled,
    split_by_start,
)


def seen(task: str, start: int, done_at: int | None, steps: int = 10) -> SeenEpisode:
    done_T = np.zeros(steps, bool)
    if done_at is not None:
        done_T[done_at:] = True
    return SeenEpisode(
        tokens_TKPD=torch.arange(steps).view(steps, 1, 1, 1).half(), done_T=done_T, frame_T=np.arange(steps),
        instruction=f"do {task}", task=task, init_state=start, way="clean",
    )  # fmt: skip


def test_a_frame_shows_what_the_steps_before_it_did():
    """Done after step 2: frame 3 is the first to show it. The mutation, the label of its own step, is one early."""
    success_T = np.array([0, 0, 1, 1], np.float32)
    assert done_frames(success_T, success=True, steps=4).tolist() == [False, False, False, True]
    assert (success_T > 0.5).tolist() != done_frames(success_T, success=True, steps=4).tolist()
    assert done_frames(None, success=True, steps=3).tolist() == [False, False, True]
    assert not done_frames(None, success=False, steps=3).any()


def test_chosen_frames_are_the_telling_ones():
    rng = np.random.default_rng(0)
    done_T = np.arange(60) >= 40
    for _ in range(10):
        rows = choose_frames(done_T, 18, rng, before=5)
        assert len(rows) == len(set(rows)) == 18 and set(range(35, 40)) <= set(rows) and done_T[rows].sum() == 6
    failed = choose_frames(np.zeros(60, bool), 18, rng, before=5)
    assert set(range(55, 60)) <= set(failed) and len(failed) == 18
    assert choose_frames(np.zeros(3, bool), 18, rng).tolist() == [0, 1, 2]


def test_episodes_that_start_alike_stay_together():
    episodes = [seen(task, start, None) for task in ("a", "b") for start in range(10) for _ in range(2)]
    for seed in range(5):
        inside, outside = split_by_start(episodes, 0.3, seed)
        starts = [{(each.task, each.init_state) for each in side} for side in (inside, outside)]
        assert not starts[0] & starts[1] and len(starts[1]) == 6 and len(inside) + len(outside) == 40
    assert {id(x) for x in split_by_start(episodes, 0.3, 0)[1]} != {id(x) for x in split_by_start(episodes, 0.3, 1)[1]}


def test_frames_of_all_episodes_together():
    rows = np.array([1, 8])
    pairs = [
        (each, Views(rows=rows, tokens_VNKPD=each.tokens_TKPD[rows][None]))
        for each in (seen("b", 0, 5), seen("a", 1, None))
    ]
    frames = labelled(pairs)
    assert frames.texts == ("do a", "do b") and frames.text_N.tolist() == [1, 1, 0, 0]
    assert frames.done_N.tolist() == [False, True, False, False]
    assert frames.tokens_VNKPD[0, :, 0, 0, 0].tolist() == [1, 8, 1, 8]


def test_demonstrations_end_when_done():
    data = demonstrations(
        [seen("a", 0, 4), seen("a", 1, None), seen("b", 2, 9)], lambda text: torch.ones(3) * len(text)
    )
    assert [len(tokens) for tokens in data.tokens] == [5, 10] and data.text_N.tolist() == [0, 1]
    assert data.texts_XE.shape == (2, 3)


def test_judged_by_a_score():
    one = seen("a", 0, 4).judged(lambda tokens, text: tokens[:, 0, 0, 0].numpy() + len(text))
    assert one.scores_T[0] == pytest.approx(4) and one.success
