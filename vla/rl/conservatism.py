"""Keeping values low where there are no data, but not lower than what the demonstrator is known to reach.

Cal-QL (Nakamoto et al. 2023): a critic's values of the policy's chunks are pushed down against those of the data's, and
a value that is already below the Monte-Carlo return of the data is not pushed further.

Chunks drawn evenly from the cube of h * A > 20 dimensions are so far from any data that holding them down costs nothing
and regularises nothing. There the outsiders are the data's own chunks under noise that is smooth in time; being near
what works, they get the floor of the return too, which even chunks do not.
"""

import math

import torch
from torch import Tensor

from agents.objectives.reduce import masked_mean
from vla.rl.actors.trunk import as_played

EVEN_UP_TO = 20  # dimensions of a chunk


def even_chunks(like_BHA: Tensor, count: int, generator: torch.Generator, binary_A: Tensor) -> Tensor:
    """(M, B, H, A) uniform on [-1, 1], binary axes -1 or +1."""
    shape = (count, *like_BHA.shape)
    chunks = torch.rand(shape, generator=generator, device=generator.device).to(like_BHA.device) * 2 - 1
    return as_played(chunks, binary_A)


def perturbed_chunks(
    actions_BHA: Tensor, count: int, generator: torch.Generator, binary_A: Tensor, deviation: float = 0.3
) -> Tensor:
    """(M, B, H, A): the chunks plus smooth noise of the given standard deviation; binary axes are left alone.

    The noise is three cosines over the chunk (level, slope, bend) with normal coefficients.
    """
    horizon = actions_BHA.shape[1]
    waves = min(3, horizon)
    phase_H = (torch.arange(horizon) + 0.5) * math.pi / horizon
    basis_HK = torch.cos(phase_H[:, None] * torch.arange(waves))
    basis_HK = basis_HK / basis_HK.square().sum(1, keepdim=True).sqrt()
    shape = (count, len(actions_BHA), waves, actions_BHA.shape[2])
    coefficients_MBKA = torch.randn(shape, generator=generator, device=generator.device)
    noise_MBHA = torch.einsum("hk,mbka->mbha", basis_HK.to(coefficients_MBKA.device), coefficients_MBKA)
    moved_MBHA = actions_BHA + deviation * noise_MBHA.to(actions_BHA.device)
    return as_played(torch.where(binary_A, actions_BHA, moved_MBHA), binary_A)


def floored(values_EMBP: Tensor, return_mc_B: Tensor) -> Tensor:
    """Values not below the Monte-Carlo return; as they are where it is not known."""
    floor_B = torch.where(return_mc_B.isnan(), -math.inf, return_mc_B)
    return torch.maximum(values_EMBP, floor_B[:, None])


def conservative_gap(values_EMBP: Tensor, data_EBP: Tensor, usable_BP: Tensor) -> Tensor:
    """Mean over critics, chunks and usable prefixes of (other chunks' value - data's value): CO-RFT, equation 8."""
    gap_EBP = values_EMBP.mean(1) - data_EBP
    return masked_mean(gap_EBP, usable_BP.expand_as(gap_EBP))


def conservative_logsumexp(values_EMBP: Tensor, log_density_MB: Tensor, data_EBP: Tensor, usable_BP: Tensor) -> Tensor:
    """Cal-QL's and CQL's: log of the sum over M of exp(value) / density, minus the data's value; temperature 1.

    Args:
        values_EMBP: of the other chunks, floored where they are to be.
        log_density_MB: log-density with which each was drawn; zeros leave the values unweighted.
        data_EBP: values of the data's chunks.
        usable_BP: prefixes that count.
    """
    peaks_EBP = torch.logsumexp(values_EMBP - log_density_MB[..., None], dim=1)
    gap_EBP = peaks_EBP - data_EBP
    return masked_mean(gap_EBP, usable_BP.expand_as(gap_EBP))
