"""What algorithms share besides their mathematics: steps, draws, and a state that resumes bit for bit.

All that an update draws is a function of the seed and the number of updates made, so the state holds no generator.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from vla.core.errors import CorruptFileError
from vla.rl.extraction import play
from vla.rl.interfaces import ChunkBatch
from vla.rl.presets import AnyActor


class Learner:
    """Base of the algorithms. Attributes that are networks or optimisers are its state, under their own names.

    The seed is the one that torch was last given (`torch.manual_seed`) before the networks were made.
    """

    def __init__(self) -> None:
        self.seed = torch.initial_seed()
        self.steps = 0

    def learn(self, batch: ChunkBatch, generator: torch.Generator) -> Mapping[str, Tensor | float]:
        """One step of every network; draws come from `generator` or from torch's own. Returns what is worth logging."""
        raise NotImplementedError

    def update(self, batch: ChunkBatch) -> dict[str, float]:
        """One step of every network, with draws that depend on the seed and the number of the step alone."""
        with seeded_draws(self.seed, self.steps) as generator:
            metrics = self.learn(batch, generator)
        self.steps += 1
        return {name: float(value) for name, value in metrics.items()}

    def networks(self) -> dict[str, nn.Module]:
        return {name: value for name, value in vars(self).items() if isinstance(value, nn.Module)}

    def optimizers(self) -> dict[str, Optimizer]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Optimizer)}

    def to(self, device: torch.device) -> Self:
        """Moves the networks; call it before the first update."""
        for network in self.networks().values():
            network.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Numbers and nested dictionaries of tensors, not copied."""
        parts = {**self.networks(), **self.optimizers()}
        return {"seed": self.seed, "steps": self.steps, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back, strictly.

        Raises:
            CorruptFileError: the state is another algorithm's.
        """
        parts = {**self.networks(), **self.optimizers()}
        if set(state) != {"seed", "steps", *parts}:
            raise CorruptFileError(f"state has {sorted(state)}, expected {sorted({'seed', 'steps', *parts})}")
        self.seed, self.steps = state["seed"], state["steps"]
        for name, part in parts.items():
            part.load_state_dict(state[name])


class ActorLearner[A: AnyActor](Learner):
    """An algorithm that plays what its actor plays."""

    actor: A

    @torch.no_grad()
    def choose(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        return play(self.actor, features_BD, generator)


@contextmanager
def seeded_draws(seed: int, step: int) -> Iterator[torch.Generator]:
    """Draws within it, torch's own and the generator's, are functions of `seed` and `step`; torch's resume after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed((seed * 1_000_003 + 2 * step) % 2**63)
        yield torch.Generator().manual_seed((seed * 1_000_003 + 2 * step + 1) % 2**63)


def adam(network: nn.Module, rate: float) -> Adam:
    """Adam over the network's weights that learn. No weight decay: values must be free to be large."""
    return Adam([weight for weight in network.parameters() if weight.requires_grad], lr=rate, fused=True)


def minimise(optimizer: Optimizer, loss: Tensor) -> None:
    """One step down the loss, of the optimiser's weights alone: a critic that an actor's loss passes through stays."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        weight.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
