"""The expert of a perturbed env: that of the env inside, since the truth which it reads is not perturbed."""

from sim.experts import expert_for
from sim.perturb import Perturbed
from vla.core.protocols import Policy


def expert(env: Perturbed) -> Policy:
    """Raises GrasplineError if the suite has none."""
    return expert_for(env.inner)
