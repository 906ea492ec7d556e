"""Shaping must not change what is best: shown exactly on small MDPs, where wrong variants do change it."""

from collections.abc import Callable

import numpy as np
import pytest

from rewards.shaping import Shaped, shaping, terminal_state
from rewards.success import SparseSuccess
from vla.core.types import Episode

type Make = Callable[..., Episode]
GAMMA = 0.9


def optimum(next_SA: np.ndarray, reward_SA: np.ndarray, terminal_S: np.ndarray, gamma: float) -> np.ndarray:
    """Q* (S, A) of a deterministic MDP by value iteration; nothing follows a terminal state."""
    q_SA = np.zeros_like(reward_SA)
    for _ in range(400):
        value_S = np.where(terminal_S, 0, q_SA.max(1))
        q_SA = reward_SA + gamma * value_S[next_SA]
    return q_SA


def random_mdp(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Eight states, three actions, two terminal states, and a potential that is not zero anywhere."""
    next_SA = rng.integers(0, 8, (8, 3))
    terminal_S = np.arange(8) >= 6
    return next_SA, rng.normal(size=(8, 3)), terminal_S, rng.normal(size=8) * 5


def added(phi_S: np.ndarray, next_SA: np.ndarray, terminal_S: np.ndarray, gamma: float) -> np.ndarray:
    """What `shaping` adds to every transition, each as an episode of one step."""
    added_SA = np.zeros(next_SA.shape)
    for (s, a), n in np.ndenumerate(next_SA):
        end = 1 if terminal_S[n] else None
        added_SA[s, a] = shaping(phi_S[[s, n]].astype(np.float32), gamma=gamma, end=end)[0]
    return added_SA


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_kept(seed: int):
    """Q' = Q - Phi(s) exactly, so every comparison of actions stays."""
    next_SA, reward_SA, terminal_S, phi_S = random_mdp(np.random.default_rng(seed))
    plain = optimum(next_SA, reward_SA, terminal_S, GAMMA)
    shaped = optimum(next_SA, reward_SA + added(phi_S, next_SA, terminal_S, GAMMA), terminal_S, GAMMA)
    live = ~terminal_S
    np.testing.assert_allclose(shaped[live], (plain - phi_S[:, None])[live], atol=1e-4)
    assert (shaped[live].argmax(1) == plain[live].argmax(1)).all()


@pytest.mark.parametrize("bug", ["terminal states keep their potential", "another discount", "potential as reward"])
def test_wrong_variants_change_the_optimum(bug: str):
    changed = 0
    for seed in range(20):
        next_SA, reward_SA, terminal_S, phi_S = random_mdp(np.random.default_rng(seed))
        if bug == "terminal states keep their potential":
            extra_SA = added(phi_S, next_SA, np.zeros(8, bool), GAMMA)
        elif bug == "another discount":
            extra_SA = added(phi_S, next_SA, terminal_S, 1.0)
        else:
            extra_SA = phi_S[next_SA]
        live = ~terminal_S
        plain = optimum(next_SA, reward_SA, terminal_S, GAMMA)
        wrong = optimum(next_SA, reward_SA + extra_SA, terminal_S, GAMMA)
        changed += bool((plain[live].argmax(1) != wrong[live].argmax(1)).any())
    assert changed >= 5, "the bug should show"


def test_it_telescopes():
    """Discounted, the added terms are g^T Phi(s_T) - Phi(s_0), or -Phi(s_0) if s_T is terminal."""
    phi_T1 = np.random.default_rng(0).normal(size=9).astype(np.float32)
    discount_T = GAMMA ** np.arange(8)
    cut_off = shaping(phi_T1, gamma=GAMMA, end=None)
    assert (cut_off * discount_T).sum() == pytest.approx(GAMMA**8 * phi_T1[-1] - phi_T1[0], abs=1e-5)
    ended = shaping(phi_T1, gamma=GAMMA, end=8)
    assert (ended * discount_T).sum() == pytest.approx(-phi_T1[0], abs=1e-5)


def test_steps_after_success_add_nothing(make_episode: Make):
    """An episode that goes on after its success ended there: Phi is 0 from the done state on."""
    episode = make_episode(6, done_at=3)
    assert terminal_state(episode) == 4 and terminal_state(make_episode(6)) is None
    assert terminal_state(make_episode(6, done_at=3, terminated=False)) is None, "a time limit is no terminal state"
    terms = Shaped(reward=SparseSuccess(), potential=lambda e: np.arange(7, dtype=np.float32), gamma=1.0)(episode)
    assert terms["shaping"].tolist() == [1, 1, 1, -3, 0, 0]
    assert terms["success"].tolist() == [0, 0, 0, 1, 0, 0]


def test_potentials_that_are_none(make_episode: Make):
    for wrong in (np.zeros(6, np.float32), np.full(7, np.nan, np.float32)):
        with pytest.raises(ValueError, match="expected 7 finite numbers"):
            Shaped(reward=SparseSuccess(), potential=lambda e, wrong=wrong: wrong, gamma=0.9)(make_episode(6))
