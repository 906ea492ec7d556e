"""What a chunk critic learns: the discounted reward of each prefix, and what follows it.

    G_i = sum_{j < min(i, L)} g^j r_j  +  g^min(i, L) V(state after min(i, L) steps)      V = 0 where the task ended

for a chunk of which L steps were taken. Rewards are discounted inside the chunk, and the exponent of the bootstrap is
the number of steps really taken. Rows past a termination keep the same target, whatever actions were planned there;
rows past the end of a recording that did not terminate have no target. Letters as in interfaces.py.
Equation: CO-RFT (arXiv 2508.02219), prefix targets; terminal cases and the masks are ours.
"""

from typing import Literal

import torch
from torch import Tensor

from vla.core.errors import unknown_name
from vla.rl.interfaces import ChunkBatch

type PrefixBootstrap = Literal["own", "shared"]


def chunk_targets(
    rewards_BH: Tensor, valid_BH: Tensor, terminated_B: Tensor, bootstrap_BH: Tensor, discount: float
) -> tuple[Tensor, Tensor]:
    """Targets of every prefix, and which of them exist. `batch_targets` also applies the schedule: prefer it.

    Args:
        rewards_BH: of each step.
        valid_BH: the step was taken; True up to some step, False after it.
        terminated_B: the task ended at the last valid step.
        bootstrap_BH: column i - 1 is the value of the state after i steps; past the last valid step, of the last state.
        discount: per step, in [0, 1].

    Returns:
        targets_BH and usable_BH (bool): the step was taken, or the task had ended before it.
    """
    steps_H = torch.arange(1, rewards_BH.shape[1] + 1, device=rewards_BH.device)
    length_B1 = valid_BH.sum(dim=1, keepdim=True)
    rate = rewards_BH.new_tensor(discount)  # a plain number to an integer power would be float32 whatever the rewards
    gathered_BH = (rewards_BH * valid_BH * rate ** (steps_H - 1)).cumsum(dim=1)
    ended_BH = terminated_B[:, None] & (steps_H >= length_B1)
    following_BH = rate ** torch.minimum(steps_H, length_B1) * bootstrap_BH
    # `where`, not a product: a bootstrap that is not to be used may be anything, even NaN.
    targets_BH = gathered_BH + following_BH.masked_fill(ended_BH, 0.0)
    return targets_BH, valid_BH | terminated_B[:, None]


def usable_rows(batch: ChunkBatch) -> Tensor:
    """(B, H) bool: prefixes that may be learned from.

    The schedule decides before the outcome does: of chunks that reach past the time limit, those that terminated early
    would be a selection. And where the last observation is missing, rows that would bootstrap from it are left out.
    """
    steps_H = torch.arange(1, batch.valid_BH.shape[1] + 1, device=batch.valid_BH.device)
    from_the_end_BH = steps_H >= batch.length_B[:, None]
    missing_BH = from_the_end_BH & ~(batch.known_B | batch.terminated_B)[:, None]
    return (batch.valid_BH | batch.terminated_B[:, None]) & batch.rows_BH & ~missing_BH


def batch_targets(
    batch: ChunkBatch, bootstrap_BH: Tensor, discount: float, *, prefix_bootstrap: PrefixBootstrap = "own"
) -> tuple[Tensor, Tensor]:
    """Targets (B, H) of a batch and its usable rows (B, H).

    Args:
        batch: chunks.
        bootstrap_BH: as in `chunk_targets`.
        discount: per step.
        prefix_bootstrap: "own" lets prefix i bootstrap from the state after i steps. "shared" gives every prefix the
            target of the longest usable one: only one state has to be valued, but short prefixes are then valued under
            the recorded rest of the chunk, not under the policy's.
    """
    targets_BH, _ = chunk_targets(batch.rewards_BH, batch.valid_BH, batch.terminated_B, bootstrap_BH, discount)
    usable_BH = usable_rows(batch)
    if prefix_bootstrap == "own":
        return targets_BH, usable_BH
    if prefix_bootstrap == "shared":
        return _shared(targets_BH, usable_BH)
    raise unknown_name("prefix_bootstrap", prefix_bootstrap, ("own", "shared"))


def attainable(targets_BH: Tensor, usable_BH: Tensor, *, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Targets held in the range that returns can have, and how many usable ones were outside it (a scalar).

    [0, 1] for a reward of 1 at success, [-1 / (1 - discount), 0] for -1 a step until success: a free guard against
    values that grow by bootstrapping from themselves.
    """
    clipped_BH = targets_BH.clamp(low, high)
    return clipped_BH, ((clipped_BH != targets_BH) & usable_BH).sum()


def _shared(targets_BH: Tensor, usable_BH: Tensor) -> tuple[Tensor, Tensor]:
    steps_H = torch.arange(1, usable_BH.shape[1] + 1, device=usable_BH.device)
    last_B1 = (usable_BH * steps_H).amax(dim=1, keepdim=True)
    longest_B1 = targets_BH.gather(1, (last_B1 - 1).clamp(min=0))
    return longest_B1.expand_as(targets_BH), steps_H <= last_B1
