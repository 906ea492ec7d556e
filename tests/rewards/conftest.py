"""Episodes made of numbers, so that every reward can be worked out by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from vla.core.types import Episode, Observation


@pytest.fixture(scope="session")
def make_episode() -> Callable[..., Episode]:
    def make(
        steps: int,
        *,
        done_at: int | None = None,
        terminated: bool | None = None,
        recorded: bool = True,
        images: Callable[[int], dict] = lambda t: {},
        instruction: str = "do it",
    ) -> Episode:
        """`done_at`: the first step after which the task is done, and stays so."""
        success_T = np.zeros(steps, np.float32)
        if done_at is not None:
            success_T[done_at:] = 1
        observations = [
            Observation(images=images(t), state_S=np.zeros(1, np.float32), instruction=instruction, time_s=t / 20)
            for t in range(steps + 1)
        ]
        success = done_at is not None
        return Episode(
            observations=observations,
            actions_TA=np.zeros((steps, 1), np.float32),
            labels_TA=np.zeros((steps, 1), np.float32),
            rewards={"success": success_T} if recorded else {},
            terminated=success if terminated is None else terminated,
            truncated=not success,
            success=success,
            meta={},
        )

    return make
