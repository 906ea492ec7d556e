"""From a batch and a way to value the states that follow to a critic's loss.

Letters as in interfaces.py; P the prefixes that a critic values (all H of them, or the longest alone).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agents.objectives.reduce import masked_mean
from vla.rl.critics import EnsembleCritic
from vla.rl.interfaces import ChunkBatch
from vla.rl.problem import Problem
from vla.rl.targets import PrefixBootstrap, attainable, batch_targets


def prefix_values(critic: EnsembleCritic, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
    """Values (E, B, P)."""
    return critic.value(critic(features_BD, actions_BHA))[:, :, critic.columns]


def chunk_values(critic: EnsembleCritic, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
    """Values (E, B) of whole chunks."""
    return prefix_values(critic, features_BD, actions_BHA)[:, :, -1]


def candidate_values(critic: EnsembleCritic, features_BD: Tensor, chunks_MBHA: Tensor) -> Tensor:
    """Values (E, M, B, P) of several chunks for each row."""
    count = len(chunks_MBHA)
    values = prefix_values(critic, features_BD.repeat(count, 1), chunks_MBHA.flatten(0, 1))
    return values.unflatten(1, (count, -1))


def states_after(batch: ChunkBatch) -> Tensor:
    """(B, H, D): the observation after i steps; past the last step taken, the one after it."""
    horizon = batch.valid_BH.shape[1]
    steps_H = torch.arange(1, horizon + 1, device=batch.valid_BH.device)
    after_BH = torch.minimum(steps_H, batch.length_B[:, None])
    return batch.features_BGD.gather(1, after_BH[..., None].expand(-1, -1, batch.features_BGD.shape[-1]))


def td_loss(
    critic: EnsembleCritic,
    batch: ChunkBatch,
    value_of: Callable[[Tensor], Tensor],
    problem: Problem,
    prefix_bootstrap: PrefixBootstrap = "own",
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """The critic's loss against targets that bootstrap from `value_of`.

    Args:
        critic: that learns.
        batch: chunks.
        value_of: features (N, D) to the values (N,) of these states; called once, without gradient. Where the critic
            values whole chunks alone, N is B, else B * H.
        problem: discount and attainable returns.
        prefix_bootstrap: see targets.batch_targets.

    Returns:
        loss, the values (E, B, P) of the data's chunks with gradient, the prefixes (B, P) learnt from, metrics.
    """
    columns = critic.columns
    with torch.no_grad():
        states_BPD = states_after(batch)[:, columns]
        following_BH = torch.zeros_like(batch.rewards_BH)
        following_BH[:, columns] = value_of(states_BPD.flatten(0, 1)).view(states_BPD.shape[:2])
        targets_BH, usable_BH = batch_targets(batch, following_BH, problem.discount, prefix_bootstrap=prefix_bootstrap)
        seen_BH = torch.zeros_like(usable_BH)
        seen_BH[:, columns] = usable_BH[:, columns]
        targets_BH, clipped = attainable(targets_BH, seen_BH, low=problem.low, high=problem.high)
    outputs = critic(batch.features_BGD[:, 0], batch.actions_BHA)
    loss = critic.loss(outputs, targets_BH, seen_BH)
    values_EBP, usable_BP = critic.value(outputs)[:, :, columns], usable_BH[:, columns]
    metrics = {
        "critic_loss": loss.detach(),
        "q_data": masked_mean(values_EBP.detach().mean(0), usable_BP),
        "target_mean": masked_mean(targets_BH, seen_BH),
        "target_max": targets_BH.masked_fill(~seen_BH, problem.low).max(),
        "clipped_share": clipped / seen_BH.sum().clamp(min=1),
    }
    return loss, values_EBP, usable_BP, metrics


def taken_values(values_EBP: Tensor, usable_BP: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
    """Values (E, B) of the steps really taken, and where they were learnt (B,).

    Of a prefix critic that is prefix `length`, free of padding; a flat critic has only its whole chunk to offer.
    """
    last_B = length_B.clamp(min=1, max=usable_BP.shape[1]) - 1
    index_EB1 = last_B[None, :, None].expand(len(values_EBP), -1, 1)
    return values_EBP.gather(2, index_EB1).squeeze(2), usable_BP.gather(1, last_B[:, None]).squeeze(1)


def pessimistic(values_EN: Tensor, subset: int | None, generator: torch.Generator) -> Tensor:
    """The minimum (N,...) over critics, or over `subset` of them drawn anew (Chen et al. 2021, REDQ)."""
    if subset is None:
        return values_EN.amin(0)
    chosen = torch.randperm(len(values_EN), generator=generator)[:subset]
    return values_EN[chosen.to(values_EN.device)].amin(0)
