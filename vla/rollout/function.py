"""A Python function as a Policy: `policy=my_module:my_policy` evaluates it like any other.

Special: what is imported is named by the user on the command line, and never by a file. The function is not shown the
simulator's truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module

import numpy as np

from vla.core.errors import GrasplineError, NonFiniteError, SpecMismatchError, unknown_name
from vla.core.spec import Embodiment
from vla.core.types import ActionChunk, Float, Observation

type Act = Callable[[Observation, int], np.ndarray]


class FunctionPolicy:
    """Calls `act(observation, seed)`, which returns the next actions (H, A) in physical units.

    Args:
        act: a function of its arguments alone; what it draws, it draws from the seed.
        spec: the embodiment.
        cameras: those it is shown; the embodiment's when None.
        horizon: actions of a chunk that are used; None finds out with one call, on an observation of zeros.
    """

    def __init__(
        self, act: Act, *, spec: Embodiment, cameras: Sequence[str] | None = None, horizon: int | None = None
    ) -> None:
        self.spec = spec
        self.cameras = tuple(spec.camera_names if cameras is None else cameras)
        self._act = act
        self.horizon = horizon or len(self._actions(spec.zeros("find out the horizon"), 0))

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation, within the embodiment's bounds.

        Raises:
            SpecMismatchError: the function's actions have another shape.
            NonFiniteError: they hold NaN or infinity.
        """
        return [
            ActionChunk(
                actions_HA=self._actions(observation, seed)[: self.horizon],
                start_s=observation.time_s,
                dt_s=self.spec.dt_s,
            )
            for observation, seed in zip(observations, seeds, strict=True)
        ]

    def _actions(self, observation: Observation, seed: int) -> Float:
        actions_HA = np.asarray(self._act(replace(observation, privileged={}), seed), np.float32)
        least = getattr(self, "horizon", 1)
        if actions_HA.ndim != 2 or len(actions_HA) < least or actions_HA.shape[1] != self.spec.action_dim:
            raise SpecMismatchError(
                f"the policy function returned shape {actions_HA.shape}, expected (h, {self.spec.action_dim}) with "
                f"h of at least {least}: {[axis.name for axis in self.spec.action]}"
            )
        if not np.isfinite(actions_HA).all():
            raise NonFiniteError(f"the policy function returned NaN or infinity for '{observation.instruction}'")
        return np.clip(actions_HA, self.spec.action_low_A, self.spec.action_high_A)


def function_named(name: str) -> Act:
    """The function that "module:function" names, imported from Python's path.

    Raises:
        GrasplineError: the module cannot be imported.
        UnknownNameError: it has no such function.
    """
    module_name, _, function = name.partition(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise GrasplineError(f"policy '{name}': {error}, expected <module>:<function> on Python's path") from error
    found: Act | None = getattr(module, function, None)
    if not callable(found):
        valid = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise unknown_name(f"function in module {module_name}", function, valid)
    return found
