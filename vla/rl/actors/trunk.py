"""What actors share: the network, binary axes, and draws that belong to their row.

Continuous axes leave an actor through tanh, so policy gradients pass everywhere; where an actor adds to a base chunk
they are clipped with a straight-through gradient. A binary axis leaves the network as a logit. Imitation fits it by
cross entropy; a policy gradient sees tanh(logit / 2), which is the mean of the law on -1 and +1 that cross entropy
fits; what is played is its sign. A critic is thus asked, in that gradient alone, about gripper commands between the
two that it has seen.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from agents.objectives.regression import absolute_error, binary_cross_entropy
from vla.policies.heads.resnet import snap_binary
from vla.rl.problem import ACTION_LIMIT


def mlp(inputs: int, outputs: int, *, width: int, layers: int) -> nn.Sequential:
    """`layers` of linear, LayerNorm, GELU, then a linear one: the norm keeps values finite off the data."""
    sizes = [inputs] + [width] * layers
    hidden = [nn.Sequential(nn.Linear(i, o), nn.LayerNorm(o), nn.GELU()) for i, o in pairwise(sizes)]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


class ChunkNetwork(nn.Module):
    """A vector to `per_axis` numbers for each axis of each action of a chunk."""

    binary_A: Tensor
    weight_A: Tensor

    def __init__(
        self,
        *,
        inputs: int,
        horizon: int,
        binary: Sequence[bool],
        width: int,
        layers: int,
        per_axis: int = 1,
        gripper_weight: float = 0.1,
    ) -> None:
        """Builds the network.

        Args:
            inputs: length of the vector.
            horizon: H.
            binary: for each action axis, whether it is binary.
            width: of the hidden layers.
            layers: hidden layers.
            per_axis: numbers an axis.
            gripper_weight: of the mean cross entropy of binary axes beside the mean loss of the others.
        """
        super().__init__()
        self.horizon, self.per_axis = horizon, per_axis
        self.net = mlp(inputs, horizon * len(binary) * per_axis, width=width, layers=layers)
        binary_A = torch.tensor(list(binary))
        grippers = int(binary_A.sum())
        moves = len(binary) - grippers
        weight_A = torch.where(binary_A, gripper_weight / max(grippers, 1), 1.0 / max(moves, 1))
        self.register_buffer("binary_A", binary_A, persistent=False)
        self.register_buffer("weight_A", weight_A, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) to (..., H, A) or, with several numbers an axis, (..., H, A, per_axis)."""
        shape = (self.horizon, len(self.binary_A)) + ((self.per_axis,) if self.per_axis > 1 else ())
        return self.net(inputs).unflatten(-1, shape)

    def imitation_BH(self, outputs_BHA: Tensor, errors_BHA: Tensor, actions_BHA: Tensor) -> Tensor:
        """Loss of each action: mean error of continuous axes plus weighed cross entropy of the binary ones' logits."""
        losses_BHA = torch.where(self.binary_A, binary_cross_entropy(outputs_BHA, actions_BHA), errors_BHA)
        return (losses_BHA * self.weight_A).sum(-1)


def squash(outputs_BHA: Tensor, binary_A: Tensor) -> Tensor:
    """The network's numbers as actions in (-1, 1), differentiable: the means of their laws."""
    return torch.tanh(torch.where(binary_A, outputs_BHA / 2, outputs_BHA))


def l1_loss_BH(network: ChunkNetwork, outputs_BHA: Tensor, actions_BHA: Tensor) -> Tensor:
    """Imitation by absolute error, `outputs_BHA` before squashing."""
    return network.imitation_BH(outputs_BHA, absolute_error(torch.tanh(outputs_BHA), actions_BHA), actions_BHA)


def as_played(chunks: Tensor, binary_A: Tensor) -> Tensor:
    """Chunks (..., A) within the limits of the data, binary axes at -1 or +1."""
    return snap_binary(chunks.clamp(-ACTION_LIMIT, ACTION_LIMIT), binary_A)


def clip_through(chunks: Tensor) -> Tensor:
    """Chunks clipped to the limits of the data, with the gradient of the unclipped ones."""
    return chunks + (chunks.clamp(-ACTION_LIMIT, ACTION_LIMIT) - chunks).detach()


def rows_of(draw: Callable[..., Tensor], generator: torch.Generator, like_BD: Tensor, *shape: int) -> Tensor:
    """`draw` (torch.rand, torch.randn) of (B, *shape), one call a row: row i's numbers do not depend on B.

    Drawn on the generator's device, returned on that of `like_BD`.
    """
    rows = [draw(shape, generator=generator, device=generator.device) for _ in range(len(like_BD))]
    return torch.stack(rows).to(like_BD.device)
