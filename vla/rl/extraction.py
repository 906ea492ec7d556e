"""From values to a policy: imitation with weights, the critic's gradient, the best of several.

Padded actions are written as zero before an actor sees them and weigh nothing in the loss, so they change neither its
value nor its gradient, even of actors that read the whole noisy chunk at once.
"""

import torch
from torch import Tensor

from agents.objectives.reduce import masked_mean
from vla.rl.actors.trunk import as_played
from vla.rl.backup import candidate_values, prefix_values
from vla.rl.critics import EnsembleCritic
from vla.rl.interfaces import Actor, ChunkBatch
from vla.rl.presets import AnyActor


def imitation(
    actor: Actor, batch: ChunkBatch, *, features_BD: Tensor | None = None, weights_B: Tensor | None = None
) -> Tensor:
    """The actor's imitation loss, mean over valid actions, each row times its weight.

    Args:
        actor: that learns.
        batch: chunks.
        features_BD: what the actor sees; the batch's first observation by default.
        weights_B: not normalised: rows of weight zero count as valid actions of loss zero.
    """
    features_BD = batch.features_BGD[:, 0] if features_BD is None else features_BD
    known_BHA = batch.actions_BHA.masked_fill(~batch.valid_BH[..., None], 0.0)
    losses_BH = actor.loss_BH(features_BD, known_BHA)
    if weights_B is None:
        return masked_mean(losses_BH, batch.valid_BH)
    return masked_mean(losses_BH, batch.valid_BH * weights_B[:, None], total=batch.valid_BH.sum())


def exponential_weights(advantages_B: Tensor, *, inverse_temperature: float, cap: float) -> Tensor:
    """min(exp(inverse_temperature * advantage), cap): the closed form of a policy held near the data by a KL term."""
    return (advantages_B * inverse_temperature).exp().clamp(max=cap)


def policy_value(critic: EnsembleCritic, features_BD: Tensor, chunks_BHA: Tensor) -> tuple[Tensor, Tensor]:
    """(to maximise, plain mean): the mean value of all prefixes and critics, and the same over its own mean magnitude.

    Dividing by mean |Q| (Fujimoto and Gu 2021, TD3+BC) makes one imitation weight fit every scale of reward.
    """
    values_EBP = prefix_values(critic, features_BD, chunks_BHA)
    scale = values_EBP.detach().abs().mean().clamp(min=1e-6)
    return values_EBP.mean() / scale, values_EBP.detach().mean()


def best_of(
    critic: EnsembleCritic, features_BD: Tensor, chunks_MBHA: Tensor, *, caution: float
) -> tuple[Tensor, Tensor]:
    """The chunk (B, H, A) of highest lower bound, mean - caution * deviation over critics; and its index (B,).

    The bound is of whole chunks. Without caution the choice falls on whatever the critics are most wrong about.
    """
    values_EMB = candidate_values(critic, features_BD, chunks_MBHA)[..., -1]
    deviation_MB = values_EMB.std(0) if len(values_EMB) > 1 else torch.zeros_like(values_EMB[0])
    best_B = (values_EMB.mean(0) - caution * deviation_MB).argmax(0)
    return chunks_MBHA[best_B, torch.arange(len(best_B), device=best_B.device)], best_B


def play(actor: AnyActor, features_BD: Tensor, generator: torch.Generator) -> Tensor:
    """The chunk (B, H, A) that the actor plays: its mean, or a draw where the mean is no likely chunk."""
    if actor.plays_draws:
        return actor.sample(features_BD, 1, generator)[0]
    return as_played(actor.mean(features_BD), actor.binary_A)
