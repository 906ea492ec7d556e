"""Scripted experts: `sim/experts/x.py` has `expert(env)` for the suite in `sim/x.py`."""

import importlib
import importlib.util

from vla.core.errors import GrasplineError
from vla.core.protocols import Env, Policy


def expert_for(env: Env) -> Policy:
    """The scripted expert of an environment's suite. Raises GrasplineError if the suite has none."""
    suite = type(env).__module__.rpartition(".")[2]
    if importlib.util.find_spec(f"{__name__}.{suite}") is None:
        raise GrasplineError(f"suite '{suite}' has no scripted expert (sim/experts/{suite}.py)")
    return importlib.import_module(f"{__name__}.{suite}").expert(env)
