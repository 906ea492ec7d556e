"""A running quantile for each task: which values belong to its best share, without a pass over all data.

Robbins and Monro: the threshold rises while more than the wanted share of values is above it, falls while fewer are.
The step is a fraction of the values' running spread, so the scale of returns does not matter.
"""

import torch
from torch import Tensor, nn


class TaskQuantiles(nn.Module):
    """Thresholds above which lies the share `share` of each task's values."""

    thresholds_T: Tensor
    spread_T: Tensor
    seen_T: Tensor

    def __init__(self, tasks: int, *, share: float, rate: float = 0.05) -> None:
        """For `tasks` tasks; `share` in (0, 1]; `rate` of the spread is the step."""
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}, expected a number in (0, 1]")
        self.share, self.rate = share, rate
        self.register_buffer("thresholds_T", torch.zeros(tasks))
        self.register_buffer("spread_T", torch.zeros(tasks))
        self.register_buffer("seen_T", torch.zeros(tasks, dtype=torch.bool))

    @torch.no_grad()
    def observe(self, values_B: Tensor, task_B: Tensor) -> None:
        """Moves the thresholds of the tasks that occur; a task's first values set its threshold at once."""
        for task in task_B.unique().tolist():
            values = values_B[task_B == task]
            if not self.seen_T[task]:
                self.thresholds_T[task] = values.quantile(1 - self.share)
                self.spread_T[task] = values.std(correction=0)
                self.seen_T[task] = True
                continue
            self.spread_T[task].lerp_(values.std(correction=0), self.rate)
            above = (values > self.thresholds_T[task]).float().mean()
            self.thresholds_T[task] += self.rate * self.spread_T[task] * (above - self.share)

    def above(self, values_B: Tensor, task_B: Tensor) -> Tensor:
        """(B,) bool: within the best share of its task; all of them where the share is 1."""
        if self.share == 1:
            return torch.ones_like(task_B, dtype=torch.bool)
        return values_B > self.thresholds_T[task_B]
