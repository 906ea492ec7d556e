"""Optimiser, learning-rate schedule and averaged weights."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla.train.distributed import mine, sliced_like


def adamw(
    module: nn.Module, *, lr: float, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW that decays matrices and convolutions only: shrinking biases, norms and tokens has no meaning."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [parameter for _, parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for _, parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float = 0.0) -> float:
    """The factor on the learning rate at a step, counted from 0: linear up to 1, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without frozen parameters: all that training can change."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


class Average:
    """Exponential moving average of a module's trained weights: smoother than any single step, and better policies.

    The decay starts low, min(decay, (1 + t) / (10 + t)), so that short runs do not average in the random start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Starts at the module's present weights; `decay` in [0, 1), 0 for no averaging."""
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in trained_tensors(module).items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves towards the weights after `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        averaged = {name: mine(tensor) for name, tensor in self.tensors.items() if tensor.is_floating_point()}
        torch._foreach_lerp_(list(averaged.values()), [mine(current[name]) for name in averaged], 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchanges averages and weights; a second time puts both back, bit for bit."""
        current = module.state_dict()
        for name, tensor in self.tensors.items():
            average, weight = mine(tensor), mine(current[name])
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def give(self, module: nn.Module) -> None:
        """Copies the averages into the module's weights."""
        current = module.state_dict()
        for name, tensor in self.tensors.items():
            mine(current[name]).copy_(mine(tensor))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over saved averages, as they are."""
        for name, tensor in self.tensors.items():
            tensor.copy_(sliced_like(tensors[name], tensor))
