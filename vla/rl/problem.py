"""What every network and algorithm of chunked reinforcement learning is told of the problem, in one value."""

from collections.abc import Sequence
from dataclasses import dataclass

ACTION_LIMIT = 1.05  # normalised actions are clipped to +-this, in the data as in what an actor plays


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Sizes, discount and attainable returns; known from the data when a run starts, so no configuration says them.

    features     D, numbers of one observation
    horizon      H, longest chunk; 1 makes every algorithm its one-step form
    binary       for each action axis, whether it is binary (a gripper), written -1 and +1
    discount     per environment step
    low, high    the lowest and highest return that can be attained: [0, 1] where success pays 1 and ends the episode,
                 [-1 / (1 - discount), 0] where each step costs 1; targets are clipped to it
    tasks        how many tasks the batch's `task_B` tells apart
    base_chunk   first feature of the flattened base chunk (H * A numbers) on which `ResidualActor` adds, or None
    """

    features: int
    horizon: int
    binary: Sequence[bool]
    discount: float
    low: float
    high: float
    tasks: int = 1
    base_chunk: int | None = None

    def __post_init__(self) -> None:
        if self.features < 1 or self.horizon < 1 or not self.binary or self.tasks < 1:
            raise ValueError(
                f"features {self.features}, horizon {self.horizon}, binary {list(self.binary)}, tasks {self.tasks}: "
                "expected at least one of each"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount is {self.discount}, expected a number in (0, 1]")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}, expected low < high")
        if self.base_chunk is not None and not 0 <= self.base_chunk <= self.features - self.horizon * self.action_dim:
            raise ValueError(f"base_chunk is {self.base_chunk}: a chunk there does not end within the features")

    @property
    def action_dim(self) -> int:
        return len(self.binary)

    @property
    def chunk_numbers(self) -> int:
        """H * A: dimensions of a chunk."""
        return self.horizon * self.action_dim
