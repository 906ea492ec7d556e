"""Token head: each action axis is cut into 256 bins and the network chooses one, as OpenVLA does.

Bins are numbered as published: 256 edges from -1 to 1 give bins 1 to 256, of which the last (the value 1 alone) shares
the centre of the one before it; a bin's token is `first_id` + 256 - bin, so tokens run from the highest value to the
lowest. With `vocabulary=32064, first_id=31744, slots_per_action=A` the matrix `bins` is the language model's `lm_head`
and the tokens are the published 31744 to 31999; by default it has rows for the 256 tokens alone.

Sources: Kim et al. 2024 (OpenVLA), section 3.2; Kim et al. 2025 (OpenVLA-OFT), its discrete variant, whose tokens are
chosen all at once; Li et al. 2025 (SimpleVLA-RL) for the restriction to 256 tokens and a temperature (1.6 there).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from agents.objectives.tokens import token_cross_entropy
from vla.policies.heads.resnet import code_binary, snap_binary
from vla.policies.interfaces import Features

BINS = 256
EDGES = np.linspace(-1, 1, BINS)


class TokensHead(nn.Module):
    """Features (B, H, D) to one token for each axis of each action."""

    denoises = False
    binary_A: Tensor

    def __init__(
        self,
        *,
        width: int,
        binary: Sequence[bool],
        slots_per_action: int = 1,
        vocabulary: int = BINS,
        first_id: int = 0,
        restrict: bool = False,
        temperature: float = 0.0,
        binary_codes: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        """Builds the head.

        Args:
            width: D, the width of the backbone's features of one action.
            binary: for each action axis, whether it is binary.
            slots_per_action: 1: all axes are read off one vector, each by its own rows; A: the features are A vectors
                side by side, one an axis, read by the same rows.
            vocabulary: tokens to choose from.
            first_id: the lowest of the 256 tokens that mean a bin.
            restrict: choose among those 256 alone, in training too; else a token outside them counts as the nearer end.
            temperature: of sampling; 0 takes the likeliest token.
            binary_codes: what the network says for -1 and +1 of binary axes; (1, 0) in OpenVLA's weights, which open
                a gripper at 1 and close it at 0.
        """
        super().__init__()
        action_dim = len(binary)
        if slots_per_action not in (1, action_dim) or width % slots_per_action:
            raise ValueError(
                f"slots_per_action is {slots_per_action}, expected 1 or {action_dim}, a divisor of {width}"
            )
        if not 0 <= first_id <= vocabulary - BINS:
            raise ValueError(f"first_id is {first_id}, expected 0 to vocabulary - {BINS} = {vocabulary - BINS}")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}, expected at least 0")
        self.slots_per_action, self.vocabulary, self.temperature = slots_per_action, vocabulary, temperature
        self.binary_codes = binary_codes
        self.choices = slice(first_id, first_id + BINS) if restrict else slice(0, vocabulary)
        self.first_id = first_id - self.choices.start  # among the choices
        self.bins = nn.Linear(width // slots_per_action, action_dim // slots_per_action * vocabulary, bias=False)
        self.register_buffer("binary_A", torch.tensor(list(binary)), persistent=False)

    def forward(self, features_BHD: Tensor) -> Tensor:
        """Logits (B, H, A, V), float32, of the tokens that may be chosen: `vocabulary`, or 256 if restricted."""
        slots_BHMD = features_BHD.unflatten(-1, (self.slots_per_action, -1))
        logits_BHAV = self.bins(slots_BHMD).unflatten(-1, (-1, self.vocabulary)).flatten(-3, -2)
        return logits_BHAV[..., self.choices].float()

    def loss_BH(self, features: Features, actions_BHA: Tensor) -> Tensor:
        """The cross entropy (B, H) [nat] of each action's tokens, mean over its axes."""
        coded_BHA = code_binary(actions_BHA, self.binary_A, self.binary_codes)
        losses_BHA = token_cross_entropy(self(features()), to_ids(coded_BHA, self.first_id))
        # Every bin has a token, even that of NaN: a damaged target must show in the loss, as it does with other heads.
        return torch.where(actions_BHA.isnan(), actions_BHA, losses_BHA).mean(-1)

    def sample(self, features: Features, generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised actions (B, H, A), float32, at centres of bins; binary axes by the nearer of their values.

        At a temperature, row i draws one uniform number per axis from generator i.
        """
        logits_BHAV = self(features())
        if self.temperature == 0:
            ids_BHA = logits_BHAV.argmax(-1)
        else:
            ids_BHA = draw_by_row((logits_BHAV / self.temperature).softmax(-1), generators)
        actions_BHA = from_ids(ids_BHA, self.first_id).float()
        actions_BHA = actions_BHA.where(logits_BHAV.isfinite().all(-1), torch.nan)  # no token speaks for a NaN
        return snap_binary(actions_BHA, self.binary_A, self.binary_codes)


def to_ids(actions: Tensor, first_id: int) -> Tensor:
    """The tokens of normalised actions, same shape; beyond [-1, 1] those of the ends."""
    edges = torch.as_tensor(EDGES, device=actions.device)
    return first_id + BINS - torch.bucketize(actions.double().clamp(-1, 1), edges, right=True)


def from_ids(ids: Tensor, first_id: int) -> Tensor:
    """The centres of the tokens' bins, float64, same shape; of other tokens the nearer end."""
    centres = torch.as_tensor((EDGES[:-1] + EDGES[1:]) / 2, device=ids.device)
    return centres[(first_id + BINS - 1 - ids).clamp(0, BINS - 2)]


def draw_by_row(probabilities_BHAV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One index (B, H, A) each, by inverting the distribution function at a uniform number from the row's generator."""
    shape = probabilities_BHAV.shape[1:-1]
    rows = [torch.rand(shape, dtype=torch.float64, generator=each, device=each.device) for each in generators]
    uniform_BHA1 = torch.stack(rows).to(probabilities_BHAV.device)[..., None]
    below_BHAV = probabilities_BHAV.double().cumsum(-1)
    # Relative to the last entry, which rounding leaves beside 1.
    return (below_BHAV <= uniform_BHA1 * below_BHAV[..., -1:]).sum(-1)
