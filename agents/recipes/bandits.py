"""Decisions without a language model: preference data on a line of bins (78), and actors that do not wait (103)."""

import torch
from torch import Tensor

from agents.advantages import duration_weights
from agents.train.effect import Effect


def suboptimal_data(
    *, seed: int, steps: int, batch: int, bins: int, centre: float, width: float, temperature: float, lr: float
) -> Effect:
    """Where the reward's peak is far from the reference policy: samples of one's own against a fixed set of samples.

    Both arms see `steps * batch` rewards. Off-policy: one set from the reference, and weighted likelihood
    (exp(reward / temperature)). On-policy: REINFORCE against the batch's mean, which pushes bad samples down.

    Args:
        seed: of the samples.
        steps: optimiser steps.
        batch: samples a step.
        bins: actions, laid over [0, 1].
        centre: of the reward exp(-((a - centre) / width)^2); the reference is a normal around 0.3.
        width: of the reward.
        temperature: of the weights.
        lr: learning rate of Adam.
    """
    place_A = torch.linspace(0, 1, bins)
    reward_A = (-((place_A - centre) / width).square()).exp()
    start_A = -0.5 * ((place_A - 0.3) / 0.15).square()
    scores = {"reference": float((start_A.softmax(0) * reward_A).sum())}
    for arm, own in (("off-policy weighted likelihood", False), ("on-policy gradient", True)):
        logits_A = start_A.clone().requires_grad_(True)
        optimizer, generator = torch.optim.Adam([logits_A], lr=lr), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            law_A = (logits_A if own else start_A).detach().softmax(0)
            drawn_B = torch.multinomial(law_A, batch, replacement=True, generator=generator)
            reward_B = reward_A[drawn_B]
            weight_B = reward_B - reward_B.mean() if own else (reward_B / temperature).exp()
            if not own:
                weight_B = weight_B / weight_B.mean()
            optimizer.zero_grad()
            (-(weight_B * logits_A.log_softmax(0)[drawn_B]).mean()).backward()
            optimizer.step()
        scores[arm] = float((logits_A.detach().softmax(0) * reward_A).sum())
    return Effect(
        scores=scores,
        baseline="off-policy weighted likelihood",
        method="on-policy gradient",
        measure="expected reward, peak 1",
        budget=f"{steps} steps of {batch} rewards, {bins} bins",
    )


def slow_actions(
    *, seed: int, steps: int, actors: int, durations: tuple[float, float], rewards: tuple[float, float], lr: float
) -> Effect:
    """Two actions, quick and poor or slow and good, by actors that do not wait for each other.

    Between two updates each action finishes in proportion to probability / duration, so the learner sees many more
    quick ones; the weight by duration undoes it.

    Args:
        seed: of the actors.
        steps: updates.
        actors: finished actions in an update.
        durations: [s] of the quick and the slow action.
        rewards: of the quick and the slow action, before noise of standard deviation 0.1.
        lr: learning rate of Adam.
    """
    duration_A, reward_A = torch.tensor(tuple(durations)), torch.tensor(tuple(rewards))
    scores: dict[str, float] = {}
    for arm, weighed in (("unweighted", False), ("duration-weighted", True)):
        logits_A = torch.zeros(2, requires_grad=True)
        optimizer, generator = torch.optim.Adam([logits_A], lr=lr), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            drawn_B = finished(logits_A.detach(), duration_A, actors, generator)
            reward_B = reward_A[drawn_B] + 0.1 * torch.randn(actors, generator=generator)
            weight_B = duration_weights(duration_A[drawn_B]) if weighed else torch.ones(actors)
            optimizer.zero_grad()
            (-(weight_B * reward_B * logits_A.log_softmax(0)[drawn_B]).mean()).backward()
            optimizer.step()
        scores[arm] = float((logits_A.detach().softmax(0) * reward_A).sum())
    return Effect(
        scores=scores,
        baseline="unweighted",
        method="duration-weighted",
        measure="expected reward of the final policy",
        budget=f"{steps} updates of {actors} finished actions, {tuple(durations)} s, rewards {tuple(rewards)}",
    )


def finished(logits_A: Tensor, duration_A: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) actions as they finish: in the long run each by probability over duration."""
    return torch.multinomial(logits_A.softmax(0) / duration_A, count, replacement=True, generator=generator)
