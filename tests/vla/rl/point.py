"""A point on a line that must be brought to the middle: demonstrated at many speeds, and the fastest is best.

x in [-1, 1], an action moves it by a tenth of its first number; within 0.05 of zero the task ends with reward 1. The
second number is a gripper's, which matters to nothing and is demonstrated as the side of the point. Discount 0.9. Each
chunk keeps one speed, drawn apart from where it starts, so cloning learns the median and the best is speed 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vla.rl.interfaces import ChunkBatch
from vla.rl.problem import Problem

DISCOUNT, HORIZON, REACHED, STRIDE = 0.9, 3, 0.05, 0.1
SLOWEST, FASTEST = 0.2, 1.0
PROBLEM = Problem(features=2, horizon=HORIZON, binary=(False, True), discount=DISCOUNT, low=0.0, high=1.0)


def features_of(x: Tensor) -> Tensor:
    return torch.stack([x, x.sign()], dim=-1)


def demonstrations(count: int, seed: int) -> ChunkBatch:
    """Chunks from everywhere, each at its own speed; returns are those of going on like that."""
    generator = torch.Generator().manual_seed(seed)
    side_B = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    distance_B = 0.06 + 0.94 * torch.rand(count, generator=generator)
    speed_B = SLOWEST + (FASTEST - SLOWEST) * torch.rand(count, generator=generator)
    needed_B = ((distance_B - REACHED) / (STRIDE * speed_B)).ceil().clamp(min=1)
    steps_G = torch.arange(HORIZON + 1)
    walked_BG = torch.minimum(steps_G, needed_B[:, None]) * STRIDE * speed_B[:, None]
    x_BG = side_B[:, None] * (distance_B[:, None] - walked_BG)
    valid_BH = steps_G[1:] <= needed_B[:, None]
    moves_BH = (-side_B * speed_B)[:, None].expand(-1, HORIZON)
    features_BGD = torch.stack([x_BG, side_B[:, None].expand_as(x_BG)], dim=-1)
    return ChunkBatch(
        features_BGD=features_BGD,
        actions_BHA=torch.stack([moves_BH, side_B[:, None].expand_as(moves_BH)], dim=-1),
        valid_BH=valid_BH,
        rows_BH=torch.ones_like(valid_BH),
        rewards_BH=(steps_G[1:] == needed_B[:, None]).float(),
        terminated_B=needed_B <= HORIZON,
        known_B=torch.ones(count, dtype=torch.bool),
        return_mc_B=DISCOUNT ** (needed_B - 1),
        success_B=torch.ones(count, dtype=torch.bool),
        demo_B=torch.zeros(count, dtype=torch.bool),
        task_B=torch.zeros(count, dtype=torch.int64),
    )


@torch.no_grad()
def experience(choose: Callable[[Tensor], Tensor], count: int, seed: int) -> ChunkBatch:
    """Chunks (B, H, 2) that `choose` answers to places (B,), played from everywhere; the returns are not known."""
    generator = torch.Generator().manual_seed(seed)
    x_B = torch.rand(count, generator=generator) * 2 - 1
    x_B = x_B.sign() * x_B.abs().clamp(min=REACHED + 0.01)
    chunks_BHA, xs, alive_B = choose(features_of(x_B)), [x_B], torch.ones(count, dtype=torch.bool)
    valid, rewards = [], []
    for moves_B in chunks_BHA[..., 0].unbind(1):
        valid.append(alive_B)
        x_B = torch.where(alive_B, (x_B + STRIDE * moves_B.clamp(-1, 1)).clamp(-1, 1), x_B)
        rewards.append((alive_B & (x_B.abs() <= REACHED)).float())
        alive_B = alive_B & (x_B.abs() > REACHED)
        xs.append(x_B)
    return ChunkBatch(
        features_BGD=features_of(torch.stack(xs, dim=1)),
        actions_BHA=chunks_BHA,
        valid_BH=torch.stack(valid, dim=1),
        rows_BH=torch.ones(count, HORIZON, dtype=torch.bool),
        rewards_BH=torch.stack(rewards, dim=1),
        terminated_B=~alive_B,
        known_B=torch.ones(count, dtype=torch.bool),
        return_mc_B=torch.full((count,), torch.nan),
        success_B=~alive_B,
        demo_B=torch.zeros(count, dtype=torch.bool),
        task_B=torch.zeros(count, dtype=torch.int64),
    )


@torch.no_grad()
def mean_steps(algorithm, cap: int = 60) -> float:
    """Steps to the middle from 40 places, chunks played to their end; the cap where it is not reached."""
    x_B = torch.linspace(-1, 1, 40)
    steps_B, reached_B = torch.zeros(40), torch.zeros(40, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(cap // HORIZON):
        chunks_BHA = algorithm.choose(features_of(x_B), generator)
        for moves_B in chunks_BHA[..., 0].unbind(1):
            x_B = x_B + STRIDE * moves_B.clamp(-1, 1)
            steps_B += ~reached_B
            reached_B |= x_B.abs() <= REACHED
    return float(torch.where(reached_B, steps_B, float(cap)).mean())
