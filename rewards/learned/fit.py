"""Trains a judge of single frames: half of each batch positives, half negatives, a loss from outside.

Negatives are frames where the task was not done, and frames where another one was: the picture of a finished task under
the other task's instruction is the hardest negative there is, and it is free (RoboFuME asks both questions of every
frame). That takes tasks of which one undoes, or says nothing of, the other. Views are random crops, encoded beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.learned.success import SuccessHead


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledFrames:
    """What a judge is trained on.

    tokens_VNKPD  (V, N, K, P, D)   features of V views of each frame, in any float type
    done_N        (N,) bool         whether the task was done
    text_N        (N,) int64        what was asked in that episode: a row of `texts`
    texts         X instructions; one alone if the judge serves a single task
    """

    tokens_VNKPD: Tensor
    done_N: Tensor
    text_N: Tensor
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        done = int(self.done_N.sum())
        if not 0 < done < len(self.done_N):
            raise ValueError(f"frames: {done} of {len(self.done_N)} show the task done; both kinds are needed")


@dataclass(frozen=True)
class HalfBatch:
    """Tokens, what is asked of them (not always what was asked there), and the answer: 1 in the first half, then 0.

    tokens_BKPD  (B, K, P, D) float32
    text_B       (B,) int64
    label_B      (B,) float32
    """

    tokens_BKPD: Tensor
    text_B: Tensor
    label_B: Tensor


def draw(frames: LabelledFrames, size: int, mismatched: float, generator: torch.Generator) -> HalfBatch:
    """One batch of `size` rows, half of them positives.

    Args:
        frames: to draw from.
        size: even.
        mismatched: share of the negatives that are positives under another instruction; 0 where there is only one.
        generator: of everything random.
    """
    half, texts = size // 2, len(frames.texts)
    foreign = round(half * mismatched) if texts > 1 else 0
    done, undone = frames.done_N.nonzero()[:, 0], (~frames.done_N).nonzero()[:, 0]
    row_B = torch.cat(
        [_pick(done, half, generator), _pick(undone, half - foreign, generator), _pick(done, foreign, generator)]
    )
    text_B = frames.text_N[row_B].clone()
    if foreign:
        others = torch.randint(1, texts, (foreign,), generator=generator)
        text_B[-foreign:] = (text_B[-foreign:] + others) % texts
    label_B = torch.cat([torch.ones(half), torch.zeros(half)])
    view_B = torch.randint(0, len(frames.tokens_VNKPD), (2 * half,), generator=generator)
    return HalfBatch(frames.tokens_VNKPD[view_B, row_B].float(), text_B, label_B)


def fit(
    judge: nn.Module,
    loss_of: Callable[[HalfBatch], Tensor],
    frames: LabelledFrames,
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 3e-4,
    weight_decay: float = 1e-2,
    mismatched: float = 0.25,
    seed: int = 0,
) -> list[float]:
    """Trains in place what requires gradients, and leaves the judge in evaluation mode. Returns the loss of each step.

    Args:
        judge: the module.
        loss_of: a batch's loss under that module (`head_loss`, `yes_no_loss`, with the rest bound).
        frames: to draw from.
        steps: of AdamW, with half a cosine down to zero.
        batch: rows, half of them positives.
        lr: at the start.
        weight_decay: on everything.
        mismatched: see `draw`.
        seed: of the batches, and of dropout through torch's global generator.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in judge.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    judge.train()
    losses = []
    for _ in range(steps):
        loss = loss_of(draw(frames, batch, mismatched, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    judge.eval()
    return losses


def head_loss(head: SuccessHead, texts_XE: Tensor | None, batch: HalfBatch) -> Tensor:
    """Mean binary cross entropy; `texts_XE` are the vectors of the instructions, None for a head of one task."""
    text_BE = None if texts_XE is None else texts_XE[batch.text_B]
    return functional.binary_cross_entropy_with_logits(head(batch.tokens_BKPD, text_BE), batch.label_B)


def _pick(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randint(0, len(rows), (count,), generator=generator)]
