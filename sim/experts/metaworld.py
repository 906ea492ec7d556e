"""The experts of Meta-World: its own scripted policies, which read the 39 numbers of its observation."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from sim.metaworld import INSTRUCTIONS, MetaworldEnv, scripted_policy
from vla.core.errors import unknown_name
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation

_TASKS = {instruction: task for task, instruction in INSTRUCTIONS.items()}


class MetaworldExpert:
    """Implements `vla.core.protocols.Policy` on privileged state. Horizon 1, no cameras, a function of the state."""

    cameras: tuple[str, ...] = ()
    horizon = 1

    def __init__(self, spec: Embodiment) -> None:
        self.spec = spec

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        return [
            ActionChunk(actions_HA=self._action(o)[None], start_s=o.time_s, dt_s=self.spec.dt_s) for o in observations
        ]

    def _action(self, observation: Observation) -> Float:
        if observation.instruction not in _TASKS:
            raise unknown_name("instruction", observation.instruction, _TASKS)
        policy = _policy(_TASKS[observation.instruction])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it asks for more than 1, which is clipped here
            return self.spec.clip(np.asarray(policy.get_action(observation.privileged["state"])))


def expert(env: MetaworldEnv) -> MetaworldExpert:
    """The expert for an environment of this suite."""
    return MetaworldExpert(env.spec)


@cache
def _policy(task: str) -> Any:
    return scripted_policy(task)
