"""What the parts of chunked reinforcement learning pass to each other: one batch, and three small protocols.

Letters: B batch, H longest chunk, A action, D features, E critics of an ensemble, M candidates for one observation.
Actions are normalised, as the policy's transforms write them, and clipped to [-1.05, 1.05]. A prefix is numbered by the
steps it takes: column i - 1 of a (B, H) array belongs to prefix i.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkBatch:
    """Chunks as a critic and an actor see them.

    features_BGD   (B, H+1, D) float32  the observation before the chunk, then those after 1..H steps; after the
                                        episode's last observation that one is repeated
    actions_BHA    (B, H, A) float32    executed; where not valid, padding that does not depend on the outcome
    valid_BH       (B, H) bool          the step was recorded and executed
    rows_BH        (B, H) bool          prefixes that the clock's schedule allowed to be recorded, whatever came of them
    rewards_BH     (B, H) float32       zero where not valid
    terminated_B   (B,) bool            the task ended at the last valid step: nothing follows
    known_B        (B,) bool            the observation after the last valid step was recorded; where it was not, and
                                        the task did not end there, nothing can be bootstrapped
    return_mc_B    (B,) float32         discounted Monte-Carlo return from the first step; NaN where unknown
    success_B      (B,) bool            of the whole episode
    demo_B         (B,) bool            the chunk's first step was the demonstrator's, or a person's correction
    task_B         (B,) int64           number of the task, in the order of the data
    """

    features_BGD: Tensor
    actions_BHA: Tensor
    valid_BH: Tensor
    rows_BH: Tensor
    rewards_BH: Tensor
    terminated_B: Tensor
    known_B: Tensor
    return_mc_B: Tensor
    success_B: Tensor
    demo_B: Tensor
    task_B: Tensor

    def __len__(self) -> int:
        return len(self.terminated_B)

    @property
    def length_B(self) -> Tensor:
        """(B,) int64, steps really taken."""
        return self.valid_BH.sum(dim=1)

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class Critic(Protocol):
    """An ensemble nn.Module that gives a value to every prefix of a chunk."""

    ensemble: int
    horizon: int

    def __call__(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Outputs (E, B, H) or, where the value's law is predicted, (E, B, H, bins).

        A flat critic fills only the last column; the others are NaN, and its `columns` says so.
        """
        ...

    @property
    def columns(self) -> slice:
        """The prefixes it values: all of them, or the longest alone."""
        ...

    def value(self, outputs: Tensor) -> Tensor:
        """Outputs to values (E, B, H)."""
        ...


class Actor(Protocol):
    """An nn.Module that proposes chunks; vla/rl/actors/ has them."""

    def mean(self, features_BD: Tensor) -> Tensor:
        """The chunk (B, H, A) it would play without chance; differentiable where the actor is."""
        ...

    def sample(self, features_BD: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` chunks for each row, (M, B, H, A)."""
        ...

    def loss_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Imitation loss of each action, not reduced and not masked."""
        ...

    def log_prob_BH(self, features_BD: Tensor, actions_BHA: Tensor) -> Tensor:
        """Log-density of each action. Raises NotImplementedError where the actor has none."""
        ...


class Algorithm(Protocol):
    """One way to learn from chunks; vla/rl/algorithms has one file for each."""

    def update(self, batch: ChunkBatch) -> Mapping[str, float]:
        """One step of every network. Returns what is worth logging, by the names of docs/chunked_rl.md."""
        ...

    def choose(self, features_BD: Tensor, generator: torch.Generator) -> Tensor:
        """The chunk (B, H, A) that is played: row i a function of its features and the generator alone."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
