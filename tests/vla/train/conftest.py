"""`run` trains the toy policy for a few steps into a folder, as scripts/train.py does."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vla.data.batch import Batch
from vla.policies.vla import VLAPolicy
from vla.train.distributed import Processes
from vla.train.metrics import Metrics
from vla.train.offline import fit
from vla.train.optim import Average, adamw, warmup_cosine

type Trained = tuple[VLAPolicy, Average, torch.optim.AdamW]


@pytest.fixture
def run(
    one_thread: None, make_policy: Callable[..., VLAPolicy], make_batch: Callable[..., Batch]
) -> Callable[..., Trained]:
    def train(
        out: Path,
        *,
        steps: int,
        stop: int | None = None,
        edit: Callable[[int, Batch], Batch] = lambda step, batch: batch,
        policy: VLAPolicy | None = None,
        **options,
    ) -> Trained:
        """`steps` plans the schedule; the data dry up at `stop`, as if the run had been killed there."""
        policy = policy or make_policy()
        optimizer, average = adamw(policy, lr=1e-3), Average(policy, 0.9)

        def batches_from(start: int) -> Iterator[Batch]:
            for step in range(start, stop or steps + 1):
                yield edit(step, make_batch(step))

        fit(
            policy,
            batches_from,
            optimizer=optimizer,
            schedule=lambda step: warmup_cosine(step, steps=steps, warmup=2),
            average=average,
            metrics=Metrics(out, steps=steps, every=1),
            processes=Processes(),
            steps=steps,
            seed=5,
            out=out,
            **{"checkpoint_every": 2, **options},
        )
        return policy, average, optimizer

    return train
